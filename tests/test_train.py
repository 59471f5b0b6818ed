"""``sdediff.train``: data of any form, networks of one's own, conditions, callbacks; and the loss of a model."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import sdediff
from sdediff.analytic import Gaussian, GaussianMixture
from sdediff.cli import main
from sdediff.conditions import Condition, ConditionLike
from sdediff.config import Config
from sdediff.data import load_dataset
from sdediff.denoiser import Denoiser
from sdediff.denoising import output_loss
from sdediff.networks import NETWORKS
from sdediff.networks.told import Told
from sdediff.parametrization import PREDICTIONS
from sdediff.score_model import ScoreModel
from sdediff.training import Objective, TrainResult
from sdediff.training.labels import Labels, check_rows
from sdediff.training.record import read_record
from sdediff.types import Split

QUICK: dict[str, Any] = {
    "steps": 6,
    "batch_size": 16,
    "warmup": 2,
    "log_every": 2,
    "held_out_every": 3,
    "sample_every": 0,
    "device": "cpu",
    "progress": False,
}
SMALL: dict[str, Any] = {**QUICK, "network.width": 8, "network.blocks": 1}


class Net(nn.Module):
    """Somebody's network, of items of any shape; one more parameter than the library's have."""

    def __init__(self, shape: tuple[int, ...], classes: int | None = None, hidden: int = 8) -> None:
        super().__init__()
        size = math.prod(shape)
        self.told = nn.Embedding(1 + (classes or 0), hidden)
        self.enter, self.leave = nn.Linear(size + 1, hidden), nn.Linear(hidden, size)

    def forward(self, x: Tensor, conditioning: Tensor, label: Tensor | None = None) -> Tensor:
        hidden = self.enter(torch.cat([x.flatten(1), conditioning[:, None]], dim=1))
        hidden = hidden if label is None else hidden + self.told(label)
        return self.leave(torch.tanh(hidden)).reshape(x.shape)


def items(n: int = 120) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.2])


def weights(model: Denoiser) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def same(one: TrainResult, other: TrainResult) -> bool:
    return torch.equal(weights(one.model), weights(other.model))


# ---- data --------------------------------------------------------------------------------------------------------


def test_the_form_of_the_data_changes_nothing(tmp_path: Path) -> None:
    """A tensor, an array of either precision, a file and a data set of the same items; other items are told apart."""
    x = items()
    np.save(tmp_path / "x.npy", x.numpy())
    forms: list[Any] = [x, x.double(), x.numpy(), str(tmp_path / "x.npy"), load_dataset(tmp_path / "x.npy")]
    runs = [sdediff.train(form, **SMALL) for form in forms]
    assert all(same(runs[0], run) for run in runs[1:])
    assert runs[0].model.data is not None
    assert runs[0].model.data.scale is not None  # standardised inside
    assert not same(runs[0], sdediff.train(2.0 * x + x.square(), **SMALL))
    raw = sdediff.train(x, **{**SMALL, "data.standardise": False}).model.data
    assert raw is not None
    assert raw.scale is None


def test_bytes_are_levels() -> None:
    x = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    run = sdediff.train(x, "mlp", **SMALL)
    assert run.model.data is not None
    assert (run.model.data.shape, run.model.data.levels) == ((1, 4, 4), 256)


def test_nothing_is_written_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = sdediff.train(items(), **SMALL)
    assert run.run_dir is None
    assert list(tmp_path.iterdir()) == []
    assert [line["step"] for line in run.metrics if "loss" in line] == [2, 4, 6]
    kept = sdediff.train(items(), run="mine", **{**SMALL, "sample_every": 3})
    assert same(run, kept)
    assert torch.equal(weights(sdediff.load("mine")), weights(run.model))
    assert [path.name for path in sorted(Path("mine/samples").iterdir())] == ["step_000003.png", "step_000006.png"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator("mine/tb").Reload()
    assert [event.step for event in board.Images("samples")] == [3, 6]
    assert [dict(line) for line in kept.metrics] == read_record(Path("mine"))
    again = sdediff.train(items(), run="mine", resume=True, **{**SMALL, "sample_every": 3})
    assert same(again, kept)


@pytest.mark.parametrize(
    ("data", "changes", "words"),
    [
        (["a", "b"], {}, "the data: data must be integers or floats, not text"),
        ([1.0, 2.0], {}, "must be an array (n, ...)"),
        ("no-such-data", {}, "neither a path nor one of"),
        (items(), {"stepz": 3}, "unknown setting 'stepz' (did you mean 'steps'?); choose one of: sde, prediction"),
        (items(), {"network": "nett"}, "unknown network 'nett'"),
        (items(), {"network": "nowhere:Net"}, "the network nowhere:Net cannot be imported: No module named 'nowhere'"),
        (items(), {"network": 3}, "a network of one's own is a torch module or a class that makes one, not 3"),
        (items(), {"condition": torch.zeros(3, dtype=torch.int64)}, "the condition has 3 rows for 120 items"),
        (items(), {"condition": ["a"] * 120}, "a condition is labels or vectors"),
        (items(), {"resume": True}, "nothing to resume without the folder"),
        (items(), {"accumulate": 5}, "16 items of a batch cannot be shared evenly by 5 parts"),
        (items(), {"channels_last": True}, "channels_last is for images (C, H, W) and volumes (C, D, H, W)"),
        (items(), {"trackers": ["pen"]}, "unknown tracker 'pen'; choose one of"),
        (items(), {"precision": "float8"}, "training.precision"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(data: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        sdediff.train(data, **{**QUICK, **changes})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- networks of one's own ----------------------------------------------------------------------------------------


def test_a_class_and_a_module_are_trained_saved_and_loaded(tmp_path: Path) -> None:
    run = sdediff.train(items(), Net, tmp_path / "class", **{**QUICK, "network.hidden": "6"})
    assert run.model.network.leave.in_features == 6  # type: ignore[attr-defined]
    x = items(5)
    for given in (Net, Net((2,), hidden=6), f"{Net.__module__}:Net"):
        loaded = sdediff.load(tmp_path / "class", network=given)
        assert torch.equal(loaded.epsilon(x, 0.5), run.model.epsilon(x, 0.5))
    with pytest.raises(ValueError, match=r"of another network than the one given: .* other shapes"):
        sdediff.load(tmp_path / "class", network=lambda **_: Net((2,), hidden=7))
    net = Net((2,))
    before = weights(ScoreModel(net, sdediff.VPSDE()))
    trained = sdediff.train(items(), net, tmp_path / "object", **{**QUICK, "ema": 0.0})
    assert torch.equal(weights(ScoreModel(net, sdediff.VPSDE())), before)  # a copy is trained, from these weights
    assert 0.0 < float((weights(trained.model) - before).abs().max()) < 0.1
    loaded = sdediff.load(tmp_path / "object", network=Net((2,)))
    assert torch.equal(loaded.epsilon(x, 0.5), trained.model.epsilon(x, 0.5))


def test_a_class_draws_its_own_weights_by_the_seed(global_generators_untouched: None) -> None:
    nothing = {**QUICK, "learning_rate": 1e-30, "weight_decay": 0.0}
    one, again, other = (sdediff.train(items(), Net, **nothing, seed=seed) for seed in (0, 0, 1))
    assert same(one, again)
    assert not same(one, other)
    assert float(one.model.network.told.weight.detach().abs().max()) > 1.0  # type: ignore[attr-defined]  # its own law: normal


def test_a_run_of_ones_own_network_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = sdediff.train(items(), Net, tmp_path / "whole", schedule="constant", **QUICK)
    sdediff.train(items(), Net, tmp_path / "run", schedule="constant", **{**QUICK, "steps": 4})
    with pytest.raises(ValueError, match=r"other settings: network\.name"):
        sdediff.train(items(), "mlp", tmp_path / "run", schedule="constant", resume=True, **QUICK)
    assert same(sdediff.train(items(), Net, tmp_path / "run", schedule="constant", resume=True, **QUICK), whole)


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module that says when it is imported."""
    text = Path(__file__).read_text()
    body = text[text.index("class Net(") : text.index("def items(")]
    head = "from __future__ import annotations\nimport math, pathlib, torch\nfrom torch import Tensor, nn\n"
    (tmp_path / "shop.py").write_text(head + "pathlib.Path('imported').touch()\n" + body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    return tmp_path


def test_a_network_of_ones_own_from_the_shell(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, sampled, scored, compared and tuned by its place; without it every verb says how and imports nothing."""
    args = ["train", "--data", "moons", "--steps", 4, "--batch-size", 8, "--set", "network.hidden=6"]
    done = call(*args, "--set", "network.name=shop:Net", "--run", "runs/one")
    assert done.exit_code == 0, done.stderr
    assert "sample --run runs/one --network shop:Net" in done.stdout
    other = call(*args, "--network", "shop:Net", "--run", "runs/two")
    assert other.exit_code == 0, other.stderr
    first, second = (Path("runs") / run / "model.safetensors" for run in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    monkeypatch.delitem(sys.modules, "shop")
    Path("imported").unlink()
    verbs: list[list[object]] = [
        ["sample", "--run", "runs/one", "-n", 4, "--steps", 3],
        ["likelihood", "moons", "--run", "runs/one", "-n", 3, "--steps", 3],
        ["encode", "--run", "runs/one", "-n", 2, "--solver", "reversible", "--steps", 6],
        ["compare", "--run", "runs/one", "--solver", "ddim", "--forwards", 4, "--count", 3],
        ["tune", "--run", "runs/one", "--steps", 4, "--trajectories", 16, "--held-out", 8, "--iterations", 2],
        ["info", "--run", "runs/one"],
        ["train", "--resume", "--run", "runs/one", "--steps", 5],
    ]
    for verb in verbs:
        refused = call(*verb)
        assert refused.exit_code == 2, refused.output
        assert "as --network shop:Net" in refused.stderr, verb
    with pytest.raises(ValueError, match="give it as network="):
        sdediff.load("runs/one")
    assert not Path("imported").exists()
    for verb in verbs:
        done = call(*verb, "--network", "shop:Net")
        assert done.exit_code == 0 or verb[0] == "tune", (verb, done.output)  # which exits 1 where nothing is gained
    assert Path("imported").exists()
    assert "has no Nix" in call("info", "--run", "runs/one", "--network", "shop:Nix").stderr
    assert "is named package.module:Class" in call("info", "--run", "runs/one", "--network", "shop").stderr


def test_the_librarys_networks_need_no_network(tmp_path: Path) -> None:
    sdediff.train(items(), "mlp", tmp_path / "run", **SMALL)
    with pytest.raises(ValueError, match="is the library's 'mlp': network= is for networks of your own"):
        sdediff.load(tmp_path / "run", network=Net)


# ---- conditions ---------------------------------------------------------------------------------------------------


def test_labels_reach_the_network_and_some_are_withheld() -> None:
    """What the network is called with: the labels of the very items, a share of them replaced by the null label."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Looking(Net):
        def forward(self, x: Tensor, conditioning: Tensor, label: Tensor | None = None) -> Tensor:
            assert label is not None
            if torch.is_grad_enabled():
                seen.append((x, label))
            return super().forward(x, conditioning, label)

    labels = torch.arange(400) % 3
    x = torch.stack([labels.float(), torch.arange(400.0)], dim=1)  # the state says which item it is, near the data
    vp = {"sde": "vp", "conditioning": "time", "time_law": "logsnr"}
    run = sdediff.train(x, Looking, condition=labels, label_dropout=0.25, **vp, **{**QUICK, "batch_size": 200})
    assert run.model.network.told.num_embeddings == 4  # type: ignore[attr-defined]
    told = torch.cat([label for _, label in seen])
    share = float((told == 3).double().mean())
    assert abs(share - 0.25) < 5.0 * math.sqrt(0.25 * 0.75 / len(told))  # false alarms: 6e-7
    for state, label in seen:
        clean = state[:, 0] * 0.8165 + 1.0  # one class is a third: the deviation of 0, 1, 2 is 0.8165
        near = (clean - clean.round()).abs() < 0.02
        right = (clean.round() == label)[near & (label != 3)]
        assert float(right.double().mean()) > 0.8
    assert len({tuple(label.tolist()) for _, label in seen}) == len(seen)


def test_withheld_rows_are_a_function_of_seed_and_step() -> None:
    rows, chosen, told = torch.arange(50) % 5, np.arange(50), Told(classes=5, features=2)

    def of(seed: int, step: int, dropout: float = 0.5, value: ConditionLike = rows) -> Tensor:
        (found,) = Labels(Condition.of(value), told, seed, dropout)(step, chosen).tensors()
        return found

    assert torch.equal(of(7, 3), of(7, 3))
    assert not torch.equal(of(7, 3), of(7, 4))
    assert not torch.equal(of(7, 3), of(8, 3))
    assert torch.equal(of(7, 3, dropout=0.0), rows)
    vectors = of(7, 3, value={"vector": torch.ones(50, 2)})
    assert torch.equal(vectors.isnan().all(dim=1), of(7, 3) == 5)
    both = Labels(Condition.of((rows, torch.ones(50, 2))), told, 7, 0.5)(3, chosen)  # withheld together
    assert torch.equal(both.positional[0], of(7, 3))
    assert torch.equal(both.positional[1].isnan(), vectors.isnan())
    assert torch.equal(vectors.isnan().any(dim=1), vectors.isnan().all(dim=1))


def test_what_a_network_is_told() -> None:
    net = Net((2,), classes=3)
    assert Told.by(net) == (None, None)
    net.config = {"classes": 3}  # type: ignore[assignment]
    assert Told.by(net) == (3, None)
    for rows, words in (
        (torch.tensor([0, 3]), "knows labels 0 .. 2; came 0 to 3"),
        (torch.tensor([0.0, 1.0]), "class labels are whole numbers"),
        (torch.tensor([0]), "the condition has 1 rows for 2 items"),
        (None, "a network of 3 classes needs labels"),
    ):
        with pytest.raises(ValueError, match=words):
            check_rows(Told.by(net), rows, 2)


def test_a_conditional_model_learns_its_classes() -> None:
    """Two points far apart, one a class: under a label the samples lie at its own point, without one at either."""
    labels = torch.arange(400) % 2
    x = torch.where(labels[:, None] == 1, 2.0, -2.0) + 0.1 * items(400)
    settings = {**QUICK, "steps": 400, "batch_size": 64, "learning_rate": 1e-2, "ema": 0.95, "network.hidden": 32}
    model = sdediff.train(x, Net, condition=labels, **settings).model
    for label in (0, 1):
        mean = float(sdediff.sample(model, (64, 2), steps=10, condition=label)[:, 1].mean())
        assert abs(mean - (4.0 * label - 2.0)) < 0.5
    null = sdediff.sample(model, (64, 2), steps=10, condition=2)[:, 1]
    assert 0.2 < float((null > 0.0).double().mean()) < 0.8


def test_conditions_of_a_network_without_a_number_of_classes() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, x: Tensor, conditioning: Tensor, vector: Tensor) -> Tensor:
            out: Tensor = self.layer(torch.cat([x, conditioning[:, None], vector], dim=1))
            return out

    run = sdediff.train(items(), Told(), condition=items().square(), **QUICK)
    assert sdediff.sample(run.model, (3, 2), steps=3, condition=items(3)).shape == (3, 2)


def test_the_number_of_classes_follows_from_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Net):
        def __init__(self, shape: tuple[int, ...], hidden: int = 8) -> None:
            super().__init__(shape, hidden=hidden)

    monkeypatch.setitem(NETWORKS, "told", Net)
    monkeypatch.setitem(NETWORKS, "plain", Plain)
    labels = torch.arange(120) % 4
    run = sdediff.train(items(), "told", condition=labels, **QUICK)
    assert run.model.network.told.num_embeddings == 5  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the network 'plain' takes no classes, which this condition needs"):
        sdediff.train(items(), "plain", condition=labels, **QUICK)
    more = sdediff.train(items(), "told", condition=labels, **{**QUICK, "network.classes": 7})
    assert more.model.network.told.num_embeddings == 8  # type: ignore[attr-defined]


# ---- callbacks ----------------------------------------------------------------------------------------------------


def test_a_callback_sees_every_line_and_may_end_the_run(tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []

    def look(step: int, numbers: Any) -> bool:
        seen.append((step, dict(numbers)))
        return step >= 3 and "held_out_loss" in numbers

    run = sdediff.train(items(), run=tmp_path / "run", on_metrics=look, **SMALL)
    assert run.interrupted
    assert run.steps == 4  # the step after
    assert [{"step": step, **numbers} for step, numbers in seen] == [dict(line) for line in run.metrics]
    whole = sdediff.train(items(), run=tmp_path / "whole", **SMALL)
    assert same(sdediff.train(items(), run=tmp_path / "run", resume=True, **SMALL), whole)


def test_a_trained_model_can_be_trained_on() -> None:
    module = Net((2,))
    module.enter.requires_grad_(requires_grad=False)
    first = sdediff.train(items(), network=module, **QUICK)
    second = sdediff.train(items(), network=first.model.network, **QUICK)
    assert not torch.equal(weights(first.model), weights(second.model))
    frozen = [run.model.network.enter.weight for run in (first, second)]  # what was frozen still is
    assert torch.equal(*frozen)
    assert torch.equal(frozen[0], module.enter.weight)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_held_out_items_come_in_parts_of_the_size_of_training(accumulate: int) -> None:
    sizes: set[int] = set()

    class Counted(Net):
        def forward(self, x: Tensor, conditioning: Tensor, label: Tensor | None = None) -> Tensor:
            sizes.add(len(x))
            return super().forward(x, conditioning, label)

    module, x, labels = Counted((2,), classes=3), items(605), torch.arange(605) % 3
    run = sdediff.train(x, network=module, condition=labels, accumulate=accumulate, **QUICK)
    assert max(sizes) == 16 // accumulate  # 121 held-out items
    at_once = {**QUICK, "batch_size": 256, "steps": 1, "learning_rate": 1e-12, "warmup": 0}
    sizes.clear()
    again = sdediff.train(x, network=run.model.network, condition=labels, **at_once)
    assert 121 in sizes
    assert again.held_out_loss == pytest.approx(run.held_out_loss, rel=1e-5)


def test_trackers_of_accelerate_get_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate.tracking as tracking

    told: list[tuple[int | None, dict[str, Any]]] = []

    class Pen(tracking.GeneralTracker):  # type: ignore[misc]
        name, requires_logging_directory = "pen", False

        def __init__(self, run_name: str, **_: Any) -> None:
            super().__init__()
            told.append((None, {"project": run_name}))

        @property
        def tracker(self) -> None:
            return None

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            told.append((None, values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            told.append((step, values))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "pen", Pen)
    available = tracking.get_available_trackers
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ValueError, match="the tracker wandb is not installed: pip install wandb"):
        sdediff.train(items(), trackers=["wandb"], **SMALL)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [*available(), "pen"])
    run = sdediff.train(items(), trackers=["pen"], **SMALL)
    assert told[0] == (None, {"project": "sdediff"})
    assert told[1][1]["training.steps"] == 6
    assert [{"step": step, **values} for step, values in told[2:]] == [dict(line) for line in run.metrics]


# ---- the loss of a model ------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """An exact denoiser whose noise half is wrong by a factor."""

    def __init__(self, exact: Denoiser, factor: float) -> None:
        super().__init__()
        self.exact, self.factor = exact, factor

    def forward(self, x: Tensor, level: Any) -> Any:
        return PREDICTIONS["epsilon"].split(self.factor * self.exact(x, level).eps, x, level)


@pytest.mark.parametrize(
    "sde", [sdediff.CosineVPSDE(), sdediff.SubVPSDE(), sdediff.VESDE(), sdediff.RectifiedFlow()], ids=repr
)
def test_the_loss_is_the_default_objective(sde: sdediff.SDE) -> None:
    """On the same draws, to rounding; another weighting is another loss."""
    model = Gaussian(torch.zeros(3), 0.3).model(sde)
    x, kept = items(64).repeat(1, 2)[:, :3], {}

    def keep(inner: Denoiser, x0: Tensor, u: Tensor, eps: Tensor) -> Tensor:
        kept["draws"] = (x0, u, eps)
        return Objective(inner.sde, "uniform", "velocity").loss(inner, x0, u, eps)

    by_objective = model.loss(x, seed=1, step=2, objective=keep)
    torch.testing.assert_close(model.loss(x, seed=1, step=2), by_objective, rtol=1e-4, atol=1e-6)
    u = kept["draws"][1]
    assert sorted((u * 64).long().tolist()) == list(range(64))
    other = Objective(model.sde, "uniform", "simple").loss(model, *kept["draws"])
    assert float((other - by_objective).abs().max()) > 0.1


@pytest.mark.parametrize("sde", [sdediff.DDPM.linear(1000), sdediff.DDPM.cosine(1000), sdediff.RectifiedFlow()])
@pytest.mark.parametrize("name", list(PREDICTIONS))
def test_the_loss_is_the_error_of_what_the_network_predicts(name: str, sde: sdediff.SDE) -> None:
    """Of a network that says 0, the mean square of the target (of the score's in units of 1 / sigma): of order one."""
    model = sdediff.ScoreModel(lambda x, t: torch.zeros_like(x), sde, name)
    x0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws: list[tuple[Tensor, Tensor]] = []

    def keep(inner: Denoiser, x0: Tensor, u: Tensor, eps: Tensor) -> Tensor:
        draws.append((u, eps))
        return output_loss(inner, x0, u, eps)

    losses = model.loss(x0, seed=0, objective=keep)
    ((u, eps),) = draws
    level = sde.level(sde.t_min + (sde.t_max - sde.t_min) * u)
    target = PREDICTIONS[name].target(Split(x0, eps), level)
    if name == "score":
        target = target * torch.as_tensor(level.sigma)[:, None]
    torch.testing.assert_close(losses.double(), target.double().square().mean(dim=1), rtol=1e-3, atol=1e-3)
    assert float(losses.max()) < 20.0


def test_the_loss_of_the_exact_model_has_its_closed_form() -> None:
    """For N(0, s^2) the velocity has posterior variance ``s^2 / (cos^2 s^2 + sin^2)`` an entry; t is uniform.

    False-alarm probability 5e-7 (5 standard errors), over strata fewer; a noise estimate 20 % too large is caught.
    """
    sde, variance, n = sdediff.CosineVPSDE(), 0.3, 20_000
    exact = Gaussian(torch.zeros(4), variance).model(sde)
    x = math.sqrt(variance) * torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = sde.t_min + (sde.t_max - sde.t_min) * (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    level = sde.level(t)
    expected = float((variance / (level.cos**2 * variance + level.sin**2)).mean())
    losses = exact.loss(x, seed=3)
    assert losses.shape == (n,)
    error = float(losses.std()) / math.sqrt(n)
    assert abs(float(losses.mean()) - expected) < 5.0 * error
    wrong = Denoiser.loss(_AsDenoiser(Scaled(exact, 1.2), exact), x, seed=3)
    assert abs(float(wrong.mean()) - expected) > 5.0 * float(wrong.std()) / math.sqrt(n)


class _AsDenoiser(Denoiser):
    def __init__(self, inner: nn.Module, exact: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde, self.moments, self.data = inner, exact.sde, None, None

    def forward(self, x: Tensor, level: Any) -> Any:
        return self.inner(x, level)


def test_the_draws_of_the_loss(global_generators_untouched: None) -> None:
    """Functions of seed and step; without a seed, new ones every time; integers are dequantised over their bins."""
    model = Gaussian(torch.zeros(2), 0.3).model(sdediff.VPSDE())
    x = items(32)
    assert torch.equal(model.loss(x, seed=1, step=4), model.loss(x, seed=1, step=4))
    assert not torch.equal(model.loss(x, seed=1, step=4), model.loss(x, seed=1, step=5))
    assert not torch.equal(model.loss(x, seed=1), model.loss(x, seed=2))
    assert not torch.equal(model.loss(x), model.loss(x))
    levels = torch.randint(0, 5, (4000, 2), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="are continuous: they have no integer levels"):
        model.loss(levels)
    model.data = sdediff.DataInfo((2,), levels=5, low=0.0, high=4.0)
    values: list[Tensor] = []
    model.loss(levels, seed=0, objective=lambda _, x0, u, eps: values.append(x0) or u)  # type: ignore[func-returns-value]
    within = (values[0] - levels + 0.5).double().flatten().sort().values
    grid = (torch.arange(len(within), dtype=torch.float64) + 0.5) / len(within)
    assert float((within - grid).abs().max()) < math.sqrt(0.5 * math.log(2.0 / 1e-6) / len(within))


def test_the_loss_of_a_wrapped_and_a_conditional_model() -> None:
    mixture = GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], [0.1, 0.3]).model(sdediff.VPSDE())
    x = items(16)
    assert torch.equal(sdediff.Clip(mixture, -99.0, 99.0).loss(x, seed=0), mixture.loss(x, seed=0))
    assert not torch.equal(sdediff.Clip(mixture, -0.1, 0.1).loss(x, seed=0), mixture.loss(x, seed=0))
    torch.manual_seed(0)
    model, labels = ScoreModel(Net((2,), classes=3), sdediff.VPSDE()), torch.arange(16) % 3
    told = model.loss(x, labels, seed=0)
    assert torch.equal(told, model.given(labels).loss(x, seed=0))
    assert not torch.equal(told, model.loss(x, seed=0))
    told.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="15 rows for 16 items"):
        model.loss(x, labels[:15], seed=0)


def test_a_loop_of_ones_own_trains() -> None:
    """In five lines, as far as the library's loop: the loss falls well below that of a network that knows nothing."""
    torch.manual_seed(0)
    x, net = torch.tensor([2.0, -1.0]) + 0.1 * items(256), Net((2,), hidden=32)
    model = ScoreModel(net, sdediff.CosineVPSDE(), "v_prediction", conditioning="logsnr")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(300):
        optimizer.zero_grad()
        model.loss(x[torch.arange(64 * step, 64 * step + 64) % 256], seed=0, step=step).mean().backward()
        optimizer.step()
    with torch.no_grad():
        nothing = ScoreModel(lambda x, t: torch.zeros_like(x), sdediff.CosineVPSDE(), "v_prediction")
        assert float(model.loss(x, seed=1).mean()) < 0.2 * float(nothing.loss(x, seed=1).mean())


# ---- the configuration -------------------------------------------------------------------------------------------


def test_a_configuration_names_code_and_does_not_import_it(shop: Path) -> None:
    config = Config().updated({"network.name": "shop:Net", "network.hidden": "6"})
    (shop / "c.json").write_text(config.to_json())
    assert Config.load(shop / "c.json") == config
    assert not (shop / "imported").exists()
    refused = call("train", "--config", "c.json", "--data", "moons", "--steps", 2)
    assert refused.exit_code == 2
    assert "as --network shop:Net" in refused.stderr
    assert not (shop / "imported").exists()


def test_a_condition_by_name_and_alone() -> None:
    """As every other verb takes it: a tensor, a tuple, a dict; a name that the network does not take is refused."""
    labels, settings = torch.arange(120) % 3, {**QUICK, "network.width": 8, "network.blocks": 1}
    runs = [sdediff.train(items(), "mlp", condition=c, **settings) for c in (labels, {"label": labels}, (labels,))]
    assert runs[0].model.told.classes == 3
    weights = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    vectors = sdediff.train(items(), "mlp", condition={"vector": items()}, **settings).model
    assert vectors.told.features == 2
    for wrong, missing in (({"mood": labels}, "mood"), ({"label": labels, "mood": labels}, "mood")):
        with pytest.raises(ValueError, match=f"the network 'mlp' takes no {missing}"):
            sdediff.train(items(), "mlp", condition=wrong, **settings)
    with pytest.raises(ValueError, match="have no labels"):
        sdediff.train(items(), "mlp", condition=(), **settings)
    with pytest.raises(ValueError, match="the tensors of a condition have 3 and 120 rows"):
        sdediff.train(items(), "mlp", condition=(labels, items()[:3]), **settings)


def test_labels_and_vectors_at_once_reach_the_network() -> None:
    """Each item with its own of either, by place and by name, in training and where the model is used."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Both(nn.Module):
        def __init__(self, classes: int, features: int) -> None:
            super().__init__()
            self.config = {"classes": classes, "features": features}
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, conditioning: Tensor, label: Tensor, vector: Tensor) -> Tensor:
            seen.append((x, label, vector))
            out: Tensor = self.layer(torch.cat([x, conditioning[:, None]], dim=1))
            return out + 0.0 * vector.nan_to_num()

    labels = torch.arange(120) % 3
    vectors = torch.stack([labels.float(), torch.arange(120.0)], dim=1)
    settings = {**QUICK, "label_dropout": 0.0}
    for condition in ((labels, vectors), {"vector": vectors, "label": labels}):
        seen.clear()
        run = sdediff.train(items(), Both, condition=condition, **settings)
        assert run.model.told == Told(3, 2)
        assert all(torch.equal(vector[:, 0], label.float()) for _, label, vector in seen)
        assert len({float(number) for _, _, vector in seen for number in vector[:, 1]}) > 60
    model = sdediff.train(items(), "mlp", condition={"label": labels, "vector": vectors}, **settings).model
    assert model.told == Told(3, 2)
    told = {"label": labels[:4], "vector": vectors[:4]}
    assert sdediff.sample(model, (4, 2), steps=2, condition=told, guidance=2.0).shape == (4, 2)
    assert sdediff.log_likelihood(model, items(4), condition=told, steps=4).log_prob.shape == (4,)


def test_the_package_logs_under_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it reads and writes, and nothing louder."""
    with caplog.at_level("INFO", "sdediff"):
        sdediff.train(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), run=tmp_path / "run", **SMALL)
        sdediff.load(tmp_path / "run")
    said = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert ("sdediff.training.state", "INFO", f"saved the state in {tmp_path / 'run'} after 6 steps") in said
    assert said[-1] == ("sdediff.checkpoint", "INFO", f"loaded the model in {tmp_path / 'run'}")
    assert {level for name, level, _ in said if name.startswith("sdediff")} == {"INFO"}
