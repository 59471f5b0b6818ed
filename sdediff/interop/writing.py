"""Export to folders of diffusers: ``unet/`` and ``scheduler/`` with the index of a pipeline."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdediff.conditioning import CONDITIONINGS
from sdediff.instants import chain_steps
from sdediff.interop.autoencoder import DiffusersEncoder
from sdediff.interop.folder import INDEX_FILE
from sdediff.interop.network import DiffusersNetwork, diffusers
from sdediff.interop.schedulers import PREDICTION_TYPES, build_scheduler, chain_of, prediction_of
from sdediff.latent import LatentModel
from sdediff.parametrization import PREDICTIONS
from sdediff.score_model import ScoreModel

LATENT_PART = "vqvae"
"""Folder of the autoencoder of a latent pipeline, of whatever kind."""
PARTS = ("unet", "scheduler", LATENT_PART, INDEX_FILE)
"""Entries of an exported folder."""
PIPELINES = {"DDIMScheduler": "DDIMPipeline"}
"""Pipelines by scheduler; the others use DDPM's, which takes any scheduler."""


def export(model: ScoreModel | LatentModel, folder: str | Path, *, force: bool = False) -> None:
    """Write a folder that diffusers reads as a pipeline with the same samples.

    Args:
        model: model on a DDPM chain whose network is one of diffusers, or a latent model whose autoencoder is one too.
        folder: the folder, which is created in one step.
        force: replace the model in the folder.

    Raises:
        FileExistsError: if the folder exists and ``force`` is not set, or holds anything but such a model.
        ValueError: if diffusers cannot represent the model.
    """
    folder, whole = Path(folder), model
    coder = _autoencoder(whole) if isinstance(whole, LatentModel) else None
    model = whole.score_model if isinstance(whole, LatentModel) else whole
    network = model.network
    if not isinstance(network, DiffusersNetwork):
        raise ValueError(
            "only models whose network is a class of diffusers can be exported (read by sdediff.load, or "
            f"DiffusersNetwork.of(...)), not {type(network).__name__}"
        )
    if not (model.interface.labels and model.interface in CONDITIONINGS.values()):
        raise ValueError(
            "diffusers counts the timesteps of a chain from 0: only a DDPM asked by label can be exported, not "
            f"{type(model.sde).__name__} asked by {model.conditioning}"
        )
    _check_free(folder, force)
    scheduler = build_scheduler(_config_for(model, network))
    index = {
        "_class_name": PIPELINES.get(type(scheduler).__name__, "DDPMPipeline"),
        "_diffusers_version": diffusers().__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(network.inner).__name__],
    }
    if coder is not None:
        index |= {"_class_name": "LDMPipeline", LATENT_PART: ["diffusers", type(coder).__name__]}
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        network.inner.save_pretrained(made / "unet", safe_serialization=True)  # type: ignore[operator]
        scheduler.save_pretrained(made / "scheduler")
        if coder is not None:
            coder.save_pretrained(made / LATENT_PART, safe_serialization=True)
        (made / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        made.chmod(0o755)
        _move(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _autoencoder(model: LatentModel) -> Any:
    """Return the autoencoder of diffusers inside a latent model.

    Raises:
        ValueError: if it is another one, or its codes are scaled otherwise than it says.
    """
    encoder = model.first_stage.encoder
    if not isinstance(encoder, DiffusersEncoder):
        raise ValueError(f"only autoencoders of diffusers can be exported, not {type(encoder).__name__}")
    inner: Any = encoder.inner
    shift, scale = inner.config.get("shift_factor") or 0.0, 1.0 / inner.config.scaling_factor
    if not (bool((model.shift == shift).all()) and torch.allclose(model.scale, torch.full_like(model.scale, scale))):
        raise ValueError("diffusers has one scale for all channels of the codes, which is not this model's")
    return inner


def _check_free(folder: Path, force: bool) -> None:
    """Refuse to replace a folder without ``force``, and anything but an exported model."""
    if not folder.exists():
        return
    if not force:
        raise FileExistsError(f"{folder} exists; force replaces it")
    others = [path.name for path in folder.iterdir() if path.name not in PARTS] if folder.is_dir() else [folder.name]
    if others:
        raise FileExistsError(f"{folder} holds more than a model of diffusers ({others[0]}): choose another folder")


def _move(made: Path, folder: Path) -> None:
    """Move a finished folder into its place; the previous one is removed afterwards, not before."""
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
    """Return the configuration of the network's own scheduler if it fits the model, else one made of the betas."""
    own: Mapping[str, Any] | None = network.config["scheduler"]  # type: ignore[assignment]
    steps = chain_steps(model.sde)
    instants = torch.arange(steps + 1, dtype=torch.float64) / steps
    name = next((key for key in PREDICTION_TYPES if PREDICTIONS[key] is model.prediction), None)
    if name is None:
        raise ValueError(
            f"diffusers knows the predictions {', '.join(PREDICTION_TYPES)}, not {type(model.prediction).__name__}"
        )
    if own is not None and chain_of(own) == model.sde and prediction_of(own) == name:
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
