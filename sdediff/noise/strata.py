"""Low-discrepancy uniforms for the noise levels of a batch (Kingma et al. 2021, appendix I.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from sdediff.noise.source import NoiseSource


def stratified(seed: int, count: int, step: int, stage: int) -> Tensor:
    """Draw one uniform in each of ``count`` equal strata of [0, 1), in random order.

    Within their strata all lie at one place, drawn anew for each step.

    Args:
        seed: any integer.
        count: number of draws, those of a whole batch.
        step: step of the draws.
        stage: stage of the draws.

    Returns:
        float64 ``(count,)``, on the CPU.

    >>> sdediff.noise.stratified(0, 4, step=0, stage=0).mul(4).floor().sort().values
    tensor([0., 1., 2., 3.], dtype=torch.float64)
    """
    u = NoiseSource(seed, (count, 2), dtype=torch.float64).uniform(step, stage)
    return (u[:, 0].argsort().double() + u[0, 1]) / count
