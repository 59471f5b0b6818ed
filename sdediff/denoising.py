r"""The denoising loss of a model, for a training loop of one's own.

With a clean item x0, a level and noise eps, the network sees ``x = alpha x0 + sigma eps``; the loss is the error of
what it predicts. In terms of the velocity ``v = cos eps - sin x0`` (Salimans & Ho 2022) and the prediction's gain g,

    E ||v_hat - v||^2 / (D g^2) = E ||eps_hat - eps||^2 / (D cos^2 g^2),    t uniform in [t_min, t_max]:

the error of eps for networks of epsilon (L_simple) and of the score, of x0, v, the flow or EDM's F for networks of
those. The velocity's error of a network of epsilon would be all at the noisy end, where ``cos`` is 1e-4 or less.
For networks of v this is the default objective of :func:`sdediff.train`; others are made of the tables of
:mod:`sdediff.training.objective`.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from sdediff.conditions import ConditionLike
from sdediff.data.levels import to_values
from sdediff.data.units import to_model
from sdediff.noise import NoiseSource, Stage, stratified
from sdediff.numerics import expand, flatten
from sdediff.parametrization import Prediction
from sdediff.sde import SDE
from sdediff.types import DataInfo, Level, Split

Loss = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""``(model, x0, u, eps)`` to the loss of each item, ``(B,)``."""


def output_loss(model: Learner, x0: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    """Return the mean square error of what the network predicts of each item.

    Args:
        model: the denoiser.
        x0: clean states ``(B, *shape)`` in the model's coordinates.
        u: uniform numbers in [0, 1), float64 ``(B,)``: the times, from ``t_min`` to ``t_max``.
        eps: standard normals of the shape of ``x0``.
    """
    sde = model.sde
    level = sde.level(sde.t_min + (sde.t_max - sde.t_min) * u)
    cos, sin = torch.as_tensor(level.cos), torch.as_tensor(level.sin)
    gain = torch.from_numpy(model.prediction.gain(torch.atan2(sin, cos).cpu().numpy()))
    error = (model(level.perturb(x0, eps), level).eps - eps) / expand(cos * gain.to(cos.device), eps)
    return flatten(error).square().mean(dim=1)


class Learner(ABC):
    """Denoiser of a process that can be trained."""

    sde: SDE
    data: DataInfo | None
    prediction: Prediction

    @property
    @abstractmethod
    def state_dtype(self) -> torch.dtype:
        """The dtype of states."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the network."""

    @abstractmethod
    def given(self, condition: ConditionLike) -> Any:
        """Return the denoiser under a condition."""

    @abstractmethod
    def __call__(self, x: Tensor, level: Level) -> Split:
        """Split the state at a level."""

    def loss(
        self: Self,
        x0: Tensor,
        condition: ConditionLike = None,
        *,
        seed: int | None = None,
        step: int = 0,
        objective: Loss = output_loss,
    ) -> Tensor:
        """Return the denoising loss of each item, at random noise levels, one a stratum, and with random noise.

        Args:
            x0: items ``(B, *shape)`` in the units of the data; integers are levels, which are dequantised.
            condition: condition of the items: a tensor, tuple or dict of tensors, one row an item or one for all.
            seed: seed of all draws, which are functions of ``(seed, step)``; a fresh one from the operating system by
                default. Torch's global generator is not touched.
            step: number of the training step.
            objective: function ``(model, x0, u, eps)`` to the losses: the error of what the network predicts by
                default (L_simple for epsilon), or ``Objective(model.sde, time_law, weighting).loss`` of
                :mod:`sdediff.training`.

        Returns:
            Losses ``(B,)``, of order one for data of unit size and a network that knows nothing.

        Raises:
            ValueError: for integers that are no levels of the model's data, or a condition that does not fit.
        """
        seed = secrets.randbits(63) if seed is None else seed
        x0, shape = x0.to(self.device), tuple(x0.shape)

        source = NoiseSource(seed, shape, dtype=self.state_dtype, device=self.device)
        if x0.is_floating_point():
            values = to_model(x0.to(self.state_dtype), self.data)
        else:
            if self.data is None:
                raise ValueError("integers are levels of the data, which the model does not know: give it data=")
            values = to_values(x0, self.data, source.uniform(step, Stage.LOSS + 2))
        u = stratified(seed, len(x0), step, Stage.LOSS + 1)
        return objective(self.given(condition), values, u, source.normal(step, Stage.LOSS))
