"""Averages of the weights after the fact: their profiles in closed form, and what snapshots make of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import sdediff
from sdediff.cli import main
from sdediff.config import Config
from sdediff.training import ema, train
from sdediff.training.averages import Averages, averaged


def config(**changes: object) -> Config:
    base: dict[str, object] = {
        "data.name": "moons", "network.width": 8, "network.blocks": 1, "training.steps": 40, "training.batch_size": 16,
        "training.warmup": 0, "training.learning_rate": 0.02, "training.schedule": "constant",
        "training.checkpoint_every": 5, "training.sample_every": 0, "training.held_out_every": 0,
        "training.averages": [0.05, 0.1],
    }  # fmt: skip
    return Config().updated({**base, **changes})


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_an_exponent_has_its_width(width: float) -> None:
    """By the closed form, and by the moments of ``s^gamma`` on [0, 1]."""
    gamma = ema.exponent(width)
    assert ema.relative_width(gamma) == pytest.approx(width, rel=1e-9)
    mean, square = (gamma + 1.0) / (gamma + 2.0), (gamma + 1.0) / (gamma + 3.0)
    assert math.sqrt(square - mean**2) == pytest.approx(width, rel=1e-6)


def test_no_average_is_wider_than_the_mean() -> None:
    for width in (0.0, -0.1, 0.3):
        with pytest.raises(ValueError, match=r"lies in \(0, 0.28\]"):
            ema.exponent(width)
    with pytest.raises(ValueError, match="lies in"):
        Averages(nn.Linear(1, 1), [0.05, 0.5])


@pytest.mark.parametrize("width", [0.05, 0.2])
def test_the_average_weighs_the_past_by_a_power(width: float) -> None:
    """Impulse responses after 400 steps against ``(gamma + 1) / t (s / t)^gamma``, in the continuum's accuracy."""
    gamma, steps = ema.exponent(width), 400
    network, average = nn.Linear(1, steps, bias=False).double(), nn.Linear(1, steps, bias=False).double()
    for step in range(steps):
        with torch.no_grad():
            network.weight.zero_()
            network.weight[step] = 1.0
        ema.update_power(average, network, gamma, step)
    found = average.weight.detach().flatten()
    s = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float((found - (gamma + 1.0) / steps * s**gamma).abs().max()) < 0.05 * float(found.max())


def test_a_snapshot_is_its_own_combination() -> None:
    times, gammas = np.repeat([10.0, 20.0, 30.0], 2), np.tile([ema.exponent(0.05), ema.exponent(0.1)], 3)
    for place in range(6):
        factors = ema.combination(times, gammas, times[place], gammas[place])
        assert np.abs(factors - np.eye(6)[place]).max() < 1e-6


@pytest.mark.parametrize(("width", "largest"), [(0.05, 1e-3), (0.1, 1e-3), (0.07, 1e-2), (0.15, 1e-2)])
def test_any_width_follows_from_the_snapshots(width: float, largest: float) -> None:
    """Of a random walk, which has no favourite time, after 400 steps with 20 snapshots: the error beside the average
    that was followed directly, relative to its distance from the last weights. A wrong width is far off."""
    rng, gamma = torch.Generator().manual_seed(0), ema.exponent(width)
    network = nn.Linear(50, 1, bias=False).double()
    with torch.no_grad():
        network.weight.zero_()
    averages = Averages(network, [0.05, 0.1])
    direct, other = Averages(network, [width]), Averages(network, [0.5 * width])
    times, values = [], []
    for step in range(400):
        with torch.no_grad():
            network.weight += torch.randn(1, 50, generator=rng, dtype=torch.float64)
        for each in (averages, direct, other):
            each.update(network, step)
        if (step + 1) % 20 == 0:
            times += [step + 1.0] * 2
            values += [average.weight.detach().clone() for average in averages.networks]
    factors = ema.combination(times, averages.gammas * 20, 400.0, gamma)
    found = sum(float(factor) * value for factor, value in zip(factors, values, strict=True))
    wanted, wrong = (each.networks[0].weight.detach() for each in (direct, other))
    scale = (wanted - network.weight.detach()).norm()
    assert float((found - wanted).norm() / scale) < largest
    assert float((found - wrong).norm() / scale) > 2.0 * largest


def test_a_run_gives_models_of_any_width(tmp_path: Path) -> None:
    """A width that was kept is that average itself; the averages are part of the state, and resume bit for bit."""
    whole = train(config(), tmp_path / "whole", progress=False)
    assert len(list((tmp_path / "whole" / "averages").iterdir())) == 8
    train(config(**{"training.steps": 20}), tmp_path / "run", progress=False)
    train(config(), tmp_path / "run", resume=True, progress=False)
    for width in (0.05, 0.08, 0.2):
        one, other = (weights(averaged(tmp_path / run, width)) for run in ("whole", "run"))
        assert torch.equal(one, other)
    plain = train(config(**{"training.averages": []}), tmp_path / "plain", progress=False)
    assert torch.equal(weights(plain.model), weights(whole.model))  # the further averages change nothing
    direct = Averages(nn.Linear(1, 1), [0.05])
    assert direct.widths == (0.05,)
    with pytest.raises(FileNotFoundError, match="no snapshots of averages: train with"):
        averaged(tmp_path / "plain", 0.1)


def test_the_command_writes_a_model(tmp_path: Path) -> None:
    train(config(**{"training.steps": 10}), tmp_path / "run", progress=False)
    args = ["average", str(tmp_path / "run"), str(tmp_path / "out"), "--width", "0.12"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    made = sdediff.load(tmp_path / "out")
    assert torch.equal(weights(made), weights(averaged(tmp_path / "run", 0.12)))
    assert made.data == sdediff.load(tmp_path / "run").data
    assert CliRunner().invoke(main, [*args[:-1], "0.4", "--force"]).exit_code == 2
    assert CliRunner().invoke(main, args).exit_code == 2  # which would overwrite it
