"""Steps of torchsde with given noise.

torchsde needs increasing time, ``(B, D)`` states and its own Brownian motion. A step is therefore taken on a clock
that runs from 0 to 1, and the Brownian motion is two standard normals: the increment and the space-time Levy area.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sdediff.numerics import flatten

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies read their version in a deprecated way
    import torchsde

SDE_METHODS = {"euler": 1, "milstein": 1, "srk": 2, "heun": 2, "midpoint": 2}
"""Methods and their weak orders for noise that does not depend on the state."""
DRIFT_EVALUATIONS = {"euler": 1, "milstein": 1, "srk": 4, "heun": 2, "midpoint": 2}
"""Methods and their numbers of drift evaluations in a step."""
_STRATONOVICH = {"heun", "midpoint"}  # with such noise Ito's and Stratonovich's equations are the same


class _Step(torch.nn.Module):
    """``dy = f(tau, y) d tau + g(tau) dW`` with diagonal noise, in torchsde's interface."""

    noise_type = "diagonal"

    def __init__(
        self,
        sde_type: str,
        drift: Callable[[float, Tensor], Tensor],
        diffusion: Callable[[float], float],
        shape: torch.Size,
    ) -> None:
        super().__init__()
        self.sde_type, self._drift, self._diffusion, self._shape = sde_type, drift, diffusion, shape
        self._cache: list[tuple[float, Tensor, Tensor]] = []

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        # torchsde evaluates the same stage several times (its contract check, and srk's loops); forwards are expensive
        for clock, state, value in self._cache:
            if state is y and clock == float(tau):
                return value
        value = flatten(self._drift(float(tau), y.reshape(self._shape)))
        self._cache.append((float(tau), y, value))
        return value

    def g(self, tau: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, self._diffusion(float(tau)))


class _UnitBrownian(torchsde.BaseBrownian):  # type: ignore[misc]
    """Brownian motion on [0, 1], evaluated once over the whole interval."""

    levy_area_approximation = "space-time"

    def __init__(self, draw: Callable[[int], Tensor]) -> None:
        super().__init__()
        self._increment = flatten(draw(0))
        self._draw = draw

    def __call__(
        self, ta: Tensor, tb: Tensor | None = None, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not return_U:
            return self._increment
        area = flatten(self._draw(1)) / math.sqrt(12.0)
        return self._increment, 0.5 * self._increment + area

    def __repr__(self) -> str:
        return "_UnitBrownian()"

    @property
    def dtype(self) -> torch.dtype:
        return self._increment.dtype

    @property
    def device(self) -> torch.device:
        return self._increment.device

    @property
    def shape(self) -> torch.Size:
        return self._increment.shape


def step(
    drift: Callable[[float, Tensor], Tensor],
    diffusion: Callable[[float], float],
    y: Tensor,
    draw: Callable[[int], Tensor],
    *,
    method: str,
) -> Tensor:
    """Take one step of ``dy = drift(tau, y) d tau + diffusion(tau) dW`` from ``tau = 0`` to ``1``.

    Args:
        drift: derivative ``(B, *shape)`` at a clock in [0, 1].
        diffusion: coefficient at a clock in [0, 1].
        y: state ``(B, *shape)``.
        draw: standard normals ``(B, *shape)``: the increment for 0, the Levy area for 1.
        method: one of ``SDE_METHODS``.
    """
    problem = _Step("stratonovich" if method in _STRATONOVICH else "ito", drift, diffusion, y.shape)
    ends = torch.tensor([0.0, 1.0], dtype=y.dtype, device=y.device)
    path = torchsde.sdeint(problem, flatten(y), ends, bm=_UnitBrownian(draw), method=method, dt=1.0)
    result: Tensor = path[-1]
    return result.reshape(y.shape)
