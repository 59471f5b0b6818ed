"""Steps and stages of all uses of the noise."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class Stage(IntEnum):
    """Register of the stages: one for every use of the noise, so that no two draws share a stream.

    Within a stage the step counts nodes or draws.
    """

    SOLVER = 0
    """Noise of the initial state (step :attr:`NoiseSource.START`), of a solver's step i (step i, stages from 0 on), and
    of the nodes of a Brownian path (steps from :data:`BROWNIAN_STEP` on)."""
    DEQUANTISATION = 2
    """Values for integers; the step is the number of the draw."""
    PROBES = 3
    """Probes of a divergence; the step is :func:`probe_step` or :func:`sign_step`."""
    BOUND = 4
    """Noise of the terms of a bound at every node: draw k has stage ``BOUND + k``, the step is the node."""
    BOUND_LEVELS = -1
    """Levels of the sampled terms of a bound; the step is their number."""
    BOUND_SAMPLED = -2
    """Noise of the sampled terms of a bound; the step is the number of the term."""
    LOSS = -12
    """Draws of a training loss at a step: the noise, then the levels, then the dequantisation, three stages."""
    BATCH = -3
    """Noise of a training batch; the step is the optimiser's, or -1 for held-out items."""
    BATCH_VALUES = -4
    """Dequantisation of a training batch, likewise."""
    BATCH_FLIPS = -5
    """Mirroring of the images of a training batch, likewise."""
    BATCH_LEVELS = -6
    """Noise levels of a training batch, likewise."""
    BATCH_CONDITIONS = -7
    """Which conditions of a training batch are withheld, likewise."""

    CODES = -13
    """Draws of codes from their posteriors; the step is the number of the draw."""
    CODE_VALUES = -14
    """Dequantisation of the data of a bound on codes, likewise."""


BROWNIAN_STEP = 1 << 32
"""First step of the nodes of a Brownian path, above the steps of any solver."""


def probe_step(draw: int, node: int, number: int) -> int:
    """Return the step of one probe of a node, in :attr:`Stage.PROBES`."""
    return (draw << 40) | (node << 20) | number


def sign_step(draw: int, replicate: int) -> int:
    """Return the first of two steps of a replicate of orthogonal probes, in :attr:`Stage.PROBES` above the nodes'."""
    return (draw << 40) | (1 << 39) | (2 * replicate)
