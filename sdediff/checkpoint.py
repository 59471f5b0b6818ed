"""Trained models on disk: a description, ``model.json``, and tensors, ``model.safetensors``. No pickles.

``model.json`` has the format's version, the process with its parameters, the network's name and parameters (of a class
that is not the library's, the place ``package.module:Class``, which is never imported because a file says so), the
exact last layer if there is one, the prediction and the conditioning (names, or names and parameters) and the
description of the data. The tensors are the weights (``network.*``) and the moments of the data (``moments.*``).
Neither file is trusted: the description is validated and its network compared with the header of the weights before
anything is allocated. Each file is replaced in one step.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdediff.conditioning import CONDITIONINGS, Conditioning
from sdediff.description import SAVED_NETWORKS, Description, describe_model, own_network, typed_parts
from sdediff.documents import (
    instance,
    read_document,
    reason,
    validated,
)
from sdediff.files import write
from sdediff.foreign import OwnNetwork, imported, is_import_path, needs_network
from sdediff.interop import DiffusersNetwork, find_autoencoder, find_model, is_hub_name, load_folder, load_latent
from sdediff.latent import FIRST_STAGES, FirstStage, LatentModel
from sdediff.moments_storage import moments_tensors, read_moments
from sdediff.networks import Levelled, described
from sdediff.parametrization import PREDICTIONS
from sdediff.score_model import ScoreModel
from sdediff.sde import SDES
from sdediff.stage_storage import (
    STAGE_FORMAT,
    LatentDescription,
    check_exported,
    describe_stage,
    needs_stage,
    rebuild_stage,
    stage_data,
)
from sdediff.tables import subtable
from sdediff.tensors import build_for, check_finite, fill, read_shapes, read_tensors, write_tensors
from sdediff.types import DataInfo

_LOG = logging.getLogger(__name__)

DESCRIPTION, TENSORS = "model.json", "model.safetensors"
FIRST, SECOND = "first_stage", "score_model"
"""Folders of the two stages of a latent model."""
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")


def save(model: ScoreModel | FirstStage | LatentModel, path: str | Path, force: bool = False) -> None:
    """Write a model into the folder ``path``.

    Args:
        model: a score model, an autoencoder, a VAE or a latent model, whose networks are torch modules. A network that
            is not of ``NETWORKS`` has to be given to :func:`load`; a dict ``config`` of it holds the parameters with
            which its class is then called.
        path: the folder, created if missing.
        force: replace the model in the folder; else one that is there is a ``FileExistsError``.

    Raises:
        ValueError: for a wrapper or a network in a function, or if process or prediction is not one of the library's.

    >>> sdediff.save(sdediff.ScoreModel(sdediff.networks.MLP((2,)), sdediff.VPSDE()), "run")
    """
    path = Path(path)
    if not isinstance(model, ScoreModel | FirstStage | LatentModel):
        raise ValueError(f"only a ScoreModel can be saved, not a {type(model).__name__}: save the model inside")
    if (path / DESCRIPTION).exists() and not force:
        raise FileExistsError(f"{path} already holds a model; force replaces it")
    if isinstance(model, LatentModel):
        _save_latent(model, path)
    elif isinstance(model, FirstStage):
        check_exported(model)
        _write(path, describe_stage(model), model.state_dict())
    else:
        description = describe_model(model)
        typed_parts(validated(Description, description))  # ensures that it can be read
        network, _ = own_network(model.network)
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
        if model.moments is not None:
            tensors |= {f"moments.{name}": value for name, value in moments_tensors(model.moments).items()}
        _write(path, description, tensors)


def _write(path: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write description and tensors of a model, the description last."""
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / TENSORS, tensors)
    write(path / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())
    _LOG.info("saved the model in %s", path)


def _save_latent(model: LatentModel, path: Path) -> None:
    """Write a latent model: its stages in folders of their own, then the scale of the codes."""
    save(model.first_stage, path / FIRST, force=True)
    save(model.score_model, path / SECOND, force=True)
    _write(path, {"format": STAGE_FORMAT, "kind": "latent"}, {"shift": model.shift, "scale": model.scale})


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    data: DataInfo | None = None,
    conditioning: str | Conditioning | None = None,
    network: OwnNetwork | str | None = None,
) -> ScoreModel:
    """Read a model that :func:`save` or diffusers wrote, in evaluation mode.

    A folder may also hold an autoencoder, a VAE or a latent model (:mod:`sdediff.latent`), which is then returned;
    :func:`load_any` is the same function with the types of all.

    A folder of diffusers (``unet/`` and ``scheduler/``, or a network and its ``scheduler_config.json``) gives the
    network on its exact chain, without clipping; see :func:`sdediff.interop.load_folder`. It needs the extra
    ``sdediff[diffusers]``.

    Args:
        path: the folder.
        device: device of the weights.
        data: description of the data, in place of the folder's.
        conditioning: conditioning of a network of diffusers; see there.
        network: the network of a model whose network is not the library's: its class, called with the saved
            parameters, or ``"package.module:Class"``, which is imported; or a module, into which the weights are put.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it is damaged, or is a pickle, which could execute anything, or its network is not the library's
            and not given; in one line.

    >>> sdediff.save(sdediff.ScoreModel(sdediff.networks.MLP((2,)), sdediff.VPSDE()), "run")
    >>> sdediff.load("run").sde
    VPSDE(beta_min=0.1, beta_max=20.0)
    """
    return load_any(path, device, data=data, conditioning=conditioning, network=network)  # type: ignore[return-value]


def load_any(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    data: DataInfo | None = None,
    conditioning: str | Conditioning | None = None,
    network: OwnNetwork | str | None = None,
) -> ScoreModel | FirstStage | LatentModel:
    """Read a model of any kind; see :func:`load`."""
    path = Path(path)
    if path.suffix.lower() in _PICKLES or (path.is_file() and path.name not in (DESCRIPTION, TENSORS)):
        raise ValueError(
            f"{path} is not a model: one is a folder with {DESCRIPTION} and {TENSORS}; pickles are refused"
        )
    folder = path.parent if path.is_file() else path
    if is_hub_name(path):
        raise FileNotFoundError(
            f"no folder {path}; a name of the Hugging Face hub is fetched by --download on the command line, or by "
            f"`hf download {path} --local-dir FOLDER`, which gives a folder to load"
        )
    if not (folder / DESCRIPTION).is_file() and find_model(folder) is not None:
        if network is not None:
            raise ValueError(f"the network in {folder} is one of diffusers: network= is for networks of your own")
        if find_autoencoder(folder) is not None and data is None:
            return load_latent(folder, conditioning=conditioning).to(device).eval()
        return load_folder(folder, data=data, conditioning=conditioning).to(device).eval()
    if conditioning is not None:
        raise ValueError(f"the model in {folder} knows how it was trained: conditioning is for folders of diffusers")
    model = _load_kind(folder, imported(network) if isinstance(network, str) else network)
    if data is not None:
        if not isinstance(model, ScoreModel):
            raise ValueError(f"the model in {folder} knows what its data are: data= is for score models")
        model.data = data
    _LOG.info("loaded the model in %s", folder)
    return model.to(device).eval()


def _load_kind(folder: Path, network: OwnNetwork | None) -> ScoreModel | FirstStage | LatentModel:
    """Read a model of any kind."""
    kind = _kind(folder)
    if kind is None:
        return _load_own(folder, network)
    if kind == "latent":
        return _load_latent(folder, network)
    return _load_stage(folder, network)


def _kind(folder: Path) -> str | None:
    """Return the kind of the model in a folder, ``None`` for a score model or what is read as one."""
    if not (folder / DESCRIPTION).is_file():
        return None
    try:
        kind = read_document(folder / DESCRIPTION).get("kind")
    except ValueError:
        return None
    return kind if kind in ("latent", *FIRST_STAGES) else None


def _load_stage(folder: Path, network: OwnNetwork | None) -> FirstStage:
    """Read an autoencoder or a VAE."""
    if not (folder / TENSORS).is_file():
        raise FileNotFoundError(f"no model in {folder}: {TENSORS} is missing")
    given = network if isinstance(network, nn.Module) else None
    try:
        values = read_document(folder / DESCRIPTION)
        foreign = needs_stage(values)
        if foreign is None or given is not None:
            return rebuild_stage(values, folder / TENSORS, given)
    except OSError:
        raise
    except Exception as error:  # constructors may raise anything for arbitrary values
        raise ValueError(f"the model in {folder} is damaged: {reason(error)}") from None
    raise ValueError(
        f"the networks of the model in {folder} are code of your own, {foreign}: give the autoencoder, built with "
        "them, as network="
    )


def _load_latent(folder: Path, network: OwnNetwork | None) -> LatentModel:
    """Read a latent model."""
    for part in (FIRST, SECOND):
        if not (folder / part / DESCRIPTION).is_file():
            raise FileNotFoundError(f"no latent model in {folder}: {part}/{DESCRIPTION} is missing")
    stage = _load_stage(folder / FIRST, network if isinstance(network, FirstStage) else None)
    score_model = _load_own(folder / SECOND, None if isinstance(network, FirstStage) else network)
    try:
        validated(LatentDescription, read_document(folder / DESCRIPTION))
        tensors, _ = read_tensors(folder / TENSORS)
        check_finite(tensors)
        return LatentModel(stage, score_model, shift=tensors["shift"].flatten(), scale=tensors["scale"].flatten())
    except OSError:
        raise
    except (KeyError, ValueError) as error:
        raise ValueError(f"the model in {folder} is damaged: {reason(error)}") from None


def _load_own(folder: Path, network: OwnNetwork | None) -> ScoreModel:
    for name in (DESCRIPTION, TENSORS):
        if not (folder / name).is_file():
            there = f"{name} is missing" if folder.is_dir() else "there is no such folder"
            raise FileNotFoundError(f"no model in {folder}: {there}")
    named = "?"
    try:
        description = _description(folder)
        named = description.network.name
        if not is_import_path(named) and network is None:
            return _rebuild(description, folder / TENSORS, SAVED_NETWORKS)
        if is_import_path(named) and network is not None:
            return _rebuild(description, folder / TENSORS, {named: network})
    except OSError:
        raise
    except Exception as error:  # constructors may raise anything for arbitrary values
        other = "" if network is None else " or of another network than the one given"
        raise ValueError(f"the model in {folder} is damaged{other}: {reason(error)}") from None
    if network is None:
        raise ValueError(needs_network(f"the model in {folder}", named))
    raise ValueError(f"the network in {folder} is the library's {named!r}: network= is for networks of your own")


def _description(folder: Path) -> Description:
    return validated(Description, read_document(folder / DESCRIPTION))


def read_info(folder: Path) -> DataInfo | None:
    """Return the description of the data of the model in a folder, if there is one.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if its description is damaged; in one line.
    """
    kind = _kind(folder)
    try:
        if kind == "latent":
            return read_info(folder / FIRST)
        data = _description(folder).data if kind is None else stage_data(read_document(folder / DESCRIPTION))
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


def _rebuild(description: Description, weights: Path, networks: Mapping[str, OwnNetwork]) -> ScoreModel:
    """Build the model of a description and the file of its tensors."""
    sde, named, levels = typed_parts(description)
    made = networks[named.name]
    data = None if description.data is None else description.data.info()
    if data is not None and "shape" in named.parameters and tuple(named.parameters["shape"]) != data.shape:
        raise ValueError(f"the network is for items {tuple(named.parameters['shape'])}, the data are {data.shape}")
    shapes = read_shapes(weights)
    of_network, of_moments = (subtable(shapes, prefix) for prefix in ("network.", "moments."))
    if len(of_network) + len(of_moments) != len(shapes):
        raise ValueError(f"{weights.name} holds tensors that are neither weights nor moments")
    if isinstance(made, nn.Module):
        network = made
    else:
        network = described(build_for(lambda: made(**named.parameters), of_network), named.parameters)
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
