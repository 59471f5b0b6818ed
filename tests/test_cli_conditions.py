"""What the network is told on the command line: an exact conditional Gaussian, by a value for all and by labels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from sdediff import VPSDE, DataInfo, ScoreModel, checkpoint, sample
from sdediff.checkpoint import save
from sdediff.cli import main
from sdediff.data import DATASETS, Dataset
from sdediff.evaluation import LIKELIHOOD_METHODS
from sdediff.gaussian import Moments

SDE = VPSDE()
COUNT, SHAPE = 12, (2,)


class Told(nn.Module):
    """``E[x0 | x_t]`` of data ``N(c, I)`` on a variance-preserving process, of the class c that it is told."""

    seen: ClassVar[set[float]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.seen.update(y.tolist())
        alpha = SDE.alpha(t).to(x.dtype)[:, None]
        return self.weight * (y[:, None] + alpha * (x - alpha * y[:, None]))


def labelled(seed: int = 0) -> Dataset:
    """Items of the classes -2 .. 2, in random order."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(-2, 3, (COUNT,), generator=generator)
    items = labels[:, None] + torch.randn(COUNT, *SHAPE, generator=generator)
    return Dataset(items, items, DataInfo(SHAPE), labels, labels)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(checkpoint.SAVED_NETWORKS, "told", Told)
    monkeypatch.setitem(DATASETS, "labelled", labelled)
    monkeypatch.setitem(DATASETS, "unlabelled", lambda seed=0: Dataset(*[torch.zeros(3, 2)] * 2, DataInfo(SHAPE)))
    monkeypatch.setattr(Told, "seen", set())
    moments = Moments.fit(labelled().train)
    save(ScoreModel(Told(), SDE, "sample", data=DataInfo(SHAPE), moments=moments), tmp_path / "run")
    return tmp_path / "run"


def call(command: str, *args: object) -> Result:
    return CliRunner().invoke(main, [command, *(str(arg) for arg in args)])


def done(command: str, *args: object) -> dict[str, Any]:
    result = call(command, *args, "--json")
    assert result.exit_code == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def log_prob(x: Tensor, labels: Tensor) -> np.ndarray:
    """Nats, of ``N(c, I)``."""
    return (-0.5 * ((x - labels[:, None]) ** 2).sum(dim=1) - math.log(2.0 * math.pi)).double().numpy()


@pytest.mark.parametrize("size", [5, None])
def test_every_item_is_scored_under_its_label(run: Path, tmp_path: Path, size: int | None) -> None:
    """Against the closed form but for the prior, which leaves out ``alpha c``, 0.0066 c; other labels are nats off."""
    args = ["labelled", "--run", run, "--labels", "y", "--prior", "standard", "--out", tmp_path / "x.npz"]
    done("likelihood", *args, *(() if size is None else ("--batch-size", size)))
    data = labelled()
    with np.load(tmp_path / "x.npz") as table:
        found, places = table["log_prob"], table["item"]
    assert places.tolist() == list(range(COUNT))
    exact = log_prob(data.held_out, data.held_out_labels)
    np.testing.assert_allclose(found, exact, atol=0.0066 * 2.0 * 4.0)
    assert np.abs(log_prob(data.held_out, data.held_out_labels.flip(0)) - exact).max() > 1.0


def test_labels_of_a_file_are_told(run: Path, tmp_path: Path) -> None:
    """Of all of its items, or of the first few; a value given for all is for those without."""
    x, labels = labelled().held_out, torch.arange(COUNT) % 3
    np.savez(tmp_path / "data.npz", data=x.numpy(), labels=labels.numpy())
    for count in (COUNT, 5):
        figures = done("likelihood", tmp_path / "data.npz", "--run", run, "--labels", "y", "-n", count)
        assert Told.seen == set(labels[:count].tolist())
        exact = log_prob(x[:count], labels[:count]).mean()
        assert figures["mean"] == pytest.approx(exact, abs=0.0066 * 2.0 * 4.0)
        Told.seen.clear()


def test_labels_stay_with_their_items_through_an_interruption(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["labelled", "--run", run, "--labels", "y", "--steps", 3, "--batch-size", 2, "--out"]
    done("likelihood", *args, tmp_path / "whole.csv")
    method, calls = LIKELIHOOD_METHODS["flow"], []

    def work(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return method.evaluate(*given, **options)

    with monkeypatch.context() as patch:
        patch.setitem(LIKELIHOOD_METHODS, "flow", method._replace(evaluate=work))
        assert call("likelihood", *args, tmp_path / "x.csv").exit_code == 130
    other = call(
        "likelihood", "labelled", "--run", run, "--condition", "y=1", "--steps", 3, "--out", tmp_path / "x.csv"
    )
    assert other.exit_code == 2
    assert "another condition" in other.stderr
    done("likelihood", *args, tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("size", [5, 256])
def test_encode_and_decode_with_labels(run: Path, tmp_path: Path, size: int) -> None:
    """The flow of ``N(c, I)`` moves by ``(alpha - 1) c``, and the file of the latents knows the labels."""
    options = ["--run", run, "--batch-size", size, "--out"]
    done("encode", "labelled", "--labels", "y", *options, tmp_path / "z.npz")
    data = labelled()
    near, far = (float(SDE.alpha(t)) for t in (SDE.t_min, SDE.t_max))
    with np.load(tmp_path / "z.npz") as arrays:
        exact = data.held_out + (far - near) * data.held_out_labels[:, None]
        np.testing.assert_allclose(arrays["latents"], exact.numpy(), atol=1e-4)
    done("decode", tmp_path / "z.npz", *options, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_allclose(arrays["samples"], data.held_out.numpy(), atol=1e-3)
    done("decode", tmp_path / "z.npz", "-n", 4, *options, tmp_path / "few.npz")
    with np.load(tmp_path / "few.npz") as arrays:
        np.testing.assert_allclose(arrays["samples"], data.held_out[:4].numpy(), atol=1e-3)
    done("decode", tmp_path / "z.npz", "--condition", "y=0", *options, tmp_path / "other.npz")
    with np.load(tmp_path / "other.npz") as arrays:  # to where a 0 would have come from
        np.testing.assert_allclose(arrays["samples"], exact.numpy(), atol=1e-3)


def test_samples_are_the_librarys_under_the_condition(run: Path, tmp_path: Path) -> None:
    done("sample", "--run", run, "-n", 5, "--condition", "y=-1.5", "--out", tmp_path / "x.npz", "--batch-size", 2)
    model = checkpoint.load(run)
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_allclose(arrays["samples"], sample(model, (5, *SHAPE), condition=-1.5).numpy(), atol=1e-4)


def test_guided_samples(run: Path, tmp_path: Path) -> None:
    """Guidance of normals about c by the null condition d gives those about ``d + w (c - d)``."""
    guide = ["--condition", "y=1", "--guidance", 3, "--null", "y=0.5"]
    done("sample", "--run", run, "-n", 5, "--condition", "y=2", "--out", tmp_path / "x.npz", "--steps", 5)
    figures = done("sample", "--run", run, "-n", 5, *guide, "--out", tmp_path / "y.npz", "--steps", 5)
    with np.load(tmp_path / "x.npz") as expected, np.load(tmp_path / "y.npz") as arrays:
        np.testing.assert_allclose(arrays["samples"], expected["samples"], atol=1e-4)
    assert figures["guidance"] == "guidance 3 against y=[0.5]"
    assert figures["nfe"] == 10
    interval = ["--guidance-interval", 2, 3]  # never
    figures = done("sample", "--run", run, "-n", 5, *guide, *interval, "--out", tmp_path / "z.npz", "--steps", 5)
    assert figures["guidance"] == "guidance 3 against y=[0.5] from t = 2 to 3"
    assert figures["nfe"] == 5


COMMANDS = {
    "sample": ["sample", "-n", 3, "--steps", 2],
    "densities": ["sample", "-n", 3, "--steps", 2, "--log-prob"],
    "encode": ["encode", "labelled", "--steps", 2],
    "interpolate": ["interpolate", "labelled", "--steps", 2],
    "likelihood": ["likelihood", "labelled", "--steps", 2],
    "bound": ["likelihood", "labelled", "--elbo", "--draws", 2],
    "compare": ["compare", "--count", 3, "--solver", "ode", "--forwards", 3, "--tolerance", 0.1],
    "tune": ["tune", "--steps", 2, "--trajectories", 4, "--held-out", 2, "--iterations", 2],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_the_network_and_nothing_else(run: Path, name: str) -> None:
    args = [*COMMANDS[name], "--run", run]
    result = call(*args, "--condition", "y=3")
    assert result.exit_code in (0, 1 if name == "tune" else 0), result.stderr
    assert Told.seen == {3}
    missing = call(*args)
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "has to be told y: --condition y=VALUE" in missing.stderr
    unknown = call(*args, "--condition", "z=3", "--condition", "y=1")
    assert unknown.exit_code == 2
    assert "takes no z: besides the state and the time it takes y" in unknown.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--condition", "y"], "wants NAME=VALUE"),
        (["--condition", "=3"], "wants NAME=VALUE"),
        (["--condition", "y=cat"], "y: give a number, or several with commas between, not 'cat'"),
        (["--condition", "y="], "give a number"),
        (["--condition", f"y={2**70}"], "give a number"),
        (
            ["--condition", "y=1", "--guidance", "2"],
            "needs --null NAME=VALUE: the run's network does not say what stands for none",
        ),
        (["--condition", "y=1", "--null", "y=0"], "belong to guidance"),
        (["--condition", "y=1", "--label", "3"], "knows no classes: sdediff train --conditional makes one"),
        (["--condition", "y=1", "--guidance", "2", "--null", "z=0"], "takes no z"),
        (["--condition", "y=1", "--guidance", "nan", "--null", "y=0"], "must be a finite number"),
    ],
)
def test_what_is_no_condition_is_one_line(run: Path, args: list[str], message: str) -> None:
    result = call("sample", "--run", run, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_data_without_labels_are_said_to_have_none(run: Path) -> None:
    for command in ("likelihood", "encode"):
        result = call(command, "unlabelled", "--run", run, "--labels", "y")
        assert result.exit_code == 2
        assert "held-out unlabelled: the data have no labels for --labels y" in result.stderr
