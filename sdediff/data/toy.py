"""Synthetic points in the plane, of about unit size; the docstring of each function describes its data set."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from sdediff.data.dataset import Dataset, Items, split
from sdediff.types import DataInfo

POINTS = 20_000

Points = NDArray[np.floating]
DrawPoints = Callable[[int, np.random.Generator], Points]


def _polar(radius: Points, angle: Points) -> Points:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def moons(n: int, rng: np.random.Generator) -> Points:
    """Two interleaved half circles with noise 0.05."""
    upper = rng.integers(0, 2, n) * 2.0 - 1.0
    angle = rng.uniform(0.0, math.pi, n)
    points = np.stack([np.cos(angle) - 0.5 * upper, upper * np.sin(angle) - 0.25 * upper], axis=1)
    return points + 0.05 * rng.standard_normal((n, 2))


def circles(n: int, rng: np.random.Generator) -> Points:
    """Two concentric circles, of radius 1/2 and 1, with noise 0.04."""
    radius = 0.5 * (1.0 + rng.integers(0, 2, n))
    return _polar(radius, rng.uniform(0.0, 2.0 * math.pi, n)) + 0.04 * rng.standard_normal((n, 2))


def spirals(n: int, rng: np.random.Generator) -> Points:
    """Two arms of a spiral, one and a half turns each, with noise 0.02."""
    turn = 3.0 * math.pi * np.sqrt(rng.uniform(size=n))
    arm = math.pi * rng.integers(0, 2, n)
    return _polar(turn / (3.0 * math.pi), turn + arm) + 0.02 * rng.standard_normal((n, 2))


def ring(n: int, rng: np.random.Generator) -> Points:
    """Eight Gaussians of standard deviation 0.1 on the unit circle."""
    angle = rng.integers(0, 8, n) * (math.pi / 4.0)
    return _polar(np.ones(n), np.asarray(angle)) + 0.1 * rng.standard_normal((n, 2))


def checkerboard(n: int, rng: np.random.Generator) -> Points:
    """The dark squares of a 4 x 4 board on [-1, 1]^2."""
    row, column = rng.integers(0, 4, n), 2 * rng.integers(0, 2, n)
    cell = np.stack([column + row % 2, row], axis=1)
    return (cell + rng.uniform(size=(n, 2))) / 2.0 - 1.0


def swiss_roll(n: int, rng: np.random.Generator) -> Points:
    """One arm of a spiral between one half and two and a quarter turns, with noise 0.02."""
    turn = 1.5 * math.pi * (1.0 + 2.0 * rng.uniform(size=n))
    return _polar(turn / (4.5 * math.pi), turn) + 0.02 * rng.standard_normal((n, 2))


def pinwheel(n: int, rng: np.random.Generator) -> Points:
    """Five blades bent around the centre (Johnson et al. 2016)."""
    radial, across = 0.5 + 0.15 * rng.standard_normal(n), 0.05 * rng.standard_normal(n)
    angle = rng.integers(0, 5, n) * (0.4 * math.pi) + 0.25 * np.exp(2.0 * radial)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([radial * cos - across * sin, radial * sin + across * cos], axis=1)


TOYS: dict[str, DrawPoints] = {
    "moons": moons,
    "circles": circles,
    "spirals": spirals,
    "ring": ring,
    "checkerboard": checkerboard,
    "swiss-roll": swiss_roll,
    "pinwheel": pinwheel,
}


def toy(name: str, seed: int = 0) -> Dataset:
    """Draw 20,000 points of ``TOYS[name]``, a fifth of them held out."""
    points = TOYS[name](POINTS, np.random.default_rng(seed % (1 << 64)))
    return split(Items(torch.from_numpy(points).float()), DataInfo(shape=(2,), name=name), seed)
