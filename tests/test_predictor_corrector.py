"""The corrector's move is Song's Langevin step (Song et al. 2021, algorithm 4), with the two provisos of its module."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from catalogue import MIXTURE, PROCESSES
from sdediff import Level, NoiseSource
from sdediff.dynamics import Frame, to_x, to_y
from sdediff.samplers.predictor_corrector import PredictorCorrector

COUNT = 64
SNR = 0.3


def stepped(process: str, corrections: int, levels: list[Level[float]]) -> Tensor:
    """The states ``x`` after one step between two levels with so many moves."""
    model, noise = MIXTURE.model(PROCESSES[process]), NoiseSource(1, (COUNT, 2), dtype=torch.float64)
    x = model.sde.perturb(MIXTURE.sample(COUNT), levels[0].t, noise.normal(9))
    sampler, frame = PredictorCorrector(SNR, corrections), Frame(model, model.sde)
    y, _ = sampler.step(frame, to_y(x, levels[0]), *levels, partial(noise.normal, 0), None)
    return to_x(y, levels[1])


def moved(x: Tensor, size: Tensor, score: Tensor, z: Tensor) -> Tensor:
    """``x + e score + sqrt(2 e) z`` (line 6 of the paper's algorithm)."""
    return x + size[:, None] * score + (2.0 * size[:, None]).sqrt() * z


@pytest.mark.parametrize("gap", [2.0, 1.0, 0.5, 0.1])
@pytest.mark.parametrize("process", ["vp", "ve", "flow"])
def test_a_move_is_as_long_as_the_paper_s(process: str, gap: float) -> None:
    """``e = 2 (r |z| / |score|)^2``, at most what pure noise gets, ``2 r^2 sigma^2``; of a step in lambda below 1 that
    times the step, and the sample's own part in it by as much."""
    sde = PROCESSES[process]
    model, times = MIXTURE.model(sde), [float(sde.time(-0.5)), float(sde.time(-0.5 + gap))]
    levels = sde.levels(times)
    x, z = stepped(process, 0, levels), NoiseSource(1, (COUNT, 2), dtype=torch.float64).normal(0, 1)
    score, most = model.score(x, times[1]), 2.0 * SNR**2 * levels[1].sigma ** 2
    song = 2.0 * (SNR * z.norm(dim=1) / score.norm(dim=1)) ** 2
    bounded, share = song.clamp(max=most), min(gap, 1.0)
    assert COUNT > int((song > most).sum()) > 0  # both kinds are there
    size = bounded if share == 1.0 else share * (most + share * (bounded - most))
    torch.testing.assert_close(stepped(process, 1, levels), moved(x, size, score, z), rtol=1e-10, atol=1e-10)
    for wrong in (0.5 * size, most**2 / size, song):  # no factor of two, upside down, not held
        assert not torch.allclose(stepped(process, 1, levels), moved(x, wrong, score, z), rtol=1e-3, atol=1e-3)


def test_moves_follow_each_other() -> None:
    """The second move starts where the first ended, with normals of its own."""
    sde = PROCESSES["vp"]
    model, levels = MIXTURE.model(sde), sde.levels([float(sde.time(-0.5)), float(sde.time(0.5))])
    x, z = stepped("vp", 1, levels), NoiseSource(1, (COUNT, 2), dtype=torch.float64).normal(0, 2)
    score = model.score(x, levels[1].t)
    size = (2.0 * (SNR * z.norm(dim=1) / score.norm(dim=1)) ** 2).clamp(max=2.0 * SNR**2 * levels[1].sigma ** 2)
    torch.testing.assert_close(stepped("vp", 2, levels), moved(x, size, score, z), rtol=1e-10, atol=1e-10)
