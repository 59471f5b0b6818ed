"""``sdediff evaluate`` on files and tiny runs: its figures are the library's, every error is one line with code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import sdediff
from sdediff.checkpoint import load, save
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.data import load_dataset, to_levels
from sdediff.evaluation import order

MOONS = load_dataset("moons").train[:200]


def call(*args: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, args)])


def done(*args: object) -> dict[str, Any]:
    result = call(*args, "--json", "--resamples", 4)
    assert result.exit_code == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def refused(*args: object) -> str:
    result = call(*args)
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr


def run_on(folder: Path, data: str) -> Path:
    """An untrained run."""
    config = Config().updated({"data.name": data, "network.name": "mlp", "network.width": 16, "network.blocks": 1})
    save(build(config, load_dataset(data).info), folder)
    (folder / "config.json").write_text(config.to_json())
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on(tmp_path_factory.mktemp("evaluate") / "digits", "digits")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with points as samples and as data."""
    monkeypatch.chdir(tmp_path)
    np.savez("samples.npz", samples=MOONS[:80].numpy() + 0.1, seed=0)
    np.save("data.npy", MOONS[80:].numpy())
    return tmp_path


def test_figures_of_files_are_the_librarys(files: Path) -> None:
    found = done("samples.npz", "--data", "data.npy", "--seed", 3)
    truth = sdediff.evaluate(MOONS[:80] + 0.1, MOONS[80:], seed=3, resamples=4)
    assert found["figures"] == json.loads(json.dumps(truth.to_dict()["figures"]))
    assert (found["samples"], found["data"], found["run"], found["likelihood"]) == (80, 120, None, None)
    assert found["features"].startswith("values (")
    few = done("samples.npz", "--data", "moons", "-n", 40, "--measure", "frechet,classifier", "--features", "values")
    assert (few["samples"], few["data"], set(few["figures"])) == (40, 4000, {"frechet", "classifier"})


def test_the_table_says_what_every_figure_means(files: Path) -> None:
    text = call("samples.npz", "--data", "data.npy", "--resamples", 0).stdout
    assert "80 samples beside 120 items, 2 features: values (" in text
    for name in ("frechet", "precision", "recall", "sliced_wasserstein", "classifier"):
        assert sum(line.startswith(f"{name} ") for line in text.splitlines()) == 2
    assert "0.5 if they are alike" in text


def test_a_run_is_sampled_and_scored(digits: Path) -> None:
    options = ["-n", 30, "--solver", "ddim", "--steps", 3, "--seed", 2]
    found = done(digits, *options, "--measure", "frechet", "--scored", 2)
    model, data = load(digits), load_dataset("digits")
    x = sdediff.sample(model, (30, 1, 8, 8), "ddim", steps=3, seed=2)
    truth = sdediff.evaluate(to_levels(x, data.info), data.held_out, seed=2, resamples=4, measures=["frechet"])
    assert found["figures"]["frechet"]["value"] == pytest.approx(truth.figures["frechet"].value, rel=1e-6)
    assert "features: the Fréchet distance of so few" in found["remarks"][0]
    rows = order(len(data.held_out), 2)[:2]
    scored = found["likelihood"]
    assert (scored["items"], scored["unit"]) == (2, "bits/dim")
    bits = sdediff.log_likelihood(model, data.held_out[rows], seed=2).bits_per_dim.mean()
    assert abs(scored["mean"] - float(bits)) < 4.0 * scored["standard_error"] + 0.5
    text = call(digits, *options, "--measure", "frechet", "--scored", 2, "--resamples", 0).stdout
    assert "likelihood of 2 items of the data: " in text
    assert "bits/dim, mean and standard error; smaller is better" in text


def test_folders_of_images_are_samples(files: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("made", "real"):
        Path(name).mkdir()
        for index in range(24):
            Image.fromarray(rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)).save(Path(name) / f"{index}.png")
    found = done("made", "--data", "real")
    assert (found["samples"], found["dim"]) == (24, 112)
    assert found["figures"]["classifier"]["low"] <= 0.5 <= found["figures"]["classifier"]["high"]


def test_levels_are_compared_with_levels(files: Path) -> None:
    """Of a file with both; beside floats, its values."""
    levels = torch.randint(0, 17, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    np.savez("both.npz", samples=levels.numpy() / 8.0 - 1.0, levels=levels.numpy().astype(np.uint8))
    np.save("levels.npy", levels[:, 0].numpy())
    np.save("values.npy", (levels / 8.0 - 1.0).numpy())
    for name in ("levels.npy", "values.npy"):
        found = done("both.npz", "--data", name, "--measure", "sliced-wasserstein")
        assert found["figures"]["sliced_wasserstein"]["value"] == pytest.approx(0.0, abs=1e-7)


def test_bad_input_is_one_line(files: Path, digits: Path) -> None:
    assert "samples.npz holds samples: say with --data" in refused("samples.npz")
    assert "no samples or run at nowhere" in refused("nowhere", "--data", "data.npy")
    assert "no data 'nowhere'" in refused("samples.npz", "--data", "nowhere")
    assert "samples have shape (2,), the data (1, 8, 8)" in _last(call("samples.npz", "--data", "digits"))
    wrong = refused("samples.npz", "--data", "data.npy", "--steps", 3, "--scored", 4)
    assert "--scored, --steps: only for a run" in wrong
    assert "unknown measure 'fid'" in refused("samples.npz", "--data", "data.npy", "--measure", "fid")
    assert "no file nowhere.pt" in _last(call("samples.npz", "--data", "data.npy", "--features", "nowhere.pt"))
    assert "--feature-range and --feature-size are of a network in a file" in refused(
        "samples.npz", "--data", "data.npy", "--feature-size", 3
    )
    assert "unknown features 'inception'" in _last(call("samples.npz", "--data", "data.npy", "--features", "inception"))
    assert "at least 20 items" in _last(call("samples.npz", "--data", "data.npy", "-n", 3))
    assert "--resamples" in refused("samples.npz", "--data", "data.npy", "--resamples", -1)
    assert "the run's network takes no y" in refused(digits, "--condition", "y=3")
    assert "only for a run" in refused("samples.npz", "--data", "data.npy", "--condition", "y=3")
    Path("empty").mkdir()
    assert "holds no images" in refused("empty", "--data", "data.npy")


def _last(result: Result) -> str:
    """The one line of an error after the remark on the data."""
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    remark, error = result.stderr.splitlines()
    assert remark.startswith("data: ")
    return error


def test_the_most_recent_run_is_taken(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "train one with `sdediff train`" in refused()
    run_on(Path("runs/mine"), "digits")
    found = done("-n", 20, "--steps", 2, "--measure", "frechet", "--scored", 0)
    assert (found["run"], found["likelihood"]) == (str(Path("runs/mine")), None)
