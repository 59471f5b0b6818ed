"""The training of an autoencoder or a VAE."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from sdediff.conditions import Condition
from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.documents import Named
from sdediff.execution import Execution
from sdediff.generation import sample
from sdediff.latent import FirstStage, build_first_stage, make_observation
from sdediff.latent.bound import Bounded
from sdediff.settings import LatentSection
from sdediff.staged import Staged
from sdediff.training.batches import Batch
from sdediff.training.task import HeldOut, Task


class StageTask(Task):
    """An autoencoder or a VAE, trained on the reconstruction and the divergence from the prior.

    Args:
        config: the configuration.
        data: the data.
        given: an autoencoder to be trained further, which is copied; by default one of the library's networks.
        device: device of the model.
    """

    def __init__(self, config: Config, data: Dataset, given: FirstStage | None, device: torch.device | str) -> None:
        self._settings: LatentSection = config.latent
        built = _built(config, data) if given is None else copy.deepcopy(given)
        if built.data._replace(name="") != data.info._replace(name=""):
            raise ValueError(f"the autoencoder is of other data, {built.data}, not {data.info}")
        self.model: FirstStage = built.to(device)
        self.noise_shape = self.model.code_shape
        self._held_out = data.held_out
        self._lawless = not isinstance(self.model, Bounded)
        if self._lawless and config.training.bits_every:
            raise ValueError("an autoencoder has no likelihood: training.bits_every must be 0")

    def executed(self, execution: Execution) -> FirstStage:
        return _plain(self.model, execution)

    def loss(self, model: FirstStage, batch: Batch, condition: Condition, step: int | None) -> Tensor:
        settings, levels = self._settings, model.observation.integers
        observed, values = (batch.items, model.values(batch.items)) if levels else (batch.x0, batch.x0)
        return model.loss(
            observed, values, batch.eps, beta=settings.beta * warmed(settings, step), free_bits=settings.free_bits
        )

    def sample(self, model: FirstStage, count: int, seed: int, condition: Condition) -> Tensor:
        if self._lawless:  # reconstructions, for want of samples
            rows = torch.arange(count) % len(self._held_out)
            return model.from_codes(model.to_codes(self._held_out[rows]))
        return sample(model, (count, *model.data.shape), seed=seed)

    def likelihood(self, model: FirstStage, x: Tensor, seed: int, condition: Condition) -> HeldOut:
        return bounded(model, x, seed)


def warmed(settings: LatentSection, step: int | None) -> float:
    """Return the factor of the divergence's weight at a step of its warm-up; 1 for no step."""
    return 1.0 if step is None or not settings.beta_warmup else min(1.0, step / settings.beta_warmup)


def bounded(model: Staged, x: Tensor, seed: int) -> HeldOut:
    """Return the bound of items: bits/dim of integers, minus nats in the data's units of others."""
    found = model.bound(x, seed=seed)
    name, values = (
        ("bound_bits_per_dim", found.bits_per_dim) if found.discrete else ("log_likelihood_bound", -found.total)
    )
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return HeldOut(name, float(values.mean()), error)


def _built(config: Config, data: Dataset) -> FirstStage:
    """Return the autoencoder that a configuration describes."""
    settings = config.latent
    coder, observation = settings.coder, settings.observation
    name, parameters = (coder, {}) if isinstance(coder, str) else (coder.name, coder.parameters)
    law = (
        make_observation(observation.name, data.info, **observation.parameters)
        if isinstance(observation, Named)
        else observation
    )
    return build_first_stage(
        config.model.kind,
        data.info,
        code=settings.code,
        coder=name,
        observation=law,
        seed=config.training.seed,
        **parameters,
    )


def _plain(model: FirstStage, execution: Execution) -> FirstStage:
    """Return the model, refusing another execution.

    Raises:
        ValueError: naming the settings.
    """
    if execution != Execution():
        raise ValueError("training.precision, compile and channels_last are settings of score models, not autoencoders")
    return model
