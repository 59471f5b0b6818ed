"""Latent models: score models of the codes of an autoencoder (Rombach et al. 2022; Vahdat et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdediff.latent.bound import Bounded
from sdediff.latent.code_laws import CodeDensity, CodeLaw
from sdediff.latent.first_stage import FirstStage
from sdediff.likelihood import elbo as elbo_of_codes
from sdediff.likelihood import log_likelihood
from sdediff.likelihood.flow.hutchinson import EXACT_UP_TO
from sdediff.numerics import choose
from sdediff.score_model import ScoreModel


class LatentModel(Bounded):
    """A score model of the codes of an autoencoder.

    The score model works on ``(z - shift) / scale``, in which the codes have about mean 0 and deviation 1; see
    :func:`measure_scale`.

    Args:
        first_stage: the autoencoder, a :class:`~sdediff.latent.VAE` for a bound on the data's likelihood.
        score_model: the score model of the codes; its ``data`` are of their shape, continuous and without units.
        shift: shift of the codes, a number or one for each channel ``(C,)``.
        scale: scale of the codes, likewise, above 0.

    Raises:
        ValueError: if the score model is not of the codes, or shift and scale do not fit.

    >>> info = sdediff.DataInfo((6,))
    >>> vae = sdediff.latent.VAE(torch.nn.Linear(6, 4), torch.nn.Linear(2, 6), data=info)
    >>> prior = sdediff.analytic.Gaussian([0.0, 0.0], 1.0).model(sdediff.VPSDE())
    >>> model = sdediff.latent.LatentModel(vae, prior)
    >>> sdediff.sample(model, (5, 6), steps=5).shape
    torch.Size([5, 6])
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        first_stage: FirstStage,
        score_model: ScoreModel,
        *,
        shift: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
    ) -> None:
        super().__init__()
        self.first_stage, self.score_model, self.data = first_stage, score_model, first_stage.data
        code = first_stage.code_shape
        info = score_model.data
        if info is None or tuple(info.shape) != code or info.levels is not None or info.shift or info.scale:
            came = "unknown data" if info is None else f"{info}"
            raise ValueError(f"the score model must be of continuous codes {code} without units, not of {came}")
        for name, value in (("shift", shift), ("scale", scale)):
            numbers = torch.as_tensor(value, dtype=torch.float64)
            if numbers.ndim > 1 or numbers.numel() not in (1, code[0]) or not bool(torch.isfinite(numbers).all()):
                raise ValueError(f"the {name} is one number or {code[0]}, one a channel of the codes, not {value}")
            numbers = numbers.expand(code[0]).reshape(-1, *(1,) * (len(code) - 1)).clone()
            self.register_buffer(name, numbers.to(first_stage.dtype))
        if not bool((self.scale > 0.0).all()):
            raise ValueError("the scale of the codes must be above 0")

    @property
    def prior(self) -> ScoreModel:
        """The law of the codes, in its coordinates ``(z - shift) / scale``."""
        return self.score_model

    def standardised(self, codes: Tensor) -> Tensor:
        """Return codes of the autoencoder in the coordinates of the score model."""
        return (codes - self.shift.to(codes)) / self.scale.to(codes)

    def to_codes(self, x: Tensor) -> Tensor:
        """Return the codes of data, the means of their posteriors, in the coordinates of the score model."""
        return self.standardised(self.first_stage.to_codes(x))

    def from_codes(self, z: Tensor) -> Tensor:
        """Return the means of the data, in their units, of codes in the coordinates of the score model."""
        return self.first_stage.from_codes(self.shift.to(z) + self.scale.to(z) * z)

    def parts(self, *, density: str = "flow", **options: Any) -> tuple[FirstStage, CodeLaw]:
        """Return the first stage and the law of its codes in a bound.

        Args:
            density: ``"flow"`` for the density by the probability-flow ODE, :func:`~sdediff.log_likelihood`, or
                ``"continuous"`` for the continuous variational bound, :func:`~sdediff.elbo` with ``steps=math.inf``.
            **options: options of that function.
        """
        self.first_stage.prior  # noqa: B018 - refuses an autoencoder without a law of its codes
        law = choose(DENSITIES, density, "density")
        return self.first_stage, law(self, options)


@dataclass(frozen=True)
class _ScoreLaw(CodeLaw):
    """The law of codes by a score model; options are those of the function that evaluates it."""

    model: LatentModel
    options: dict[str, Any]

    def log_prob(self, z: Tensor, seed: int, first: int, draw: int) -> CodeDensity:
        found = self._evaluate(self.model.standardised(z), seed, first, draw)
        entries = math.prod(self.model.code_shape[1:])
        return found._replace(log_prob=found.log_prob - entries * float(self.model.scale.double().log().sum()))

    def _evaluate(self, z: Tensor, seed: int, first: int, draw: int) -> CodeDensity:
        raise NotImplementedError


class _FlowLaw(_ScoreLaw):
    """The density by the probability-flow ODE."""

    @property
    def exact(self) -> bool:  # type: ignore[override]  # a constant of other laws
        """Tell whether the divergence is exact, without random probes."""
        trace = self.options.get("trace", "auto")
        return trace == "exact" or (trace == "auto" and math.prod(self.model.code_shape) <= EXACT_UP_TO)

    def _evaluate(self, z: Tensor, seed: int, first: int, draw: int) -> CodeDensity:
        found = log_likelihood(self.model.prior, z, seed=seed, first=first, draw=draw, **self.options)
        return CodeDensity(found.log_prob, found.standard_error, found.error_budget.systematic, found.nfe)


class _ContinuousLaw(_ScoreLaw):
    """The continuous variational bound of the score model."""

    exact = False

    def _evaluate(self, z: Tensor, seed: int, first: int, draw: int) -> CodeDensity:
        # One seed a draw: the bound's draws of an item are functions of the seed and the item alone.
        found = elbo_of_codes(self.model.prior, z, steps=math.inf, seed=seed + draw, first=first, **self.options)
        return CodeDensity(-found.total, found.standard_error, {}, found.nfe)


DENSITIES: dict[str, type[_ScoreLaw]] = {"flow": _FlowLaw, "continuous": _ContinuousLaw}
"""Densities of codes under a score model."""


def measure_scale(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and scale of codes, float64 ``(C,)`` each: mean and deviation of each channel over all items.

    Args:
        codes: codes of many items, ``(n, C, ...)``, drawn from their posteriors.

    Raises:
        ValueError: for a channel that is constant.

    >>> shift, scale = sdediff.latent.measure_scale(torch.tensor([[1.0], [3.0]]))
    >>> float(shift), float(scale)
    (2.0, 1.0)
    """
    flat = codes.double().movedim(1, 0).flatten(1)
    scale = flat.std(dim=1, correction=0)
    if not bool((scale > 0.0).all()):
        raise ValueError(f"channel {int(scale.argmin())} of the codes is constant: nothing can be learned of it")
    return flat.mean(dim=1), scale
