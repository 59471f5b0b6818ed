"""Folders of diffusers: ``unet/`` and ``scheduler/`` as its pipelines save them, or a model with its scheduler beside.

Reading opens local files alone, weights as safetensors alone.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sdediff.conditioning import CONDITIONINGS, chain_steps
from sdediff.denoiser import ScoreModel
from sdediff.interop.network import DiffusersNetwork, diffusers, diffusers_class
from sdediff.interop.schedulers import PREDICTIONS as KNOWN
from sdediff.interop.schedulers import VARIANCES, chain, make, prediction
from sdediff.numerics import choose
from sdediff.predictions import PREDICTIONS
from sdediff.types import DataInfo

CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", "model_index.json"
PARTS = ("unet", "scheduler", INDEX)
"""What is written."""
PIPELINES = {"DDIMScheduler": "DDIMPipeline"}
"""The pipeline that goes with a scheduler, where it is not DDPM's, which takes any."""
_SPATIAL = {"UNet1DModel": 1}
"""Dimensions of an item beside its channels, where they are not the two of an image."""


def find_model(folder: Path) -> Path | None:
    """The folder of the network in a folder of diffusers, ``None`` if it is none."""
    for place in (folder / "unet", folder):
        if (place / CONFIG).is_file() and "_class_name" in _read(place / CONFIG):
            return place
    return None


def load_folder(folder: Path, *, data: DataInfo | None = None, conditioning: str | None = None) -> ScoreModel:
    """The model of a folder, bare: without the clipping that the scheduler may ask for.

    Args:
        folder: what diffusers saved.
        data: what the data are; by default of the network's shape with 256 levels on [-1, 1], of a pipeline with an
            autoencoder continuous.
        conditioning: see :class:`~sdediff.denoiser.ScoreModel`; by default ``"label"``, for a network with a table of
            embeddings ``"interpolated"``.

    Raises:
        FileNotFoundError: if there is no network or no scheduler.
        ValueError: if diffusers is not installed, the weights are pickled or do not fit, or the network or the
            scheduler is of a kind that has no place here.
    """
    place = find_model(folder)
    if place is None:
        raise FileNotFoundError(f"no model of diffusers in {folder}: neither unet/{CONFIG} nor {CONFIG} is there")
    config = _scheduler_config(folder, place)
    inner = _read_network(place)
    shape = _item_shape(inner.config, type(inner).__name__, place) if data is None else data.shape
    found, twice = inner.config["out_channels"], bool(inner.config["out_channels"] == 2 * shape[0])
    variance = str(config.get("variance_type") or "fixed_small")
    learned = choose(VARIANCES, variance, "variance_type") == "learned" and twice
    if found != shape[0] and not (twice and variance.startswith("learned")):
        raise ValueError(f"the network in {place} returns {found} channels for {shape[0]} (variance_type {variance})")
    network = DiffusersNetwork.of(inner, config, shape[0] if twice and not learned else None)
    levels = None if any((folder / name).is_dir() for name in ("vae", "vqvae")) else 256
    return ScoreModel(
        network,
        chain(config),
        prediction(config),
        conditioning=("interpolated" if network.table else "label") if conditioning is None else conditioning,
        data=DataInfo(shape, levels, name=folder.resolve().name) if data is None else data,
        learned_variance=learned,
    )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if the file holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return content


def _scheduler_config(folder: Path, place: Path) -> dict[str, Any]:
    places = (folder / "scheduler", folder, place.parent / "scheduler")
    for found in places:
        if (found / SCHEDULER).is_file():
            return _read(found / SCHEDULER)
    raise FileNotFoundError(
        f"no scheduler in {folder}: neither scheduler/{SCHEDULER} nor {SCHEDULER}; it says on which chain the network "
        "was trained"
    )


def _read_network(place: Path) -> Any:
    """The network of a folder, strictly: every weight is there and has its place."""
    kind = diffusers_class(_read(place / CONFIG)["_class_name"], "model")
    if not any(place.glob("*.safetensors")):
        pickles = [path.name for path in sorted(place.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        if pickles:
            raise ValueError(
                f"{place / pickles[0]} is a pickle, which could execute anything: only safetensors are read "
                "(diffusers' own save_pretrained writes them)"
            )
        raise FileNotFoundError(f"no weights in {place}: no *.safetensors")
    try:
        inner, said = kind.from_pretrained(
            place, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise ValueError(f"the network in {place} is damaged: {' '.join(str(error).split())[:300]}") from None
    wrong = {
        what: names for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if (names := said.get(what))
    }
    for what, names in wrong.items():
        raise ValueError(f"the weights in {place} do not fit its {CONFIG}: {what.replace('_', ' ')}: {names[:3]}")
    return inner


def _item_shape(config: Mapping[str, Any], name: str, place: Path) -> tuple[int, ...]:
    size = config.get("sample_size")
    if size is None:
        raise ValueError(f"the network in {place} does not say its sample_size: give data=DataInfo(shape=...)")
    sides = (size,) * _SPATIAL.get(name, 2) if isinstance(size, int) else tuple(size)
    return (config["in_channels"], *sides)


def export(model: ScoreModel, folder: str | Path, *, force: bool = False) -> None:
    """Write a folder that diffusers reads as a pipeline and samples as we do.

    Args:
        model: on a DDPM chain, its network one of diffusers.
        folder: where to; it appears whole or not at all.
        force: replace the model that is there.

    Raises:
        FileExistsError: if the folder exists and ``force`` is not set, or holds anything but such a model.
        ValueError: if diffusers cannot say what the model is.
    """
    folder = Path(folder)
    network = model.network
    if not isinstance(network, DiffusersNetwork):
        raise ValueError(
            "only models whose network is a class of diffusers can be exported (read by sdediff.load, or "
            f"DiffusersNetwork.of(...)), not {type(network).__name__}"
        )
    if not CONDITIONINGS[model.conditioning].labels:
        raise ValueError(
            "diffusers counts the timesteps of a chain: only a DDPM asked by label can be exported, not "
            f"{type(model.sde).__name__} asked by {model.conditioning}"
        )
    _check_free(folder, force)
    scheduler = make(_config_for(model, network))
    index = {
        "_class_name": PIPELINES.get(type(scheduler).__name__, "DDPMPipeline"),
        "_diffusers_version": diffusers().__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(network.inner).__name__],
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        network.inner.save_pretrained(made / "unet", safe_serialization=True)  # type: ignore[operator]
        scheduler.save_pretrained(made / "scheduler")
        (made / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        made.chmod(0o755)
        _move(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _check_free(folder: Path, force: bool) -> None:
    """Refuse to replace anything unasked, and anything but an exported model at all."""
    if not folder.exists():
        return
    if not force:
        raise FileExistsError(f"{folder} exists; force replaces it")
    others = [path.name for path in folder.iterdir() if path.name not in PARTS] if folder.is_dir() else [folder.name]
    if others:
        raise FileExistsError(f"{folder} holds more than a model of diffusers ({others[0]}): choose another folder")


def _move(made: Path, folder: Path) -> None:
    """Put a finished folder in its place; what was there goes after, not before."""
    if not folder.exists():
        made.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    folder.rename(aside / "old")
    try:
        made.rename(folder)
    except OSError:
        (aside / "old").rename(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _config_for(model: ScoreModel, network: DiffusersNetwork) -> Mapping[str, Any]:
    """The scheduler's configuration that the network came with while it still fits, else one made of the betas."""
    own: Mapping[str, Any] | None = network.config["scheduler"]  # type: ignore[assignment]
    steps = chain_steps(model.sde)
    instants = torch.arange(steps + 1, dtype=torch.float64) / steps
    name = next((key for key in KNOWN if PREDICTIONS[key] is model.prediction), None)
    if name is None:
        raise ValueError(f"diffusers knows the predictions {', '.join(KNOWN)}, not {type(model.prediction).__name__}")
    if own is not None and chain(own) == model.sde and prediction(own) == name:
        return own
    _, std = model.sde.transition(torch.zeros(len(instants) - 1), instants[:-1], instants[1:])
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": steps,
        "trained_betas": std.square().tolist(),
        "prediction_type": name,
        "variance_type": "learned_range" if model.learned_variance else "fixed_small",
        "clip_sample": False,
    }
