"""The networks of the contest ``experiments.peers.real``: errors are those stated, the halves share nothing."""

from __future__ import annotations

import pytest
import torch

import sdediff
from experiments.peers.networks import HALVES, TRAINED
from experiments.peers.subjects import COSINE, SUBJECTS, scattered, wrapped


def error_in_epsilon(size: float, sde: sdediff.SDE, predicts: str, dim: int) -> torch.Tensor:
    """RMS over 64 states of the error in epsilon, at levels from data to noise."""
    law, rms = scattered(0, dim), []
    exact, model = law.model(sde), wrapped(law, sde, predicts, size, moments=True)
    for t in (0.01, 0.3, 0.6, 0.9):
        x = sde.perturb(law.sample(64, seed=1), t, torch.randn(64, dim, generator=torch.Generator().manual_seed(2)))
        level = sde.level(t)
        rms.append((model(x, level).eps - exact(x, level).eps).square().mean().sqrt())
    return torch.stack(rms)


@pytest.mark.parametrize("dim", [8, 192])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sde", [sdediff.VPSDE(), COSINE, sdediff.RectifiedFlow()], ids=["vp", "cosine", "flow"])
def test_the_error_in_epsilon_is_the_one_stated(sde: sdediff.SDE, predicts: str, dim: int) -> None:
    with torch.no_grad():
        rms = error_in_epsilon(0.02, sde, predicts, dim)
        none = error_in_epsilon(0.0, sde, predicts, dim)
    assert bool(((rms > 0.01) & (rms < 0.04)).all()), rms
    assert float(none.max()) < 1e-10  # the control: without an error there is none


def test_the_error_is_as_smooth_in_many_dimensions() -> None:
    slopes = {}
    for dim in (8, 192):
        law = scattered(0, dim)
        model, exact, level = wrapped(law, COSINE, "epsilon", 0.02, moments=False), law.model(COSINE), COSINE.level(0.5)
        x = torch.randn(32, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            first, second = (model(at, level).eps - exact(at, level).eps for at in (x, 1.001 * x))
        slopes[dim] = float((second - first).norm() / (0.001 * x.norm()))
    assert 1 / 3 < slopes[192] / slopes[8] < 3  # unscaled waves would be sqrt(24) times steeper


def test_every_network_belongs_to_one_half() -> None:
    assert {subject.half for subject in SUBJECTS.values()} == set(HALVES)
    assert set(TRAINED) < set(SUBJECTS)
    counts = [sum(subject.half == half for subject in SUBJECTS.values()) for half in HALVES]
    assert abs(counts[0] - counts[1]) <= 2
