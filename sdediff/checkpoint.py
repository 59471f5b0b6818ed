"""Trained models on disk: a description, ``model.json``, and tensors, ``model.safetensors``. No pickles.

``model.json`` has the format's version, the process with its parameters, the network's name and parameters, the exact
last layer if there is one, the prediction and the conditioning (names, or names and parameters) and the description of
the data. The tensors are the weights (``network.*``) and the moments of the data (``moments.*``). Neither file is
trusted: the description is validated and its network compared with the header of the weights before anything is
allocated. Each file is replaced in one step.
"""

from __future__ import annotations

import json
import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from sdediff.conditioning import CONDITIONINGS, Conditioning
from sdediff.data.section import Data, data_entries
from sdediff.denoiser import ScoreModel
from sdediff.documents import (
    AnyEntry,
    Entry,
    Finite,
    Named,
    Section,
    description_of,
    instance,
    read_document,
    reason,
    validated,
)
from sdediff.files import write
from sdediff.interop import DiffusersNetwork, find_model, load_folder
from sdediff.moments_storage import moments_tensors, read_moments
from sdediff.networks import NETWORKS, Levelled, described
from sdediff.parametrization import PREDICTIONS
from sdediff.sde import SDES
from sdediff.tables import subtable
from sdediff.tensors import build_for, fill, read_shapes, read_tensors, write_tensors
from sdediff.types import DataInfo

MODEL_FORMAT = 1
DESCRIPTION, TENSORS = "model.json", "model.safetensors"
SAVED_NETWORKS: Mapping[str, Callable[..., nn.Module]] = ChainMap({"diffusers": DiffusersNetwork}, NETWORKS)
"""Networks that can be saved, those added to :data:`sdediff.networks.NETWORKS` later included."""
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class ExactLevels(Section):
    """Levels of the exact last layer: their number, the lowest and the highest value."""

    levels: Annotated[int, Field(ge=2, le=1 << 32)]
    low: Finite = -1.0
    high: Finite = 1.0


class Description(Section):
    """Content of ``model.json``."""

    format: Literal[1]
    sde: Named
    network: Named
    exact_levels: ExactLevels | None = None
    prediction: Entry
    conditioning: Entry
    learned_variance: bool = False
    data: Data | None


def save(model: ScoreModel, path: str | Path, force: bool = False) -> None:
    """Write a model into the folder ``path``.

    Args:
        model: model whose network is of ``NETWORKS`` or a :class:`~sdediff.interop.DiffusersNetwork`; other callables
            cannot be built again from a description.
        path: the folder, created if missing.
        force: replace the model in the folder; else one that is there is a ``FileExistsError``.

    Raises:
        ValueError: for a wrapper, or if the network, process or prediction is not one of the library's own.

    >>> sdediff.save(sdediff.ScoreModel(sdediff.networks.MLP((2,)), sdediff.VPSDE()), "run")
    """
    path = Path(path)
    if not isinstance(model, ScoreModel):
        raise ValueError(f"only a ScoreModel can be saved, not a {type(model).__name__}: save the model inside")
    if (path / DESCRIPTION).exists() and not force:
        raise FileExistsError(f"{path} already holds a model; force replaces it")
    description = describe_model(model)
    _typed(validated(Description, description))  # ensures that it can be read
    text = json.dumps(description, indent=2) + "\n"
    network, _ = _own_network(model.network)
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    if model.moments is not None:
        tensors |= {f"moments.{name}": value for name, value in moments_tensors(model.moments).items()}
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / TENSORS, tensors)
    write(path / DESCRIPTION, text.encode())


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    data: DataInfo | None = None,
    conditioning: str | Conditioning | None = None,
) -> ScoreModel:
    """Read a model that :func:`save` or diffusers wrote, in evaluation mode.

    A folder of diffusers (``unet/`` and ``scheduler/``, or a network and its ``scheduler_config.json``) gives the
    network on its exact chain, without clipping; see :func:`sdediff.interop.load_folder`. It needs the extra
    ``sdediff[diffusers]``.

    Args:
        path: the folder.
        device: device of the weights.
        data: description of the data, in place of the folder's.
        conditioning: conditioning of a network of diffusers; see there.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it is damaged, or is a pickle, which could execute anything; in one line.

    >>> sdediff.save(sdediff.ScoreModel(sdediff.networks.MLP((2,)), sdediff.VPSDE()), "run")
    >>> sdediff.load("run").sde
    VPSDE(beta_min=0.1, beta_max=20.0)
    """
    path = Path(path)
    if path.suffix.lower() in _PICKLES or (path.is_file() and path.name not in (DESCRIPTION, TENSORS)):
        raise ValueError(
            f"{path} is not a model: one is a folder with {DESCRIPTION} and {TENSORS}; pickles are refused"
        )
    folder = path.parent if path.is_file() else path
    if not folder.exists() and _HUB_NAME.fullmatch(str(path)):
        raise FileNotFoundError(
            f"no folder {path}; names of the Hugging Face hub are not looked up: download the model first, for example "
            f"by `hf download {path} --local-dir FOLDER`, and load that folder"
        )
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
    try:
        return _rebuild(_description(folder), folder / TENSORS)
    except OSError:
        raise
    except Exception as error:  # constructors may raise anything for arbitrary values
        raise ValueError(f"the model in {folder} is damaged: {reason(error)}") from None


def _description(folder: Path) -> Description:
    return validated(Description, read_document(folder / DESCRIPTION))


def read_info(folder: Path) -> DataInfo | None:
    """Return the description of the data of the model in a folder, if there is one.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if its description is damaged; in one line.
    """
    try:
        data = _description(folder).data
    except ValueError as error:
        raise ValueError(f"the model in {folder} is damaged: {reason(error)}") from None
    return None if data is None else data.info()


def latest_run(root: str | Path = "runs", holding: str = DESCRIPTION) -> Path:
    """Return the folder under ``root`` whose file ``holding``, the model's by default, was written last.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = sorted(Path(root).glob(f"*/{holding}"), key=lambda file: (file.stat().st_mtime_ns, file))
    if not files:
        raise FileNotFoundError(f"no run under {Path(root)}")
    return files[-1].parent


def describe_model(model: ScoreModel) -> dict[str, Any]:
    """Return the description from which :func:`load` builds a model, as JSON values.

    Raises:
        ValueError: if a part is not one of the library's own.
    """
    network, head = _own_network(model.network)
    if not is_dataclass(model.sde):
        raise ValueError(f"only processes that are dataclasses can be saved, not {type(model.sde).__name__}")
    sde = {field.name: getattr(model.sde, field.name) for field in fields(model.sde) if field.init}
    return {
        "format": MODEL_FORMAT,
        "sde": {"name": _name_of(SDES, type(model.sde), "process"), **sde},
        "network": {"name": _name_of(SAVED_NETWORKS, type(network), "network"), **network.config},
        **({"exact_levels": head.config} if head is not None else {}),  # absent in older files
        "prediction": description_of(PREDICTIONS, model.prediction, "prediction"),
        "conditioning": description_of(CONDITIONINGS, model.interface, "conditioning"),
        **({"learned_variance": True} if model.learned_variance else {}),
        "data": None if model.data is None else data_entries(model.data),
    }


def _own_network(network: object) -> tuple[nn.Module, Levelled | None]:
    """Return the network of a table, and the exact layer around it if there is one."""
    head, inner = (network, network.network) if isinstance(network, Levelled) else (None, network)
    if not isinstance(inner, nn.Module) or type(inner) not in SAVED_NETWORKS.values():
        raise ValueError(
            f"only networks of the library can be saved ({', '.join(SAVED_NETWORKS)}), not {type(inner).__name__}"
        )
    if not isinstance(getattr(inner, "config", None), Mapping):
        raise ValueError(f"{type(inner).__name__} can be saved with a dict `config` of the parameters that build it")
    return inner, head


def _name_of(table: Mapping[str, AnyEntry], entry: AnyEntry, what: str) -> str:
    for name, other in table.items():
        if other is entry:
            return name
    raise ValueError(f"only a {what} of the library can be saved ({', '.join(table)}), not {entry!r}")


def _rebuild(description: Description, weights: Path) -> ScoreModel:
    """Build the model of a description and the file of its tensors."""
    sde, named, levels = _typed(description)
    data = None if description.data is None else description.data.info()
    if data is not None and "shape" in named.parameters and tuple(named.parameters["shape"]) != data.shape:
        raise ValueError(f"the network is for items {tuple(named.parameters['shape'])}, the data are {data.shape}")
    shapes = read_shapes(weights)
    of_network, of_moments = (subtable(shapes, prefix) for prefix in ("network.", "moments."))
    if len(of_network) + len(of_moments) != len(shapes):
        raise ValueError(f"{weights.name} holds tensors that are neither weights nor moments")
    network = described(build_for(lambda: SAVED_NETWORKS[named.name](**named.parameters), of_network), named.parameters)
    tensors, _ = read_tensors(weights)
    fill(network, subtable(tensors, "network."))
    moments = read_moments(subtable(tensors, "moments."), None if data is None else data.shape) if of_moments else None
    if isinstance(network, DiffusersNetwork) and data is not None:
        network.check(data.shape)
    return ScoreModel(
        network if levels is None else Levelled(network, **levels.model_dump()),
        SDES[sde.name](**sde.parameters),
        prediction=instance(PREDICTIONS, description.prediction, "prediction"),
        conditioning=description.conditioning
        if isinstance(description.conditioning, str)
        else instance(CONDITIONINGS, description.conditioning, "conditioning"),
        moments=moments,
        data=data,
        learned_variance=description.learned_variance,
    )


def _typed(description: Description) -> tuple[Named, Named, ExactLevels | None]:
    """Return process, network and exact layer, with validated parameters."""
    network, levels = _exact_levels(description)
    sde, network = description.sde.typed(SDES, "sde", "process"), network.typed(SAVED_NETWORKS, "network", "network")
    outputs = network.parameters.get("outputs")
    if levels is not None and outputs not in (None, levels.levels):
        raise ValueError(f"an exact layer of {levels.levels} levels is no layer for a network of {outputs} outputs")
    return sde, network, levels


def _exact_levels(description: Description) -> tuple[Named, ExactLevels | None]:
    """Return the network and its exact layer, which version 0.1.0 wrote among the network's parameters."""
    old, keys = description.network.parameters, ("levels", "low", "high")
    if description.network.name not in ("mlp", "unet") or not all(key in old for key in keys):
        return description.network, description.exact_levels
    head = {key: old.pop(key) for key in keys}
    if head["levels"] is None:
        return Named(name=description.network.name, **old), None
    levels = validated(ExactLevels, head, "network")
    return Named(name=description.network.name, **{**old, "outputs": levels.levels}), levels
