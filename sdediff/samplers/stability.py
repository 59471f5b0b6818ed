r"""Stability of a method on the nodes of a solve: the size to which it takes Gaussian data of size 1 and less.

A method whose steps are too long for it (one that extrapolates, is explicit where the equation is stiff, or holds
epsilon while ``sigma / alpha`` falls many times) takes even Gaussian data, wide or narrow, to any size. No network can
do better, and the solve is refused.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sdediff.analytic import Gaussian
from sdediff.grids import GRIDS
from sdediff.noise import NoiseSource
from sdediff.samplers.base import Sampler
from sdediff.sde import SDE

_VARIANCES, _MOST = (1.0, 0.01), (4.0, 1.0)
"""Variances of Gaussian data, wide and narrow, and the largest mean squares to which a method may take them."""
_DRAWS, _MOST_STEPS = 256, 100
"""Number of draws of start and noise, and number of steps from which none of them is too long."""


@lru_cache(maxsize=256)
def excess(method: Sampler, sde: SDE, times: tuple[float, ...]) -> float:
    """Return the size to which a method takes Gaussian data, in units of the largest that is allowed."""
    noise = NoiseSource(0, (_DRAWS, len(_VARIANCES)), dtype=torch.float64)
    start, end = sde.levels([times[0], times[-1]])
    data = Gaussian([0.0] * len(_VARIANCES), torch.diag(torch.tensor(_VARIANCES)))
    x = data.moments.sample(noise.normal(NoiseSource.START), start)
    with torch.no_grad():
        try:
            x = method.sample(data.model(sde), sde, x, torch.tensor(times, dtype=torch.float64), noise).x
        except FloatingPointError:
            return float("inf")
    allowed = torch.tensor(_MOST, dtype=torch.float64)
    return float(((x / end.scale).square().mean(dim=0) / allowed).max().sqrt())


def check_stability(method: Sampler, sde: SDE, times: Tensor) -> None:
    """Refuse a solve towards the data whose steps are too long for the method.

    Raises:
        ValueError: naming grids on which as many steps are not.
    """
    steps = len(times) - 1
    if not method.needs_short_steps or steps >= _MOST_STEPS or float(times[-1]) > float(times[0]):
        return
    found = excess(method, sde, tuple(times.tolist()))
    if found <= 1.0:
        return
    ends, better = (float(times[0]), float(times[-1])), []
    for name, grid in GRIDS.items():
        try:
            if excess(method, sde, tuple(grid(sde, steps, *ends).tolist())) <= 1.0:
                better.append(f"{name!r}")
        except ValueError:  # too many nodes for this grid
            continue
    others = f"grid={' or '.join(better)}, " if better else ""
    raise ValueError(
        f"{type(method).__name__} is unstable on these {steps} steps: Gaussian data come out {found:.2g} times larger "
        f"than is allowed; take {others}more steps, or solver='ode' or 'sde'"
    )
