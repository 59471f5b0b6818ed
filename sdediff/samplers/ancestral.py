r"""Ancestral sampling of a DDPM chain (Ho et al. 2020, algorithm 2): the bridge with x0 frozen over a step.

The bridge is exact for any two levels, so strided chains come free. Two choices of variance are usual: the
posterior's, right when x0 is known, and the marginal one of the forward step, right when x0 is standard normal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.numerics import choose
from sdediff.samplers.base import Draw, StepSampler, bridge_std, recombine
from sdediff.types import Level


def _transition_std(here: Level[float], there: Level[float]) -> float:
    """Standard deviation of the forward step from ``there`` to ``here``; no noise is left to add at the data."""
    return bridge_std(here, there) / there.sin * here.sin if there.sin > 0.0 else 0.0


VARIANCES: dict[str, Callable[[Level[float], Level[float]], float]] = {
    "posterior": bridge_std,
    "marginal": _transition_std,
}
"""Standard deviation of a step's noise: beta-tilde ("fixed small") and beta ("fixed large")."""


@dataclass(frozen=True)
class Ancestral(StepSampler):
    """Ancestral sampling of the DDPM chain, strided where steps are fewer.

    Args:
        variance: ``"posterior"`` or ``"marginal"``.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    grid: ClassVar[str] = "chain"
    steps: ClassVar[int] = 1000

    variance: str = "posterior"

    def __post_init__(self) -> None:
        choose(VARIANCES, self.variance, "variance")

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Draw, carry: Any
    ) -> tuple[Tensor, Any]:
        """One forward."""
        std, bridge = VARIANCES[self.variance](here, there), bridge_std(here, there)
        return recombine(denoise(y, here), there, std, noise, mean_std=bridge), carry
