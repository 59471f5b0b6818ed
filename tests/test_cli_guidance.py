"""Classes and guidance from the shell, end to end: train --conditional, then every command on the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

import sdediff
from sdediff.cli import main
from sdediff.data import DATASETS, Dataset

SHAPE = (2,)
NAMES = ("cat", "dog", "2")


def named(seed: int = 0) -> Dataset:
    """Points of three classes with names, far apart; the name of the last is the number of another in other data."""
    labels = torch.arange(90) % 3
    x = 3.0 * (labels[:, None] - 1.0) + 0.3 * torch.randn(90, 2, generator=torch.Generator().manual_seed(1))
    held_out = slice(None, None, 9)
    ids = np.arange(90)
    return Dataset(x, x[held_out], sdediff.DataInfo(SHAPE), labels, labels[held_out], NAMES, ids, ids[held_out])


def call(command: str, *args: object) -> Result:
    return CliRunner().invoke(main, [command, *(str(arg) for arg in args)])


def done(command: str, *args: object) -> dict[str, Any]:
    result = call(command, *args, "--json")
    assert result.exit_code == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "named"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "named", named)
        settings = ["network.name=mlp", "network.width=32", "network.blocks=1", "training.sample_every=0"]
        settings += ["training.warmup=0", "training.ema=0.9"]
        options = [text for setting in settings for text in ("--set", setting)]
        done("train", "--conditional", "--data", "named", "--run", folder, "--steps", 150, "--lr", 0.01, *options)
    return folder


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "named", named)


def samples(path: Path, *args: object) -> Tensor:
    done("sample", "-n", 6, "--steps", 5, "--out", path, "--force", *args)
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["samples"])


def test_a_class_by_number_by_name_and_as_a_condition(run: Path, tmp_path: Path) -> None:
    given = ["--run", run]
    one = samples(tmp_path / "a.npz", *given, "--label", 1)
    assert torch.equal(one, samples(tmp_path / "b.npz", *given, "--label", "dog"))
    assert torch.equal(one, samples(tmp_path / "c.npz", *given, "--condition", "label=1"))
    two = samples(tmp_path / "d.npz", *given, "--label", "2")
    assert float((one - two).abs().max()) > 0.1


def test_guided_samples_are_the_librarys(run: Path, tmp_path: Path) -> None:
    """Without ``--null``: the network knows the label 3 for none. Weight 1 is the conditional model."""
    model = sdediff.load(run)
    found = samples(tmp_path / "a.npz", "--run", run, "--label", "cat", "--guidance", 2)
    expected = sdediff.sample(model, (6, *SHAPE), steps=5, condition=0, guidance=2.0, null=3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    plain = samples(tmp_path / "b.npz", "--run", run, "--label", "cat")
    assert torch.equal(samples(tmp_path / "c.npz", "--run", run, "--label", "cat", "--guidance", 1), plain)
    assert float((found - plain).abs().max()) > 1e-2
    figures = done("sample", "--run", run, "--label", "cat", "--guidance", 2, "-n", 2, "--steps", 3, "--out", tmp_path)
    assert (figures["guidance"], figures["nfe"]) == ("guidance 2 against label=[3]", 6)


def test_latents_know_their_labels_and_guidance(run: Path, tmp_path: Path) -> None:
    """Decoded by what the file says, they are the data again; decoded by the labels alone they are not."""
    done("encode", "--run", run, "--labels", "--guidance", 1.5, "--out", tmp_path / "z.npz")
    found = {}
    for name, options in {"same": [], "other": ["--guidance", 1]}.items():
        done("decode", tmp_path / "z.npz", "--run", run, "--out", tmp_path / f"{name}.npz", *options)
        with np.load(tmp_path / f"{name}.npz") as arrays:
            found[name] = np.abs(arrays["samples"] - named().held_out.numpy()).max()
    assert found["same"] < 1e-3
    assert found["other"] > 10.0 * found["same"]


def test_likelihoods_by_label(run: Path) -> None:
    """The flag alone is the network's argument ``label``; the labels of the data are better than a wrong one."""
    own = done("likelihood", "--run", run, "--labels", "--steps", 10)["mean"]
    assert own == done("likelihood", "--run", run, "--labels", "label", "--steps", 10)["mean"]
    model, data = sdediff.load(run), named()
    expected = sdediff.log_likelihood(model, data.held_out, steps=10, condition=data.held_out_labels).log_prob.mean()
    assert own == pytest.approx(float(expected), abs=1e-4)
    assert own != pytest.approx(done("likelihood", "--run", run, "--label", 2, "--steps", 10)["mean"], abs=1e-2)


COMMANDS = {
    "auto": ["sample", "-n", 2, "--solver", "auto", "--steps", 3],
    "densities": ["sample", "-n", 2, "--steps", 3, "--log-prob"],
    "interpolate": ["interpolate", "--pair", 0, 1, "--steps", 3],
    "compare": ["compare", "--count", 3, "--solver", "ode,auto", "--forwards", 3, "--tolerance", 0.1],
    "tune": ["tune", "--steps", 2, "--trajectories", 4, "--held-out", 2, "--iterations", 2],
}


def test_a_tuned_solver_says_what_it_was_learned_under(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own)
    model = sdediff.load(own)
    nodes = sdediff.tuning.choose(model.given(1), 2, shape=(1, *SHAPE)).sampler
    found = sdediff.tuning.Tuning(nodes, sdediff.tuning.Errors(0.2, 0.1), sdediff.tuning.Errors(0.1, 0.05), 1.0)
    sdediff.tuning.save(own, model, [found], "label=[1]")
    drawn = ("sample", "--run", own, "--solver", "tuned", "--steps", 2, "-n", 2, "--out", tmp_path, "--force")
    assert "learned under" not in call(*drawn, "--label", "dog").stderr
    assert "learned under label=[1], used under label=[0]" in call(*drawn, "--label", "cat").stderr
    guided = call(*drawn, "--label", "dog", "--guidance", 2)
    assert "learned under label=[1], used under label=[1]; guidance 2 against label=[3]" in guided.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_guides(run: Path, tmp_path: Path, name: str) -> None:
    out = [] if name == "tune" else ["--out", tmp_path]
    result = call(*COMMANDS[name], "--run", run, "--label", "dog", "--guidance", 2, *out, "--json")
    assert result.exit_code in (0, 1 if name == "tune" else 0), result.stderr
    if name != "tune":
        assert json.loads(result.stdout)["guidance"] == "guidance 2 against label=[3]"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--label", "3"], "the run's classes are 0 to 2, or cat, dog, 2; there is no class '3'"),
        (["--label", "-1"], "there is no class '-1'"),
        (["--label", "cow"], "there is no class 'cow'"),
        (["--condition", "label=4"], "labels are 0 to 2, or 3 for none; came 4"),
        (["--guidance", 2], "--guidance needs a condition: --label CLASS"),
        (["--null", "label=3"], "belong to guidance"),
        (["--label", "1", "--guidance", 2, "--null", "label=9"], "labels are 0 to 2, or 3 for none"),
    ],
)
def test_what_is_wrong_is_one_line(run: Path, args: list[object], message: str) -> None:
    result = call("sample", "--run", run, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_a_run_without_withheld_labels_says_so(run: Path, tmp_path: Path) -> None:
    text = (run / "config.json").read_text()
    other = tmp_path / "run"
    other.mkdir()
    for file in ("model.json", "model.safetensors", "held_out.npz"):
        (other / file).write_bytes((run / file).read_bytes())
    for share, notes in (("0.1", 0), ("0.0", 1)):
        (other / "config.json").write_text(text.replace('"label_dropout": 0.1', f'"label_dropout": {share}'))
        result = call("sample", "--run", other, "--label", 1, "--guidance", 2, "-n", 2, "--steps", 2, "--force")
        assert result.exit_code == 0
        assert result.stderr.count("no condition was withheld in training") == notes
