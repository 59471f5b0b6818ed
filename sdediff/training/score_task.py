"""The training of a score model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sdediff.conditions import Condition
from sdediff.config import Config, build
from sdediff.data import Dataset
from sdediff.data.units import fit_moments
from sdediff.execution import Execution
from sdediff.foreign import OwnNetwork
from sdediff.generation import sample
from sdediff.likelihood import bits_per_dim, log_likelihood
from sdediff.score_model import ScoreModel
from sdediff.training.batches import Batch
from sdediff.training.objective import Objective
from sdediff.training.task import HeldOut, Task


class ScoreTask(Task):
    """A score model, trained on the objective of the configuration.

    Args:
        config: the configuration.
        data: the data.
        network: the network that the configuration names by its import path.
        device: device of the model.
    """

    def __init__(self, config: Config, data: Dataset, network: OwnNetwork | None, device: torch.device | str) -> None:
        settings = config.training
        self.model: ScoreModel = build(config, data.info, fit_moments(data.train, data.info), network=network).to(
            device
        )
        self.objective = Objective(self.model.sde, settings.time_law, config.weighting, settings.objective)
        self.noise_shape, self.told = data.info.shape, self.model.told

    def executed(self, execution: Execution) -> ScoreModel:
        return self.model.with_execution(execution)

    def loss(self, model: ScoreModel, batch: Batch, condition: Condition, step: int | None) -> Tensor:
        return self.objective.loss(model.given(condition), batch.x0, batch.u, batch.eps)

    def sample(self, model: ScoreModel, count: int, seed: int, condition: Condition) -> Tensor:
        assert model.data is not None  # built with them
        return sample(model, (count, *model.data.shape), seed=seed, condition=condition or None)

    def likelihood(self, model: ScoreModel, x: Tensor, seed: int, condition: Condition) -> HeldOut:
        if x.is_floating_point():
            log_prob = log_likelihood(model, x, condition=condition or None, seed=seed).log_prob.double()
            error = float(log_prob.std()) / math.sqrt(len(x)) if len(x) > 1 else math.nan
            return HeldOut("log_likelihood", float(log_prob.mean()), error)
        bits = bits_per_dim(model, x, condition=condition or None, seed=seed)
        return HeldOut("bits_per_dim", bits.mean, bits.mean_standard_error)

    def averaged(self, model: ScoreModel) -> nn.Module:
        return model.network  # type: ignore[return-value]  # a module
