"""Trained models on disk: ``model.json`` says what was built, ``model.safetensors`` holds its numbers. No pickles.

``model.json`` has the format's version, the process with its parameters, the network's name and parameters, the
prediction, the conditioning and the description of the data. The tensors are the weights (``network.*``) and the
moments of the data (``moments.*``). Files are written beside their place and moved into it: a reader sees the old one
or the new one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sdediff.denoiser import ScoreModel
from sdediff.interop import DiffusersNetwork, find_model, load_folder
from sdediff.moments import Moments
from sdediff.networks import NETWORKS as OWN
from sdediff.numerics import choose
from sdediff.predictions import PREDICTIONS
from sdediff.sde import SDE, SDES
from sdediff.types import DataInfo

FORMAT = 1
DESCRIPTION, TENSORS = "model.json", "model.safetensors"
NETWORKS: dict[str, Callable[..., nn.Module]] = {**OWN, "diffusers": DiffusersNetwork}
"""Networks that a description can name."""
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")

T = TypeVar("T")


def save(model: ScoreModel, path: str | Path, force: bool = False) -> None:
    """Write a model into the folder ``path``.

    Args:
        model: its network must come from ``NETWORKS`` or be a :class:`~sdediff.interop.DiffusersNetwork`; other
            callables cannot be built again from a description.
        path: the folder, made if need be.
        force: replace the model that is there.

    Raises:
        FileExistsError: if the folder holds a model and ``force`` is not set.
        ValueError: if the network, process or prediction is not one of the library's own.
    """
    path = Path(path)
    if (path / DESCRIPTION).exists() and not force:
        raise FileExistsError(f"{path} already holds a model; force replaces it")
    text = json.dumps(describe(model), indent=2) + "\n"
    tensors = {f"network.{name}": value for name, value in _own_network(model.network).state_dict().items()}
    if model.moments is not None:
        present = {field.name: getattr(model.moments, field.name) for field in fields(Moments)}
        tensors |= {f"moments.{name}": value for name, value in present.items() if value is not None}
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / TENSORS, tensors)
    write(path / DESCRIPTION, text.encode())


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    data: DataInfo | None = None,
    conditioning: str | None = None,
) -> ScoreModel:
    """Read a model, in evaluation mode: one of :func:`save`, or a folder of diffusers.

    A folder of diffusers (``unet/`` and ``scheduler/``, or a network and its ``scheduler_config.json``) gives the
    network on its exact chain, without clipping; see :func:`sdediff.interop.load_folder`. It needs the extra
    ``sdediff[diffusers]``.

    Args:
        path: the folder.
        device: where its weights go.
        data: what the data are, where the folder does not say or says otherwise.
        conditioning: how a network of diffusers is asked; see there.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it is damaged, or is a pickle, which could execute anything; in one line.
    """
    path = Path(path)
    if path.suffix.lower() in _PICKLES or (path.is_file() and path.name not in (DESCRIPTION, TENSORS)):
        raise ValueError(
            f"{path} is not a model: one is a folder with {DESCRIPTION} and {TENSORS}; pickles are refused"
        )
    folder = path.parent if path.is_file() else path
    if not (folder / DESCRIPTION).is_file() and find_model(folder) is not None:
        return load_folder(folder, data=data, conditioning=conditioning).to(device).eval()
    if conditioning is not None:
        raise ValueError(f"the model in {folder} knows how it was trained: conditioning is for folders of diffusers")
    model = _load_own(folder)
    model.data = model.data if data is None else data
    return model.to(device).eval()


def _load_own(folder: Path) -> ScoreModel:
    for name in (DESCRIPTION, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no model in {folder}: {name} is missing")
    tensors, _ = read_tensors(folder / TENSORS)
    try:
        return _rebuild(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")), tensors)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the model in {folder} is damaged: {type(error).__name__}: {reason}") from None


def latest_run(root: str | Path = "runs") -> Path:
    """The folder under ``root`` whose model was written last.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = sorted(Path(root).glob(f"*/{DESCRIPTION}"), key=lambda file: (file.stat().st_mtime_ns, file))
    if not found:
        raise FileNotFoundError(f"no run under {Path(root)}")
    return found[-1].parent


def describe(model: ScoreModel) -> dict[str, Any]:
    """What :func:`load` needs to build the model again, as JSON values.

    Raises:
        ValueError: if a part is not one of the library's own.
    """
    network = _own_network(model.network)
    sde = {field.name: getattr(model.sde, field.name) for field in fields(model.sde)}  # type: ignore[arg-type]
    predictions = {name: type(prediction) for name, prediction in PREDICTIONS.items()}
    return {
        "format": FORMAT,
        "sde": {"name": _name_of(SDES, type(model.sde), "process"), **sde},
        "network": {"name": _name_of(NETWORKS, type(network), "network"), **network.config},  # type: ignore[dict-item]
        "prediction": _name_of(predictions, type(model.prediction), "prediction"),
        "conditioning": model.conditioning,
        **({"learned_variance": True} if model.learned_variance else {}),  # files without it are older
        "data": None if model.data is None else model.data._asdict(),
    }


def _own_network(network: object) -> nn.Module:
    if not isinstance(network, nn.Module) or type(network) not in NETWORKS.values():
        raise ValueError(
            f"only networks of the library can be saved ({', '.join(NETWORKS)}), not {type(network).__name__}"
        )
    return network


def _name_of(table: Mapping[str, T], entry: T, what: str) -> str:
    for name, known in table.items():
        if known is entry:
            return name
    raise ValueError(f"only a {what} of the library can be saved ({', '.join(table)}), not {entry!r}")


def _rebuild(description: dict[str, Any], tensors: dict[str, Tensor]) -> ScoreModel:
    if description["format"] != FORMAT:
        raise ValueError(f"format {description['format']!r} is not {FORMAT}")
    sde_parameters, network_parameters = dict(description["sde"]), dict(description["network"])
    sde: SDE = choose(SDES, sde_parameters.pop("name"), "process")(**sde_parameters)
    network = choose(NETWORKS, network_parameters.pop("name"), "network")(**network_parameters)
    moments = {name.removeprefix("moments."): value for name, value in tensors.items() if name.startswith("moments.")}
    weights = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    network.load_state_dict(weights, strict=True)
    data = description["data"]
    return ScoreModel(
        network,
        sde,
        prediction=description["prediction"],
        conditioning=description["conditioning"],
        moments=Moments(**moments) if moments else None,
        data=None if data is None else DataInfo(**{**data, "shape": tuple(data["shape"])}),
        learned_variance=description.get("learned_variance", False),
    )


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step: it holds the old content or the new, whatever happens in between."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as safetensors, in one step."""
    write(
        path, to_bytes({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, metadata)
    )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Named tensors and the metadata of a safetensors file.

    Raises:
        ValueError: if the file is damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {str(error).splitlines()[0]}") from None
