"""Safetensors files that others may have written: what they hold is known from their header, before it is read.

A network is built for its weights in two steps. On the ``meta`` device, where nothing is allocated, its tensors are
compared by name and shape with those of the file; only if they agree is it built for good. A description cannot ask for
more memory than the file beside it fills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as registration

from sdediff.documents import reason
from sdediff.numerics import all_finite

_MOST_HEADER = 1 << 25
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, once its header is known to be of a sensible size.

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


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold NaN or infinite numbers.

    Raises:
        ValueError: naming the first.
    """
    for name, value in tensors.items():
        if not all_finite(value):
            raise ValueError(f"{name} holds NaN or infinite numbers")


def build_for(make: Callable[[], nn.Module], shapes: Shapes) -> nn.Module:
    """Build a network, once its tensors are known to be those of its weights.

    Args:
        make: builds it.
        shapes: of the weights.

    Raises:
        ValueError: if it has other tensors, or cannot be built.
    """
    with _no_more_than(shapes):
        try:
            with torch.device("meta"):
                plan, whole = make(), None
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            plan = whole = _drawn(make)  # a constructor that looks at its numbers: their count alone bounds it
    _compare({name: tuple(value.shape) for name, value in plan.state_dict().items()}, shapes)
    return _drawn(make) if whole is None else whole


def _drawn(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; what they draw is replaced
        return make()


@contextmanager
def _no_more_than(shapes: Shapes) -> Iterator[None]:
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


def _compare(own: Shapes, given: Shapes) -> None:
    differ = [f"{name} is {given[name]}, not {own[name]}" for name in own if name in given and own[name] != given[name]]
    for what, names in (
        ("missing", [name for name in own if name not in given]),
        ("unexpected", [name for name in given if name not in own]),
        ("of other shapes", differ),
    ):
        if names:
            raise ValueError(f"the weights do not fit the description: {what}: {_some(names)}")


def _some(names: Iterable[str]) -> str:
    first = [name[:100] for name in names]
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")


@torch.no_grad()
def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network its weights, in the dtypes that they have.

    Raises:
        ValueError: if they are not the network's, or not finite.
    """
    check_finite(weights)
    for name, own in (*network.named_parameters(), *network.named_buffers()):
        if name in weights:
            kind = weights[name].dtype
            if own.is_floating_point() != kind.is_floating_point or own.is_complex() != kind.is_complex:
                raise ValueError(f"{name} is of dtype {kind}, not {own.dtype}")
            own.data = own.data.to(kind)
    try:
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise ValueError(reason(error)) from None
