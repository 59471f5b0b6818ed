r"""Moving averages of the weights: exponential ones, and power functions from which any other follows after the fact.

A power-function average after t steps weighs the weights of step s by ``p(s) = (gamma + 1) / t (s / t)^gamma``; its
width is the standard deviation of p relative to t, ``(gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)``. The
snapshots of two such averages span the others: the average of any width is their least-squares combination (Karras et
al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3 and appendix C).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

WIDEST = 0.28
"""Largest width; that of a plain mean is ``12^(-1/2) = 0.289``."""


def update(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move an exponential average towards the network in place.

    Args:
        average: a copy of the network.
        network: the trained network.
        decay: the limit of the decay; early on it is ``(1 + step) / (10 + step)``, so that the start is forgotten.
        step: number of updates before this one.
    """
    _move(average, network, min(decay, (1.0 + step) / (10.0 + step)))


def update_power(average: nn.Module, network: nn.Module, gamma: float, step: int) -> None:
    """Move a power-function average towards the network in place, by the decay ``(1 - 1/t)^(gamma + 1)``.

    Args:
        average: a copy of the network.
        network: the trained network.
        gamma: the exponent, see :func:`exponent`.
        step: number t - 1 of updates before this one.
    """
    _move(average, network, (1.0 - 1.0 / (step + 1.0)) ** (gamma + 1.0))


@torch.no_grad()
def _move(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_([*average.parameters()], [*network.parameters()], 1.0 - decay)
    for buffer, current in zip(average.buffers(), network.buffers(), strict=True):
        buffer.copy_(current)


def exponent(width: float) -> float:
    """Return the exponent gamma of a width (Karras et al. 2024, eq. 126).

    Raises:
        ValueError: for a width that no power function has.
    """
    if not 0.0 < width <= WIDEST:
        raise ValueError(f"the width of an average lies in (0, {WIDEST:g}], not {width:g}")
    square = 1.0 / width**2
    roots = np.roots([1.0, 7.0, 16.0 - square, 12.0 - square])
    return float(roots.real[np.isreal(roots)].max())


def combination(times: ArrayLike, gammas: ArrayLike, time: float, gamma: float) -> NDArray[np.float64]:
    """Return the factors of snapshots whose sum is closest to a power-function average (eqs. 148 to 150).

    Args:
        times: steps of the snapshots, ``(n,)``.
        gammas: exponents of the snapshots, ``(n,)``.
        time: step of the average.
        gamma: exponent of the average.
    """
    t, g = np.asarray(times, dtype=np.float64), np.asarray(gammas, dtype=np.float64)
    among = _overlap(t[:, None], g[:, None], t[None, :], g[None, :])
    factors = np.linalg.lstsq(among, _overlap(t, g, np.float64(time), np.float64(gamma)), rcond=1e-13)[0]
    return np.asarray(factors / factors.sum())  # weights are averaged, not scaled


def _overlap(
    t_a: NDArray[np.float64], gamma_a: NDArray[np.float64], t_b: ArrayLike, gamma_b: ArrayLike
) -> NDArray[np.float64]:
    """Return the integrals of the products of two power functions."""
    later, other = np.asarray(t_b, dtype=np.float64), np.asarray(gamma_b, dtype=np.float64)
    power = np.where(t_a < later, other, -gamma_a)
    return np.asarray(
        (gamma_a + 1.0) * (other + 1.0) * (t_a / later) ** power / ((gamma_a + other + 1.0) * np.maximum(t_a, later))
    )


def relative_width(gamma: float) -> float:
    """Return the width of an exponent: the inverse of :func:`exponent`."""
    return math.sqrt((gamma + 1.0) / (gamma + 3.0)) / (gamma + 2.0)
