r"""DDIM (Song, Meng & Ermon 2021, eq. 12 and 16): ``y_s = cos x0 + sqrt(sin^2 - std^2) eps + std z``.

``std`` is ``eta`` times the bridge's. ``eta = 0`` is deterministic, an exponential Euler step of the
probability-flow ODE; ``eta = 1`` is ancestral sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.samplers.base import Noise, StepSampler
from sdediff.samplers.bridge import bridge_std, recombine
from sdediff.types import Level


def check_eta(eta: float) -> None:
    """Refuse an eta outside [0, 1]."""
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], not {eta}")


@dataclass(frozen=True)
class DDIM(StepSampler):
    """DDIM: from exponential Euler on the ODE (eta = 0) to ancestral sampling (eta = 1).

    Args:
        eta: share of the bridge's noise, in [0, 1].
    """

    order: ClassVar[int] = 1
    needs_short_steps: ClassVar[bool] = True
    steps: ClassVar[int] = 50

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        """Take a step; one forward."""
        std = self.eta * bridge_std(here, there) if self.eta > 0.0 else 0.0
        return recombine(denoise(y, here), there, std, noise), carry
