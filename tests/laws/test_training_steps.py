"""What a step of training does, in closed form: rates, decay and clipping, means of losses, buffers, strata."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdediff import DataInfo
from sdediff.config import Config, build
from sdediff.data import load_dataset
from sdediff.denoiser import Denoiser
from sdediff.training import Objective, TrainResult, ema, train
from sdediff.training.batches import _LEVELS_STREAM, _ORDER_STREAM, Batches, _rng, held_out_batch

STEPS, WARMUP, RATE = 9, 3, 0.05


def run(folder: Path, **changes: object) -> TrainResult:
    """A short run on points."""
    settings = {
        "steps": STEPS,
        "warmup": WARMUP,
        "learning_rate": RATE,
        "batch_size": 16,
        "log_every": 1,
        "held_out_every": 0,
        "checkpoint_every": 0,
        "sample_every": 0,
        **changes,
    }
    small = {"data.name": "moons", "network.name": "mlp", "network.width": 8, "network.blocks": 1}
    config = Config().updated({**small, **{f"training.{name}": value for name, value in settings.items()}})
    return train(config, folder, progress=False)


def column(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def weights(model: Denoiser) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def rates() -> list[float]:
    """A line up to the full rate after the warm-up, times half a cosine that ends one step before zero."""
    warm = [min(1.0, (i + 1) / (WARMUP + 1)) for i in range(STEPS)]
    return [RATE * w * math.cos(0.5 * math.pi * i / STEPS) ** 2 for i, w in enumerate(warm)]


def test_without_a_gradient_weights_decay_at_the_rates(tmp_path: Path) -> None:
    """Clipped to 1e-14, far below the 1e-8 that Adam adds to its root, the gradient moves a weight by 1e-6 of a rate;
    the decay, which does not go through Adam, is all that is left. An average without memory is the network itself."""
    decay = 0.8
    found = weights(run(tmp_path / "run", clip=1e-14, weight_decay=decay, ema=0.0).model)
    config = Config.load(tmp_path / "run" / "config.json")
    start = weights(build(config, load_dataset("moons").info))
    expected = start * math.prod(1.0 - rate * decay for rate in rates())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=STEPS * RATE * 1e-5)
    assert float((expected - start).abs().max()) > 1e-2
    assert column(tmp_path / "run", "learning_rate") == pytest.approx(rates(), rel=1e-12)


def test_logged_losses_are_means_of_the_steps_since_the_last(tmp_path: Path) -> None:
    run(tmp_path / "each")
    run(tmp_path / "four", log_every=4)
    each = column(tmp_path / "each", "loss")
    means = [sum(part) / len(part) for part in (each[:4], each[4:8], each[8:])]
    assert column(tmp_path / "four", "loss") == pytest.approx(means, rel=1e-5)
    assert max(means) > 1.001 * min(means)


def test_the_held_out_loss_is_the_averages(tmp_path: Path) -> None:
    """The model returned is the slow average; its loss is what is stated, the network's own is another."""
    result, data = run(tmp_path / "run", ema=0.9, learning_rate=0.3), load_dataset("moons")
    quick = run(tmp_path / "quick", ema=0.0, learning_rate=0.3)
    settings = Config.load(tmp_path / "run" / "config.json").training
    objective = Objective(result.model.sde, settings.time_law, settings.weighting)
    batch = held_out_batch(data.held_out, data.info, 0)
    with torch.no_grad():
        own, other = (float(objective.loss(model, *batch).mean()) for model in (result.model, quick.model))
    assert result.held_out_loss == pytest.approx(own, rel=1e-5)
    assert abs(other / own - 1.0) > 1e-3


def test_buffers_of_the_average_are_the_networks() -> None:
    network, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    network(torch.tensor([[1.0, 2.0], [3.0, 7.0]]))
    ema.update(average, network, 0.9, 100)
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        assert torch.equal(kept, current)
    assert float(average.running_mean.abs().min()) > 0.0  # type: ignore[union-attr]


def test_the_place_in_a_batch_says_nothing_about_the_level() -> None:
    """Strata are dealt out anew for every batch, so that no item is always beside the same neighbour in level, and no
    process has the low ones."""
    batches = Batches(torch.zeros(64, 2), DataInfo((2,)), 16, seed=0)
    steps = [(16.0 * (batch.u[1] - batch.u[0])).remainder(16.0).round() for batch in map(batches, range(60))]
    assert len({float(step) for step in steps}) > 10  # of 15; all alike if the strata stood in order


def test_kinds_of_draws_have_streams_of_their_own() -> None:
    """Order, draws of a step and held-out draws: at equal items, no noise and no level is the same."""
    firsts = {_rng(3, kind, 0).random() for kind in (_ORDER_STREAM, _LEVELS_STREAM)}
    assert len(firsts) == 2
    data, info = torch.zeros(16, 2), DataInfo((2,))
    held_out = held_out_batch(data, info, seed=3)
    for step in range(3):
        batch = Batches(data, info, 16, seed=3)(step)
        assert not bool((batch.eps == held_out.eps).any())
        assert not bool((batch.u == held_out.u).any())
