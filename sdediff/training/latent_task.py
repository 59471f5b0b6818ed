r"""The training of a latent model: a score model on the codes of an autoencoder.

The autoencoder is frozen, or trained further with the score model on their common bound (Vahdat et al. 2021, eq. 8),

    E_q[-log p(x | z)] - H(q(z | x)) + CE(q(z | x), p(z)),

where the cross-entropy is, up to constants, the integral of the denoising error over the half log-SNR (their theorem
1), which needs the likelihood weighting.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sdediff.conditions import Condition
from sdediff.config import Config, build
from sdediff.data import Dataset
from sdediff.execution import Execution
from sdediff.foreign import OwnNetwork, evaluating, twin_of
from sdediff.gaussian import Moments
from sdediff.generation import sample
from sdediff.latent import FirstStage, LatentModel, measure_scale
from sdediff.latent.bound import Bounded
from sdediff.noise import NoiseSource, Stage
from sdediff.numerics import flatten
from sdediff.training.batches import Batch
from sdediff.training.objective import Objective
from sdediff.training.stage_task import bounded
from sdediff.training.task import HeldOut, Task
from sdediff.types import DataInfo

_AT_A_TIME = 512
"""Items that are encoded at a time."""


class LatentTask(Task):
    """A score model on the codes of an autoencoder.

    Args:
        config: the configuration.
        data: the data.
        first_stage: the trained autoencoder, which is copied.
        network: the score model's network that the configuration names by its import path.
        device: device of the model.

    Raises:
        ValueError: for an autoencoder of other data, or joint training of one without a law of its codes.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        first_stage: FirstStage,
        network: OwnNetwork | None,
        device: torch.device | str,
    ) -> None:
        settings = config.training
        if first_stage.data._replace(name="") != data.info._replace(name=""):
            raise ValueError(f"the autoencoder is of other data, {first_stage.data}, not {data.info}")
        self.joint = config.latent.joint
        if self.joint and not isinstance(first_stage, Bounded):
            raise ValueError("latent.joint trains the common bound of both stages, which an autoencoder does not have")
        if self.joint and settings.weighting != "likelihood":
            raise ValueError("latent.joint needs training.weighting = likelihood, that of the bound")
        first_stage = copy.deepcopy(first_stage).to(device).requires_grad_(self.joint)
        codes = draw_codes(first_stage, data.train, settings.seed)
        shift, scale = measure_scale(codes)
        shape = first_stage.code_shape
        columns = [value.reshape(-1, *(1,) * (len(shape) - 1)).to(codes) for value in (shift, scale)]
        moments = Moments.fit((codes - columns[0]) / columns[1])
        score_model = build(config, DataInfo(shape), moments, network=network).to(device)
        self.model: LatentModel = LatentModel(first_stage, score_model, shift=shift, scale=scale).to(device)
        self.objective = Objective(score_model.sde, settings.time_law, config.weighting, settings.objective)
        self.noise_shape = (2, *shape)
        self._bounds = isinstance(first_stage, Bounded)
        if settings.bits_every and not self._bounds:
            raise ValueError("a latent model on an autoencoder has no likelihood: training.bits_every must be 0")

    def executed(self, execution: Execution) -> LatentModel:
        if execution == Execution():
            return self.model
        twin = twin_of(self.model)
        twin.score_model = self.model.score_model.with_execution(execution)
        return twin

    def loss(self, model: LatentModel, batch: Batch, condition: Condition, step: int | None) -> Tensor:
        stage = model.first_stage
        levels = stage.observation.integers
        values = stage.values(batch.items) if levels else batch.x0
        with torch.set_grad_enabled(self.joint and torch.is_grad_enabled()), evaluating(stage, keep_mode=self.joint):
            posterior = stage.posterior(values)
            z = posterior.draw(batch.eps[:, 0])
        denoising = self.objective.loss(model.score_model, model.standardised(z), batch.u, batch.eps[:, 1])
        if not self.joint:
            return denoising
        cost = stage.reconstruction(batch.items if levels else batch.x0, values, z) - posterior.entropy().to(denoising)
        cross_entropy = denoising * (flatten(z).shape[1] * self.objective.mean_weight)
        return (cost + cross_entropy) / flatten(values).shape[1]

    def sample(self, model: LatentModel, count: int, seed: int, condition: Condition) -> Tensor:
        return sample(model, (count, *model.data.shape), seed=seed)

    def likelihood(self, model: LatentModel, x: Tensor, seed: int, condition: Condition) -> HeldOut:
        return bounded(model, x, seed)


@torch.no_grad()
def draw_codes(stage: FirstStage, items: Tensor, seed: int) -> Tensor:
    """Return codes of items ``(n, *shape)``, one draw from each posterior, on the CPU."""
    parts = []
    with evaluating(stage):
        for first in range(0, len(items), _AT_A_TIME):
            x = items[first : first + _AT_A_TIME]
            noise = NoiseSource(seed, (len(x), *stage.code_shape), first=first, dtype=stage.dtype, device=stage.device)
            parts.append(stage.posterior(stage.values(x)).draw(noise.normal(0, Stage.CODES)).cpu())
    return torch.cat(parts)
