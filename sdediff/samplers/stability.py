r"""Stability of a method on the nodes of a solve, by the size to which it takes Gaussian data.

A method whose steps are too long for it (one that extrapolates, is explicit where the equation is stiff, or holds
epsilon while ``sigma / alpha`` falls many times) takes even Gaussian data, wide or narrow, to any size, if not from a
network that is exact then from one with a small error in epsilon, which ``sigma / alpha`` magnifies. Such a solve is
refused. The bound is wide: solves of trained networks and of mixtures that come out within 0.3 of the end of their
flow are not refused, but for one in four hundred; nearly all that are farther off than 2.5 are.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from sdediff.analytic import Gaussian
from sdediff.denoiser import Denoiser
from sdediff.grids import GRIDS
from sdediff.noise import NoiseSource
from sdediff.samplers.base import Sampler
from sdediff.sde import SDE
from sdediff.types import Level
from sdediff.wrappers import Wrapper

_VARIANCES, _MOST = (1.0, 0.01), 1.4
"""Variances of Gaussian data, wide and narrow, and the largest RMS deviation: that of unrelated samples of size 1."""
_ERROR, _RATE, _LARGEST = 0.015, 2.0, 1e4
"""RMS error in epsilon, its angular frequency in the half log-SNR, and the largest factor to the clean half."""
_DRAWS, _MOST_STEPS = 256, 100
"""Number of draws of start and noise, and number of steps from which none of them is too long."""


class UnstableError(ValueError):
    """A method and steps on which it diverges, whatever the data."""


class _Erring(Wrapper):
    """Denoiser with an error in epsilon that changes with the level, in another phase for every draw."""

    def change(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        lam = min(max(float(level.half_log_snr), -8.0), 8.0)
        phase = torch.linspace(0.0, 2.0 * math.pi, _DRAWS, dtype=torch.float64)[:, None]
        size = math.sqrt(2.0) * _ERROR * min(math.exp(-lam), _LARGEST)
        return x0 + size * torch.sin(_RATE * lam + phase)


@lru_cache(maxsize=256)
def deviation(method: Sampler, sde: SDE, times: tuple[float, ...]) -> float:
    """Return the RMS deviation of Gaussian data of size 1 and 0.1 at the end of a solve: the size beyond their own."""
    noise = NoiseSource(0, (_DRAWS, len(_VARIANCES)), dtype=torch.float64)
    start, end = sde.levels([times[0], times[-1]])
    data = Gaussian([0.0] * len(_VARIANCES), torch.diag(torch.tensor(_VARIANCES)))
    x = data.moments.sample(noise.normal(NoiseSource.START), start)
    model: Denoiser = _Erring(data.model(sde))
    with torch.no_grad():
        try:
            x = method.sample(model, sde, x, torch.tensor(times, dtype=torch.float64), noise).x
        except FloatingPointError:
            return math.inf
        except ValueError:  # it asks for more steps, or for what this model lacks: the solve itself will say so
            return 0.0
    beyond = (x / end.scale).square().mean(dim=0) - torch.tensor(_VARIANCES, dtype=torch.float64)
    return math.sqrt(max(float(beyond.max()), 0.0))


def check_stability(method: Sampler, sde: SDE, times: Tensor) -> None:
    """Refuse a solve towards the data whose steps are too long for the method.

    Raises:
        UnstableError: naming grids on which as many steps are not.
    """
    steps = len(times) - 1
    if not method.needs_short_steps or steps >= _MOST_STEPS or float(times[-1]) > float(times[0]):
        return
    found = deviation(method, sde, tuple(times.tolist()))
    if found <= _MOST:
        return
    ends, better = (float(times[0]), float(times[-1])), []
    for name, grid in GRIDS.items():
        try:
            if deviation(method, sde, tuple(grid(sde, steps, *ends).tolist())) <= _MOST:
                better.append(f"{name!r}")
        except ValueError:  # too many nodes for this grid
            continue
    others = f"grid={' or '.join(better)}, " if better else ""
    raise UnstableError(
        f"{type(method).__name__} is unstable on these {steps} steps: Gaussian data of size 1 come out {found:.2g} "
        f"off; take {others}more steps, or solver='ode' or 'sde'"
    )
