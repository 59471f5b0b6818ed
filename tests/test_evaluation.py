"""The loop over a data set: batches, processes, interruptions and memory change no figure; a target stops it fairly."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import distributed_likelihood
from sdediff.checkpoint import save
from sdediff.cli import main
from sdediff.conditions import Condition
from sdediff.config import Config, build
from sdediff.data import load_dataset
from sdediff.evaluation import Evaluation, PartialResults, evaluate, identity, mean_and_error, memory, order, resume
from sdediff.evaluation.dataset import BLOCK, reached
from sdediff.evaluation.memory import PeakMemory, fitting, peak_memory
from sdediff.gaussian import Moments
from sdediff.networks import MLP
from sdediff.score_model import ScoreModel
from sdediff.sde import VPSDE
from sdediff.types import DataInfo
from sdediff.wrappers import Clip, Given, Threshold

SETTINGS = {"model": "a", "seed": 0}


def work(x: Tensor, first: int) -> dict[str, Tensor]:
    """A value that depends on the item and on its place, as probes do; of exact sums, the same in any batch."""
    places = torch.arange(first, first + len(x), dtype=torch.float64)
    return {"value": x.double().sum(dim=1) + (places % 7.0) / 8.0, "place": places}


def items(count: int) -> Tensor:
    return torch.arange(2.0 * count).reshape(count, 2)


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ---- the loop ----------------------------------------------------------------------------------------------------


def test_every_item_is_taken_once_in_the_seeds_order_at_its_place():
    scores = evaluate(work, items(37), seed=5, batch_size=8)
    places = order(37, 5)
    assert sorted(places) == list(range(37))
    assert not np.array_equal(places, order(37, 6))
    assert np.array_equal(scores.columns["item"], places)
    assert np.array_equal(scores.columns["place"], np.arange(37))
    assert np.array_equal(scores.values, items(37)[torch.from_numpy(places)].sum(dim=1).numpy() + np.arange(37) % 7 / 8)


@pytest.mark.parametrize("size", [1, 3, 37, 100, None])
def test_the_batch_size_changes_nothing(size):
    assert same(evaluate(work, items(37), batch_size=size).columns, evaluate(work, items(37), batch_size=8).columns)


@pytest.mark.parametrize("calls", [0, 1, 4])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, FloatingPointError])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, calls, failure):
    """The file keeps whole rounds; what is in it is not done again, and the result is that of a run without a break."""
    part, seen = PartialResults(tmp_path / "x.npz.part", SETTINGS), []

    def breaking(x: Tensor, first: int) -> dict[str, Tensor]:
        if len(seen) == calls:
            raise failure
        seen.append(first)
        return work(x, first)

    if failure is KeyboardInterrupt:
        stopped = evaluate(breaking, items(37), batch_size=8, partial=part)
        assert stopped.interrupted
        assert stopped.done == 8 * calls
    else:
        with pytest.raises(failure):
            evaluate(breaking, items(37), batch_size=8, partial=part)
    assert part.path.exists() == (calls > 0)
    starts = []
    resumed = evaluate(
        lambda x, first: (starts.append(first), work(x, first))[1], items(37), batch_size=5, partial=part
    )
    assert starts[0] == 8 * calls
    assert same(resumed.columns, evaluate(work, items(37), batch_size=8).columns)
    assert evaluate(work, items(37), partial=part, fresh=True, batch_size=8).done == 37


def told(x: Tensor, first: int, condition: Condition) -> dict[str, Tensor]:
    """The same, and what came with each item."""
    (label,) = condition.positional
    return {**work(x, first), "label": label.double().expand(len(x))}


@pytest.mark.parametrize("size", [1, 5, 37, None])
def test_conditions_go_with_their_items(tmp_path, size):
    """Whatever the batches, through pieces that are halved and through an interruption."""
    labels = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    whole = evaluate(told, items(37), batch_size=size, condition=labels)
    assert np.array_equal(whole.columns["label"], labels.numpy()[whole.columns["item"]])
    part, limited = PartialResults(tmp_path / "x.part", SETTINGS), Limited(3, MemoryError())

    def stopping(x: Tensor, first: int, condition: Condition) -> dict[str, Tensor]:
        limited(x, first)
        if len(limited.sizes) == 5:
            raise KeyboardInterrupt
        return told(x, first, condition)

    stopped = evaluate(stopping, items(37), batch_size=size, condition=labels, partial=part)
    assert stopped.interrupted
    resumed = evaluate(told, items(37), batch_size=4, condition=labels, partial=part)
    assert same(resumed.columns, whole.columns)
    one = evaluate(told, items(37), batch_size=size, condition=7)
    assert (one.columns["label"] == 7.0).all()
    with pytest.raises(ValueError, match="36 rows for 37 items"):
        evaluate(told, items(37), condition=labels[1:])


def test_a_file_of_other_settings_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.part"
    evaluate(work, items(9), batch_size=3, partial=PartialResults(path, SETTINGS))
    before = path.read_bytes()
    for settings, message in {
        "seed 0, now 1": {**SETTINGS, "seed": 1},
        "another model": {**SETTINGS, "model": "b"},
        "steps None, now 8": {**SETTINGS, "steps": 8},
    }.items():
        with pytest.raises(ValueError, match=f"begun with other settings .{settings}.$"):
            evaluate(work, items(9), batch_size=3, partial=PartialResults(path, message))
    with monkeypatch.context() as other:
        other.setattr(resume, "STREAM", 1)
        with pytest.raises(ValueError, match=r"begun with other settings .noise stream 2, now 1.$"):
            PartialResults(path, SETTINGS).read()
    assert path.read_bytes() == before
    assert evaluate(work, items(9), batch_size=3, partial=PartialResults(path, dict(SETTINGS))).done == 9
    for content in (b"", b"junk", before[: len(before) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            PartialResults(path, SETTINGS).read()


VARIANTS = {
    "prediction": {"prediction": "epsilon"},
    "conditioning": {"conditioning": "time"},
    "learned variance": {"learned_variance": True},
    "moments": {"moments": Moments(torch.zeros(2), torch.ones(2))},
    "mean": {"moments": Moments(torch.ones(2), torch.ones(2), torch.eye(2))},
    "variances": {"moments": Moments(torch.zeros(2), 2.0 * torch.ones(2), torch.eye(2))},
    "basis": {"moments": Moments(torch.zeros(2), torch.ones(2), torch.eye(2).flip(0))},
    "data": {"data": DataInfo((2,), low=-2.0)},
    "process": {"sde": VPSDE(0.2)},
}


def test_a_model_is_known_by_all_that_its_figures_depend_on():
    """Each of them changes the identity; so do a condition and whatever is wrapped around."""
    net = MLP((2,), width=4, blocks=1)
    usual = {
        "sde": VPSDE(),
        "prediction": "v_prediction",
        "conditioning": "logsnr",
        "moments": Moments(torch.zeros(2), torch.ones(2), torch.eye(2)),
        "data": DataInfo((2,)),
    }
    model, data = ScoreModel(net, **usual), items(3)
    models = {name: ScoreModel(net, **{**usual, **change}) for name, change in VARIANTS.items()}
    models |= {"given": Given(model, {"y": 1}), "given more": Given(model, {"y": 2}), "given others": Given(model, 1)}
    models |= {"clip": Clip(model), "clip less": Clip(model, -2.0, 2.0), "threshold": Threshold(model)}
    models |= {"half": ScoreModel(copy.deepcopy(net).half(), **usual)}
    found = {"usual": identity(model, data), **{name: identity(each, data) for name, each in models.items()}}
    assert len({value["model"] for value in found.values()}) == len(found)
    assert len({value["data"] for value in found.values()}) == 1
    assert identity(ScoreModel(copy.deepcopy(net), **usual), data) == found["usual"]
    conditions = [identity(model, data, told).get("condition") for told in (None, 1, 2, (1, 1), {"y": 1}, [1, 2, 3])]
    assert len(set(conditions)) == len(conditions)
    assert conditions[0] is None


def test_functions_are_known_across_processes():
    """By their names, not by where they lie in memory."""

    def make():
        def network(x: Tensor, t: Tensor) -> Tensor:
            return x

        return network

    first, second = (identity(ScoreModel(make(), VPSDE()), items(3)) for _ in range(2))
    assert first == second


def test_a_model_and_data_are_known_by_their_contents():
    """Another weight, process or item is another identity; a copy is the same."""
    model, data = tiny_model(), items(3)
    own = identity(model, data)
    assert identity(tiny_model(), data.clone()) == own
    assert identity(model, data.flip(0))["data"] != own["data"]
    assert identity(model, data.double())["data"] != own["data"]
    assert identity(tiny_model(process="cosine"), data)["model"] != own["model"]
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert identity(model, data)["model"] != own["model"]


# ---- the target --------------------------------------------------------------------------------------------------


def test_the_target_is_reached_at_the_first_block_that_does():
    values = np.random.default_rng(0).normal(1e6, 1.0, size=1000)  # far from 0, where sums of squares lose digits
    errors = {count: mean_and_error(values[:count])[1] for count in range(BLOCK, 1001, BLOCK)}
    for target in (0.2, 0.1, 0.05):
        first = min(count for count, error in errors.items() if error <= target)
        assert reached(values, target) == first
        assert reached(values[: first - 1], target) is None
    assert reached(values, 0.01) is None
    assert reached(values, None) is None
    assert reached(np.empty(0), 0.1) is None


@pytest.mark.parametrize("size", [1, 10, 64, 1000])
def test_where_the_target_stops_does_not_depend_on_the_batches(tmp_path, size):
    part = PartialResults(tmp_path / "x.part", SETTINGS)
    scores = evaluate(work, items(1000), batch_size=size, target=100.0, partial=part)
    assert scores.on_target
    assert scores.done % BLOCK == 0
    assert same(scores.columns, evaluate(work, items(1000), batch_size=7, target=100.0).columns)
    assert mean_and_error(scores.values)[1] <= 100.0 < mean_and_error(scores.values[:-BLOCK])[1]
    finer = evaluate(work, items(1000), batch_size=size, target=50.0, partial=part)
    assert scores.done < finer.done < 1000
    assert not evaluate(work, items(1000), batch_size=size, target=1.0).on_target


def test_a_partial_mean_is_a_fair_estimate():
    """The mean over the first 64 of 1,000 sorted items, for 400 seeds: unbiased within 4.5 standard errors (false alarm
    7e-6), and its spread is that of drawing without replacement; in the order of the file it is far off."""
    data = np.linspace(0.0, 1.0, 1000) ** 3
    means = np.array([data[order(1000, seed)[:64]].mean() for seed in range(400)])
    spread = data.std() / math.sqrt(64) * math.sqrt((1000 - 64) / 999)
    bound = 4.5 * spread / math.sqrt(400)
    assert abs(means.mean() - data.mean()) < bound
    assert abs(data[:64].mean() - data.mean()) > 4.5 * spread
    assert means.std() == pytest.approx(spread, rel=4.5 / math.sqrt(2 * 400))


# ---- memory ------------------------------------------------------------------------------------------------------


def test_peak_memory_is_exact():
    """Bytes alive at the worst moment: what a graph keeps counts, views and what was there before do not."""
    weight = torch.ones(1000, 100)
    with PeakMemory([weight]) as memory:
        x = torch.ones(50, 1000)  # 200 kB
        y = x @ weight  # 20 kB
        del x
        z = weight.t()[:, :10] + 1.0  # 4 kB
        torch.empty(10_000)  # 40 kB, gone at once
    assert memory.peak == 4 * 50 * 1000 + 4 * 50 * 100
    assert y.shape == (50, 100)
    assert z.shape == (100, 10)
    with PeakMemory() as memory:
        x = torch.ones(1000, requires_grad=True)
        y = (x.exp() * 2.0).sum()  # the graph keeps the exponential
        assert y.requires_grad
    with PeakMemory() as without, torch.no_grad():
        x = torch.ones(1000)
        x = x.exp()
        x = x * 2.0
        x.sum()
    assert (memory.peak, without.peak) == (3 * 4 * 1000 + 4, 2 * 4 * 1000)  # the sum comes when all or one is left


def test_fitting_is_in_proportion(monkeypatch):
    """Powers of two below what fits, whatever memory this machine has to spare just now."""
    cpu, room = torch.device("cpu"), 100 << 20
    monkeypatch.setattr(memory, "free_memory", lambda device: room / memory._MEMORY_SHARE)
    for items in (1, 3, 64, 1000):
        most = 1 << (items.bit_length() - 1)
        assert fitting(room / (items + 0.5), cpu) == most
        assert fitting(room / (items + 0.5) / 2, cpu, processes=2) == most
    assert fitting(1e15, cpu) == 1
    assert fitting(1e-3, cpu) == 1 << 16
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e15)  # more than the cache is no use to a processor
    assert fitting(memory.CACHE / 64.5, cpu) == 64


class Limited:
    """Work that fails above a number of items, as an allocator would."""

    def __init__(self, limit: int, failure: Exception) -> None:
        self.limit, self.failure, self.sizes = limit, failure, []

    def __call__(self, x: Tensor, first: int) -> dict[str, Tensor]:
        if len(x) > self.limit:
            raise self.failure
        self.sizes.append(len(x))
        return work(x, first)


def test_shares_are_halved_where_memory_runs_out():
    limited = Limited(5, torch.OutOfMemoryError("CUDA out of memory"))
    assert same(evaluate(limited, items(23), batch_size=20).columns, evaluate(work, items(23), batch_size=20).columns)
    assert limited.sizes == [5, 5, 5, 5, 3]


def test_a_batch_of_one_where_not_even_the_first_few_fit():
    limited = Limited(1, MemoryError())
    assert same(evaluate(limited, items(6)).columns, evaluate(work, items(6), batch_size=3).columns)
    assert limited.sizes == [1] * 6


def test_memory_is_measured_on_a_few_forwards_of_the_model():
    """Work is broken off after five of them; the model keeps no hook, and its weights cost nothing."""
    model, calls = torch.nn.Linear(1000, 10), []

    def repeated() -> None:
        for _ in range(20):
            calls.append(model(torch.ones(1, 1000)))

    with torch.no_grad():
        taken = peak_memory(repeated, model)
    assert len(calls) == 5
    assert taken == 4 * 1000 + 5 * 4 * 10  # one input at a time, and five outputs that are kept
    calls.clear()
    repeated()
    assert len(calls) == 20


# ---- several processes -------------------------------------------------------------------------------------------


def tiny_model(process: str = "vp"):
    config = Config().updated(
        {"data.name": "moons", "network.name": "mlp", "network.width": 8, "network.blocks": 1, "sde.name": process}
    )
    model = build(config, load_dataset("moons").info)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the last layer of an untrained network is zero
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return model


def test_two_processes_find_what_one_does(tmp_path):
    """Two gloo processes: the same rows to the last bit from the loop, to rounding from the command, and none hangs."""
    save(tiny_model(), tmp_path / "run")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32))
    args = [str(tmp_path / "x.npy"), "--run", str(tmp_path / "run"), "--steps", "4", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    command += [str(Path(distributed_likelihood.__file__)), str(tmp_path), *args, "--batch-size", "2"]
    command += ["--out", str(tmp_path / "two.npz")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("mean and standard error") == 1  # one of them speaks
    for name, (count, size) in distributed_likelihood.CASES.items():
        target = 2.0 if name == "measured" else None
        expected = evaluate(distributed_likelihood.work, items(count), seed=3, batch_size=size, target=target)
        with np.load(tmp_path / f"{name}.npz") as arrays:
            assert same(dict(arrays), expected.columns), name
    with np.load(tmp_path / "told.npz") as arrays:
        assert np.array_equal(arrays["label"], arrays["item"])
        assert len(arrays["item"]) == 11
    one = CliRunner().invoke(main, ["likelihood", *args, "--out", str(tmp_path / "one.npz")])
    assert one.exit_code == 0, one.stderr
    with np.load(tmp_path / "one.npz") as single, np.load(tmp_path / "two.npz") as double:
        assert single.files == double.files
        for name in single.files:  # float32 sums over a solve
            np.testing.assert_allclose(single[name], double[name], atol=1e-4)


def test_done_of_nothing_is_nothing():
    assert Evaluation({}, 5, 0.0).done == 0
