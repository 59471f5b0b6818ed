r"""Networks of integer timesteps, asked between two instants of their chain.

Timestep k = 0 .. N-1 of a chain of N steps is its instant ``t = (k + 1) / N``. Between two instants the network is
evaluated at both neighbours and the same state, and the velocity ``v = cos eps - sin x0`` is linear in the half
log-SNR:

    v = a v_i(x) + b v_{i+1}(x),     a + b = 1,     x0 = cos x - sin v,     eps = sin x + cos v.

The chain preserves variance, so that the state needs no rescaling to the neighbour's level, and v is accurate at either
end. The field is continuous in t, the network's own at every instant, and its error is of order 2 in the distance
between them.

Solvers with a grid move their nodes to instants where these stay distinct, and take one forward for each.

Below the first instant, where no network was trained, the noise half is constant, ``eps = eps_1(x)``. (For a smooth
density eps falls with sigma, but is small at the first instant already; on data near a surface, as images are, it does
not.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdediff.numerics import as_float64, expand, to_nearest
from sdediff.parametrization import PREDICTIONS
from sdediff.sde import SDE
from sdediff.types import Level, Scalar, Split

Evaluate = Callable[[Tensor, Level], Split]
"""Split of a state by one forward of the network."""


def chain_steps(sde: SDE) -> int:
    """Return the number of steps of a chain.

    Raises:
        ValueError: for any other process.
    """
    if sde.instants is None:
        raise ValueError(f"labels and instants count the steps of a chain: they need a DDPM, not {type(sde).__name__}")
    return len(sde.instants) - 1


def position_of(sde: SDE, level: Level) -> Tensor:
    """Return ``t N``, exact at instants; float64, ``()`` or ``(B,)``."""
    position = as_float64(level.t) * chain_steps(sde)
    nearest = position.round()
    return torch.where((position - nearest).abs() < 1e-9, nearest, position)


def at_instant(position: Tensor) -> bool:
    """Return whether every sample is at an instant above 0."""
    return bool(((position == position.round()) & (position >= 1.0)).all())


def on_instants(sde: SDE, times: Tensor) -> Tensor:
    """Move inner nodes to the nearest instants, unless these are half way to the next node or beyond."""
    moved = to_nearest(times * chain_steps(sde)).clamp(min=1.0) / chain_steps(sde)
    gaps = times.diff().abs()
    near = (moved - times)[1:-1].abs() < (0.5 - 1e-6) * torch.minimum(gaps[:-1], gaps[1:])
    return torch.cat([times[:1], torch.where(near, moved[1:-1], times[1:-1]), times[-1:]])


def from_first(evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
    """Split a state by the network's answer at its level, or at the first instant if that is nearer to the data."""
    position = position_of(sde, level)
    if bool((position >= 1.0).all()):
        return evaluate(x, level)
    first = _level(sde, position.clamp(min=1.0), level)
    return _with_noise_half(evaluate(x, first), x, level)


def at_instants(evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
    """Split a state by a forward at an instant.

    Raises:
        ValueError: between two instants.
    """
    position = position_of(sde, level)
    between = (position != position.round()) & (position > 1.0)
    if bool(between.any()):
        steps, t = chain_steps(sde), as_float64(level.t).flatten()[between.flatten()][0]
        raise ValueError(
            f"the network knows the {steps} instants of its chain alone, not t = {float(t):g}: solve in fewer steps or "
            "with grid='chain', or give it conditioning='interpolated'"
        )
    return from_first(evaluate, sde, x, level)


def interpolated(evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
    """Split a state by a forward at an instant, or by two between instants."""
    position = position_of(sde, level)
    if at_instant(position):
        return evaluate(x, level)
    above, below = (_level(sde, instant.clamp(min=1.0), level) for instant in (position.ceil(), position.floor()))
    later = evaluate(x, above)
    extrapolated = _with_noise_half(later, x, level)
    if bool((position <= 1.0).all()):
        return extrapolated
    earlier, share = evaluate(x, below), expand(_share(below, level, above), x)
    v = (1.0 - share) * _velocity(earlier, below) + share * _velocity(later, above)
    if position.ndim:
        v = torch.where(_below_first(position, x), _velocity(extrapolated, level), v)
    split = PREDICTIONS["v_prediction"].split(v, x, level)
    if later.fraction is not None and earlier.fraction is not None:
        split.fraction = (1.0 - share) * earlier.fraction + share * later.fraction
    return split


def _with_noise_half(split: Split, x: Tensor, level: Level) -> Split:
    """Return the split at ``level`` with the noise half from another level."""
    extrapolated = PREDICTIONS["epsilon"].split(split.eps, x, level)
    extrapolated.fraction = split.fraction
    return extrapolated


def _velocity(split: Split, level: Level) -> Tensor:
    return split.mix(-level.sin, level.cos)


def _below_first(position: Tensor, x: Tensor) -> Tensor:
    """Return a mask of the samples below the first instant, to broadcast with the state."""
    return (position < 1.0).to(x.device).reshape(-1, *(1,) * (x.ndim - 1))


def _share(below: Level, here: Level, above: Level) -> Scalar:
    """Return the weight of the noisier neighbour; 1 where both are equal."""
    if isinstance(here.half_log_snr, float):
        return (below.half_log_snr - here.half_log_snr) / (below.half_log_snr - above.half_log_snr)
    start = as_float64(below.half_log_snr)
    gap = start - as_float64(above.half_log_snr)
    share: Tensor = torch.where(gap > 0.0, (start - here.half_log_snr) / gap, 1.0)
    return share


def _level(sde: SDE, position: Tensor, like: Level) -> Level:
    """Return the level at ``position = t N``, of floats if ``like`` has floats."""
    times = position / chain_steps(sde)
    return sde.levels(times[None])[0] if isinstance(like.t, float) else sde.level(times)
