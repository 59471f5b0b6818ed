r"""Ancestral sampling of a DDPM chain (Ho et al. 2020, algorithm 2): the bridge with x0 frozen over a step.

The bridge is exact for any two levels, so chains can be strided. Two choices of variance are usual: the
posterior's, right when x0 is known, and the marginal one of the forward step, right when x0 is standard normal. A
network may have learned to choose between them, entry by entry (Nichol & Dhariwal 2021, eq. 15).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.numerics import choose
from sdediff.samplers.base import Noise, StepSampler
from sdediff.samplers.bridge import bridge_std, recombine
from sdediff.types import Level, Split

VARIANCES: dict[str, float | None] = {"posterior": 0.0, "marginal": 1.0, "learned": None}
"""Position of the log-variance between beta-tilde (0, "fixed small") and beta (1, "fixed large"); ``None``: learned."""


@dataclass(frozen=True)
class Ancestral(StepSampler):
    """Ancestral sampling of the DDPM chain, strided where steps are fewer.

    Args:
        variance: ``"posterior"``, ``"marginal"``, or ``"learned"`` for that of the network, between the two.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    needs_short_steps: ClassVar[bool] = True
    grid: ClassVar[str] = "chain"
    steps: ClassVar[int] = 1000

    variance: str = "posterior"

    def __post_init__(self) -> None:
        choose(VARIANCES, self.variance, "variance")

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        """Take a step; one forward.

        Raises:
            ValueError: if the variance is ``"learned"`` and the model has none.
        """
        split, fraction, bridge = denoise(y, here), VARIANCES[self.variance], bridge_std(here, there)
        mean = recombine(split, there, 0.0, noise, mean_std=bridge)
        if bridge == 0.0:  # the last step, to the data, adds no noise
            return mean, carry
        # The bounds are those of this step, however many instants of the chain it spans.
        ratio = here.sin / there.sin
        if fraction is None:
            return mean.addcmul(bridge * ratio ** _learned(split), noise(0)), carry
        return mean.add(noise(0), alpha=bridge * ratio**fraction), carry


def _learned(split: Split) -> Tensor:
    if split.fraction is None:
        fixed = [name for name, fraction in VARIANCES.items() if fraction is not None]
        raise ValueError(f"the model has no learned variance; choose one of: {', '.join(fixed)}")
    return split.fraction
