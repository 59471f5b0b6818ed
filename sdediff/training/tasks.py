"""The kinds of models that can be trained, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.foreign import OwnNetwork
from sdediff.latent.first_stage import FirstStage
from sdediff.training.latent_task import LatentTask
from sdediff.training.score_task import ScoreTask
from sdediff.training.stage_task import StageTask
from sdediff.training.task import Task


def _latent(
    config: Config,
    data: Dataset,
    network: OwnNetwork | None,
    first_stage: FirstStage | None,
    device: torch.device | str,
) -> Task:
    if first_stage is None:
        raise ValueError("a latent model is trained on the codes of an autoencoder, which is not given")
    return LatentTask(config, data, first_stage, network, device)


TASKS: dict[str, Callable[..., Task]] = {
    "score": lambda config, data, network, _, device: ScoreTask(config, data, network, device),
    "ae": lambda config, data, _, given, device: StageTask(config, data, given, device),
    "vae": lambda config, data, _, given, device: StageTask(config, data, given, device),
    "latent": _latent,
}
"""Makers of a task, ``(config, data, network, first_stage, device)``, by the kind of model."""


def make_task(
    config: Config,
    data: Dataset,
    device: torch.device | str,
    *,
    network: OwnNetwork | None = None,
    first_stage: FirstStage | None = None,
) -> Task:
    """Return what a configuration trains on data.

    Args:
        config: the configuration.
        data: the data.
        device: device of the model.
        network: the score model's network that the configuration names by its import path.
        first_stage: the autoencoder of a latent model, or one to be trained further.

    Raises:
        ValueError: if they do not fit each other.
    """
    return TASKS[config.model.kind](config, data, network, first_stage, device)
