"""What a step of training does, in closed form: rates, decay and clipping, means of losses, buffers, strata."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdediff import DataInfo
from sdediff.checkpoint import load
from sdediff.config import Config, build
from sdediff.data import load_dataset
from sdediff.denoiser import Denoiser
from sdediff.likelihood import bits_per_dim, log_likelihood
from sdediff.training import Objective, TrainingWarning, TrainResult, ema, train
from sdediff.training.batches import Batches, held_out_batch

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
    rough: dict[str, object] = {"learning_rate": 0.3, "schedule": "constant", "steps": 60}  # 3 to 15 % apart
    result, data = run(tmp_path / "run", ema=0.99, **rough), load_dataset("moons")
    quick = run(tmp_path / "quick", ema=0.0, **rough)
    config = Config.load(tmp_path / "run" / "config.json")
    objective = Objective(result.model.sde, config.training.time_law, config.weighting)
    batch = held_out_batch(data.held_out, data.info, 0)
    with torch.no_grad():
        own, other = (float(objective.loss(model, *batch[:3]).mean()) for model in (result.model, quick.model))
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
    """Draws of a step and held-out draws: at equal items, no noise and no level is the same."""
    data, info = torch.zeros(16, 2), DataInfo((2,))
    held_out = held_out_batch(data, info, seed=3)
    for step in range(3):
        batch = Batches(data, info, 16, seed=3)(step)
        assert not bool((batch.eps == held_out.eps).any())
        assert not bool((batch.u == held_out.u).any())


# ---- settings of the loop -----------------------------------------------------------------------------------------


def whole_batch(parts: int, folder: Path) -> tuple[list[float], Tensor]:
    result = run(folder, accumulate=parts, ema=0.0, weight_decay=0.0, clip=0.5)
    return column(folder, "loss"), weights(result.model)


def test_the_parts_of_a_batch_make_the_same_step(tmp_path: Path) -> None:
    """The gradients of the parts add up to that of the batch, before it is clipped: the losses are equal up to
    rounding, which Adam magnifies in weights of no gradient; half of the batch alone is far from it."""
    losses, whole = whole_batch(1, tmp_path / "1")
    run(tmp_path / "half", batch_size=8, ema=0.0)
    for parts in (2, 4, 16):
        again, accumulated = whole_batch(parts, tmp_path / str(parts))
        assert again == pytest.approx(losses, rel=1e-4)
        assert float((accumulated - whole).square().mean().sqrt()) < 1e-2 * float(whole.square().mean().sqrt())
    assert column(tmp_path / "half", "loss") != pytest.approx(losses, rel=1e-2)


def test_bfloat16_is_for_the_products_alone(tmp_path: Path) -> None:
    """Losses agree to the eight bits of its digits, and are not the same; weights, average and files stay single."""
    single, low = run(tmp_path / "single"), run(tmp_path / "low", precision="bfloat16")
    assert {parameter.dtype for parameter in low.model.parameters()} == {torch.float32}
    first, second = column(tmp_path / "single", "loss"), column(tmp_path / "low", "loss")
    assert second == pytest.approx(first, rel=0.02)
    assert second != first
    again = run(tmp_path / "again", precision="bfloat16")
    assert torch.equal(weights(again.model), weights(low.model))
    assert float((weights(low.model) - weights(single.model)).abs().max()) > 0.0


def test_a_compiled_network_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the compiler: here one that hands the graphs back. Saved weights have their own names."""
    compiled: list[nn.Module] = []
    own = torch.compile

    def keep(module: nn.Module) -> Any:
        compiled.append(module)
        return own(module, backend="eager")

    monkeypatch.setattr(torch, "compile", keep)
    plain, fast = run(tmp_path / "plain"), run(tmp_path / "fast", compile=True)
    assert len(compiled) == 1
    assert weights(fast.model).tolist() == pytest.approx(weights(plain.model).tolist(), rel=1e-3, abs=1e-5)
    assert set(load(tmp_path / "fast").state_dict()) == set(load(tmp_path / "plain").state_dict())


def test_channels_last_changes_the_memory_and_not_the_losses(tmp_path: Path) -> None:
    images = {"data.name": "digits", "network.name": "unet", "network.width": 8, "training.channels_last": True}
    config = Config().updated({**images, "training.steps": 3, "training.batch_size": 8, "training.log_every": 1})
    for last in (True, False):
        settings = {"training.channels_last": last, "training.held_out_every": 0, "training.sample_every": 0}
        result = train(config.updated(settings), tmp_path / str(last), progress=False)
        kernels = [
            parameter for parameter in result.model.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1
        ]
        kernels = [kernel for kernel in kernels if max(kernel.shape[2:]) > 1]
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) == last for kernel in kernels)
        assert kernels
    assert column(tmp_path / "True", "loss") == pytest.approx(column(tmp_path / "False", "loss"), rel=1e-3)
    again = train(config.updated({"training.steps": 3}), tmp_path / "True", resume=True, progress=False)
    assert torch.equal(weights(again.model), weights(load(tmp_path / "True")))


@pytest.mark.parametrize("name", ["moons", "digits"])
def test_held_out_likelihoods_are_the_librarys(tmp_path: Path, name: str) -> None:
    """Nats of continuous data, bits/dim of integers, of the first held-out items, with the error of their mean."""
    config = Config().updated(
        {"data.name": name, "network.name": "mlp", "network.width": 8, "training.steps": 4, "training.batch_size": 8,
         "training.bits_every": 2, "training.bits_items": 5, "training.sample_every": 0}
    )  # fmt: skip
    result, x = train(config, tmp_path / "run", progress=False), load_dataset(name).held_out[:5]
    if name == "moons":
        log_prob = log_likelihood(result.model, x, seed=0).log_prob
        key, mean, error = "log_likelihood", float(log_prob.mean()), float(log_prob.std()) / math.sqrt(5)
    else:
        bits = bits_per_dim(result.model, x, seed=0)
        key, mean, error = "bits_per_dim", bits.mean, bits.mean_standard_error
    assert column(tmp_path / "run", key)[-1] == pytest.approx(mean, rel=1e-6)
    assert column(tmp_path / "run", f"{key}_error")[-1] == pytest.approx(error, rel=1e-5)
    steps = [row["step"] for row in result.metrics if key in row]
    assert steps == [2, 4]


def test_a_likelihood_without_a_value_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a network that has learned too little: a warning, no line, and the steps go on."""
    from sdediff.training import trainer

    def fails(*_: object) -> None:
        raise FloatingPointError("the error exceeds the number")

    plain = run(tmp_path / "plain")
    monkeypatch.setattr(trainer.Trainer, "held_out_likelihood", fails)
    with pytest.warns(TrainingWarning, match="no likelihood after 9 steps: the error exceeds the number"):
        result = run(tmp_path / "run", bits_every=9)
    assert torch.equal(weights(result.model), weights(plain.model))
    assert column(tmp_path / "run", "log_likelihood") == []


def test_the_first_preview_comes_after_a_minute_at_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of ten seconds on a clock of one's own: the first is drawn at the seventh, the others at their interval."""
    from sdediff.training import loop, trainer

    now, drawn, step = [0.0], [], trainer.Trainer.step
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def slow(self: trainer.Trainer, number: int) -> Tensor:
        now[0] += 10.0
        return step(self, number)

    monkeypatch.setattr(trainer.Trainer, "step", slow)
    config = Config().updated(
        {"data.name": "moons", "network.width": 8, "training.steps": 13, "training.batch_size": 8}
    )
    config = config.updated({"training.sample_every": 12})
    train(config, tmp_path / "run", progress=False, on_sample=lambda _, path: drawn.append(path.name))
    assert drawn == ["step_000007", "step_000012", "step_000013"]
