"""Safetensors files, possibly of foreign origin: names and shapes are validated from the header, before the data.

A network is built for its weights in two steps. On the ``meta`` device, where nothing is allocated, its tensors are
compared by name and shape with those of the file; only if they agree is it built in memory. A description cannot claim
more memory than the weights beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn.modules import module as registration

from sdediff.documents import reason
from sdediff.files import write
from sdediff.numerics import all_finite

_MOST_HEADER = 1 << 25
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file after checking the size of its header.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > min(_MOST_HEADER, path.stat().st_size - 8):
            raise ValueError(f"its header of {size:,} bytes is larger than the file or {_MOST_HEADER >> 20} MiB")
        with safe_open(path, framework="pt") as opened:
            yield opened
    except (SafetensorError, ValueError, OSError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {reason(error)}") from None


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file, not the tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or of another kind.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the named tensors and the metadata of a safetensors file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or of another kind.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as safetensors, in one step; equal tensors and metadata make equal files."""
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write(path, _in_order(to_bytes(copies, metadata)))


def _in_order(raw: bytes) -> bytes:
    """Return the content of a safetensors file with its metadata in order, which the writer leaves to chance."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    if len(header.get("__metadata__", ())) < 2:
        return raw
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(raw)[end:]])


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold NaN or infinite numbers.

    Raises:
        ValueError: naming the first.
    """
    for name, value in tensors.items():
        if not all_finite(value):
            raise ValueError(f"{name} holds NaN or infinite numbers")


def build_for(make: Callable[[], nn.Module], shapes: Shapes) -> nn.Module:
    """Build a network whose tensors have the shapes of its weights.

    Args:
        make: constructor of the network.
        shapes: shapes of the weights.

    Raises:
        ValueError: if the network has other tensors, or cannot be built.
    """
    with _limit_size(shapes):
        try:
            with torch.device("meta"):
                blank, network = make(), None
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            blank = network = _build(make)  # a constructor that reads its numbers: only their count bounds it
    _compare_shapes({name: tuple(value.shape) for name, value in blank.state_dict().items()}, shapes)
    return _build(make) if network is None else network


def _build(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # constructors draw weights from the global generator, which are replaced
        return make()


@contextmanager
def _limit_size(shapes: Shapes) -> Iterator[None]:
    """Stop a constructor that registers more than the weights can fill, before it fills the memory."""
    most, numbers = 2 * len(shapes) + 100, sum(map(torch.Size.numel, map(torch.Size, shapes.values())))
    count = {"parameters": 0, "modules": 0, "numbers": 0}

    def parameter(_: nn.Module, __: str, value: nn.Parameter | None) -> None:
        if value is not None:
            count["parameters"] += 1
            count["numbers"] += 0 if value.is_meta else value.numel()
        if count["parameters"] > most or count["numbers"] > 2 * numbers:
            raise ValueError(f"the description is of a larger network than the {len(shapes)} tensors of its weights")

    def module(*_: Any) -> None:
        count["modules"] += 1
        if count["modules"] > 100 * most:
            raise ValueError(f"the description is of a larger network than the {len(shapes)} tensors of its weights")

    with ExitStack() as stack:
        for handle in (
            registration.register_module_parameter_registration_hook(parameter),
            registration.register_module_module_registration_hook(module),
        ):
            stack.callback(handle.remove)
        yield


def _compare_shapes(own: Shapes, given: Shapes) -> None:
    differ = [f"{name} is {given[name]}, not {own[name]}" for name in own if name in given and own[name] != given[name]]
    for kind, names in (
        ("missing", [name for name in own if name not in given]),
        ("unexpected", [name for name in given if name not in own]),
        ("of other shapes", differ),
    ):
        if names:
            raise ValueError(f"the weights do not fit the description: {kind}: {_abbreviate(names)}")


def _abbreviate(names: Iterable[str]) -> str:
    first = [name[:100] for name in names]
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")


@torch.no_grad()
def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights into a network, in the dtypes of the weights.

    Raises:
        ValueError: if the weights do not fit the network, or are not finite.
    """
    check_finite(weights)
    for name, own in (*network.named_parameters(), *network.named_buffers()):
        if name in weights:
            dtype = weights[name].dtype
            if own.is_floating_point() != dtype.is_floating_point or own.is_complex() != dtype.is_complex:
                raise ValueError(f"{name} is of dtype {dtype}, not {own.dtype}")
            own.data = own.data.to(dtype)
    try:
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise ValueError(reason(error)) from None
