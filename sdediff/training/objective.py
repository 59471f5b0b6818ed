r"""Objectives: denoising score matching, and the bound of a discrete chain.

Every usual loss is ``integral W(lambda) E||eps_hat - eps||^2 d lambda`` over the half log-SNR (Kingma & Gao 2023). The
*weighting* W defines what is minimised; the *time law*, a density over lambda, says where the integral is sampled and
is divided out. ``simple`` under ``instants`` is the loss of Ho et al. (2020, eq. 14 and algorithm 1), under ``uniform``
its continuous limit; ``likelihood`` under ``logsnr`` is the importance-sampled maximum likelihood of Song et al. (2021,
ScoreFlow, eq. 7), under ``velocity`` that of Zheng et al. (2023, i-DODE).

The objectives ``hybrid`` and ``bound`` train a learned variance on the instants of a chain (Nichol & Dhariwal 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.documents import Named, function, instance, typed_entry
from sdediff.instants import position_of
from sdediff.numerics import flatten, to_nearest
from sdediff.sde import SDE
from sdediff.training.time_laws import TIME_LAWS, lambda_speed
from sdediff.training.variational import ChainTerms, without_mean
from sdediff.training.weightings import WEIGHTINGS
from sdediff.types import Level

_LAW_ARGUMENTS, _WEIGHTING_ARGUMENTS = ("sde", "u"), ("sde", "level")
"""Arguments that a configuration cannot set."""


@dataclass(frozen=True)
class Mixture:
    """A sum of two losses: the weighted error of the noise, and a chain's bound in bits a dimension.

    Args:
        denoising: factor of the weighted error.
        bound: factor of the bound; above 0 the model has a learned variance, which the bound trains.
        through_mean: whether the bound trains the mean, too; else its gradient flows through the variance alone.

    Raises:
        ValueError: if a factor is below 0 or not finite, or both are 0.
    """

    denoising: float = 1.0
    bound: float = 0.0
    through_mean: bool = False

    def __post_init__(self) -> None:
        if not (min(self.denoising, self.bound) >= 0.0 < self.denoising + self.bound < math.inf):
            raise ValueError(
                f"the factors of an objective are at least 0 and not both 0, not {self.denoising} and {self.bound}"
            )

    @property
    def learned_variance(self) -> bool:
        """Tell whether the model has a learned variance."""
        return self.bound > 0.0


OBJECTIVES: dict[str, Mixture] = {
    "denoising": Mixture(),
    "hybrid": Mixture(bound=0.001),  # L_simple + lambda L_vlb, Nichol & Dhariwal 2021, eq. 16
    "bound": Mixture(denoising=0.0, bound=1.0, through_mean=True),  # L_vlb alone, section 3.3
}


def typed_objective(
    time_law: str | Named, weighting: str | Named, objective: str | Named = "denoising"
) -> dict[str, str | Named]:
    """Return the settings ``time_law``, ``weighting`` and ``objective`` with parameters of the types that they take.

    Raises:
        ValueError: for a name that is not in its table, or parameters that its entry does not take.
    """
    return {
        "time_law": typed_entry(TIME_LAWS, time_law, "training.time_law", "time law", given=_LAW_ARGUMENTS),
        "weighting": weighting
        if weighting == "auto"
        else typed_entry(WEIGHTINGS, weighting, "training.weighting", "weighting", given=_WEIGHTING_ARGUMENTS),
        "objective": typed_entry(OBJECTIVES, objective, "training.objective", "objective"),
    }


def learns_variance(objective: str | Named) -> bool:
    """Return whether an objective trains a learned variance, which the network is then built with."""
    return instance(OBJECTIVES, objective, "objective").learned_variance


class Objective:
    """A time law, a weighting and a mixture of losses for one process.

    Args:
        sde: the forward process.
        time_law: a name of ``TIME_LAWS``, or a name and parameters.
        weighting: a name of ``WEIGHTINGS``, or a name and parameters; the weights of the error of the noise.
        objective: a name of ``OBJECTIVES``, or a name and parameters.

    Attributes:
        mean_weight: factor by which the losses are divided. Times it, the loss under the weighting ``likelihood`` is a
            bound in nats an entry, up to constants.

    Raises:
        ValueError: for a name that is not in its table, or parameters that its entry does not take; for the bound of a
            process that is no chain, or a time law that is not on its instants.

    >>> objective = sdediff.training.Objective(sdediff.DDPM.linear(4), "instants", "simple")
    >>> objective.levels(torch.tensor([0.0, 0.3, 0.6, 0.9]))[0].t
    tensor([0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        sde: SDE,
        time_law: str | Named = "logsnr",
        weighting: str | Named = "likelihood",
        objective: str | Named = "denoising",
    ) -> None:
        self.sde = sde
        self.mixture = instance(OBJECTIVES, objective, "objective")
        self._law = function(TIME_LAWS, time_law, "time law", given=_LAW_ARGUMENTS)
        self._weighting = function(WEIGHTINGS, weighting, "weighting", given=_WEIGHTING_ARGUMENTS)
        self._terms = ChainTerms(sde) if self.mixture.bound > 0.0 else None
        # Weights of the velocity's error, ``||eps_hat - eps||^2 / cos^2``, have mean one: the loss is a weighted mean
        # of errors of order one, so its size, and the bound on the gradient, are comparable for all weightings.
        level, density = self._drawn((torch.arange(4096, dtype=torch.float64) + 0.5) / 4096)
        weights = self._weighting(sde, level) / density
        self.mean_weight = float((weights * torch.as_tensor(level.cos).square()).mean())
        if self._terms is not None:
            _check_instants(sde, level, time_law)

    def _drawn(self, u: Tensor) -> tuple[Level, Tensor]:
        """Return the levels of uniform numbers and their density."""
        t, density = self._law(self.sde, u.double().cpu())
        return self.sde.level(t), density

    def levels(self, u: Tensor) -> tuple[Level, Tensor]:
        """Return the levels for uniform numbers ``u`` ``(B,)`` and the weights of the errors of the noise."""
        level, density = self._drawn(u)
        return level, self._weighting(self.sde, level) / density / self.mean_weight

    def loss(self, model: Denoiser, x0: Tensor, u: Tensor, eps: Tensor) -> Tensor:
        """Return the weighted loss of each item.

        Args:
            model: the denoiser.
            x0: clean states ``(B, *shape)``.
            u: uniform numbers in [0, 1) ``(B,)``, from which the noise levels follow.
            eps: standard normals of the shape of ``x0``.

        Returns:
            Weight times the mean square error of the predicted noise, ``(B,)``; with the bound, its term of each item's
            instant in bits a dimension over the probability of that instant, on the same scale.

        Raises:
            ValueError: for the bound of a model without a learned variance.
        """
        level, weights = self.levels(u)
        split = model(level.perturb(x0, eps), level)
        loss = x0.new_zeros(len(x0))
        if self.mixture.denoising > 0.0:
            error = flatten(split.eps - eps).square().mean(dim=1)
            loss = self.mixture.denoising * weights.to(error) * error
        if self._terms is None:
            return loss
        _, density = self._drawn(u)
        speed = lambda_speed(self.sde, torch.as_tensor(level.t))
        likely = density * speed / self._terms.count  # the probability of the instant
        scale = self.mixture.bound / (self.mean_weight if self.mixture.denoising > 0.0 else 1.0)
        terms = self._terms.cost(split if self.mixture.through_mean else without_mean(split), x0, eps, level)
        result: Tensor = loss + (terms * (scale / likely).to(terms)).to(loss)
        return result


def _check_instants(sde: SDE, level: Level, time_law: Any) -> None:
    """Refuse a law of other times than the instants of a chain."""
    position = position_of(sde, level)
    if bool((position != to_nearest(position)).any()):
        raise ValueError(
            "the bound of a chain is of its instants: training.time_law must be instants or important-instants, not "
            f"{time_law if isinstance(time_law, str) else time_law.name}"
        )
