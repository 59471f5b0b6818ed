"""``sdediff likelihood`` on tiny runs: the library's figures in every form, going on, stopping, and refusing."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from sdediff import evaluation
from sdediff.checkpoint import load, save
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.data import load_dataset
from sdediff.evaluation.methods import LIKELIHOOD_METHODS
from sdediff.likelihood import bits_per_dim, elbo, log_likelihood
from sdediff.plots.likelihoods import Likelihoods, histogram_only, with_images, with_points

ROUNDING = 1e-3
"""Float32 sums over a solve differ in their last bits with the batch's shape; that is some hundred times below this."""


def call(*args: object) -> Result:
    return CliRunner().invoke(main, ["likelihood", *(str(arg) for arg in args)])


def done(*args: object) -> dict[str, Any]:
    result = call(*args, "--json")
    assert result.exit_code == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def refused(*args: object, code: int = 2) -> str:
    """Run a command that must fail with one line; the line."""
    result = call(*args)
    assert result.exit_code == code, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("run: ", "data: "))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0]


def rows(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table of either kind."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    with path.open() as file:
        lines = list(csv.DictReader(file))
    return {name: np.array([float(line[name]) for line in lines]) for name in lines[0]}


def make(folder: Path, data: str, process: str = "vp") -> Path:
    """A run with random weights; the last layer of an untrained network is zero."""
    config = Config().updated(
        {"data.name": data, "sde.name": process, "network.name": "mlp", "network.width": 8, "network.blocks": 1}
    )
    model = build(config, load_dataset(data).info)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=rng))
    save(model, folder)
    (folder / "config.json").write_text(config.to_json())
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("likelihood") / "digits", "digits")


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("likelihood") / "points", "moons")


def in_order(items: Tensor, seed: int) -> tuple[Tensor, np.ndarray]:
    """Items as the command takes them, and how to put results back."""
    places = evaluation.order(len(items), seed)
    return items[torch.from_numpy(places)], np.argsort(places)


# ---- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_integers_are_in_bits_and_every_item_has_a_row(digits: Path, tmp_path: Path, suffix: str) -> None:
    args = ["--run", digits, "-n", 6, "--steps", 4, "--seed", 2, "--trace", "hutchinson", "--probes", 3]
    out = tmp_path / f"items{suffix}"
    figures = done(*args, "--out", out, "--batch-size", 4)
    items, back = in_order(load_dataset("digits").held_out[:6], 2)
    expected = log_likelihood(load(digits), items, steps=4, seed=2, trace="hutchinson", probes=3)
    bits = expected.bits_per_dim.numpy()[back]
    errors = expected.standard_error.numpy()[back] / (64 * math.log(2.0))
    assert figures["unit"] == "bits/dim"
    assert figures["nfe"] == expected.nfe
    assert figures["mean"] == pytest.approx(bits.mean(), abs=ROUNDING)
    assert figures["standard_error"] == pytest.approx(bits.std(ddof=1) / math.sqrt(6), abs=ROUNDING)
    table = rows(out)
    assert list(table)[:4] == ["item", "row", "bits_per_dim", "standard_error"]
    assert table["item"].tolist() == list(range(6))
    assert table["row"].tolist() == load_dataset("digits").held_out_ids[:6].tolist()
    np.testing.assert_allclose(table["bits_per_dim"], bits, atol=ROUNDING)
    np.testing.assert_allclose(table["standard_error"], errors, atol=ROUNDING)
    assert not list(tmp_path.glob("*.part"))
    assert "--force" in refused(*args, "--out", out)


def test_the_budget_is_the_librarys_of_all_items(digits: Path) -> None:
    """Its parts over all batches, and the spread of the items as the error of the mean."""
    args = ["--run", digits, "-n", 6, "--steps", 4, "--trace", "hutchinson"]
    figures = done(*args, "--batch-size", 4)
    items, _ = in_order(load_dataset("digits").held_out[:6], 0)
    expected = log_likelihood(load(digits), items, steps=4, trace="hutchinson").error_budget.to_dict()
    budget = figures["error_budget"]
    assert budget.pop("items") == {"item": None, "mean": figures["standard_error"]}
    assert budget.keys() == expected.keys()
    for name, part in expected.items():
        assert budget[name] == pytest.approx(part, abs=ROUNDING)
    text = call(*args).stdout
    assert all(f"\n  {name} " in text for name in (*expected, "items"))


def test_a_file_of_floats_is_in_nats(points: Path, tmp_path: Path) -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "x.npz", data=x.numpy())
    args = [tmp_path / "x.npz", "--run", points, "--solver", "dopri5", "--rtol", 1e-3, "--t-from", 0.01]
    figures = done(*args, "--prior", "standard")
    options = {"solver": "dopri5", "rtol": 1e-3, "t_from": 0.01, "prior": "standard"}
    expected = log_likelihood(load(points), in_order(x, 0)[0], **options)
    assert figures["unit"] == "nats"
    assert figures["mean"] == pytest.approx(float(expected.log_prob.mean()), abs=ROUNDING)
    assert done(*args, "-n", 1)["standard_error"] is None


def test_dequantisations_and_samples_are_the_librarys(digits: Path, tmp_path: Path) -> None:
    options = {"steps": 3, "trace": "hutchinson", "dequantisation": "truncated-normal", "samples": 2}
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    figures = done("--run", digits, "-n", 4, "--out", tmp_path / "x.npz", *flags)
    items, back = in_order(load_dataset("digits").held_out[:4], 0)
    expected = bits_per_dim(load(digits), items, **options)
    assert figures["mean"] == pytest.approx(expected.mean, abs=ROUNDING)
    np.testing.assert_allclose(rows(tmp_path / "x.npz")["standard_error"], expected.standard_error[back], atol=ROUNDING)
    assert {"probes", "dequantisation"} <= figures["error_budget"].keys()


@pytest.mark.parametrize("steps", ["8", "inf", None])
def test_elbo_is_the_librarys(points: Path, steps: str | None) -> None:
    """Of a process that is no chain, in continuous time by default; its terms add up to the cost."""
    x = load_dataset("moons").held_out[:6]
    figures = done("--run", points, "-n", 6, "--elbo", "--samples", 2, *(() if steps is None else ("--steps", steps)))
    expected = elbo(load(points), in_order(x, 0)[0], steps=8 if steps == "8" else math.inf, samples=2)
    total = float(expected.total.mean())
    assert figures["mean"] == pytest.approx(-total, rel=1e-4)
    assert sum(figures["terms"].values()) == pytest.approx(total, rel=1e-4)
    assert "variational bound" in call("--run", points, "-n", 3, "--elbo", "--steps", 3).stdout


# ---- going on, stopping ------------------------------------------------------------------------------------------


def breaking(monkeypatch: pytest.MonkeyPatch, calls: int) -> list[int]:
    """Ctrl-C at a batch; the places where batches began."""
    method, starts = LIKELIHOOD_METHODS["flow"], []

    def work(model: Any, x: Tensor, first: int, **options: Any) -> Mapping[str, Tensor]:
        if len(starts) == calls:
            raise KeyboardInterrupt
        starts.append(first)
        return method.evaluate(model, x, first, **options)

    monkeypatch.setitem(LIKELIHOOD_METHODS, "flow", method._replace(evaluate=work))
    return starts


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--run", points, "-n", 20, "--steps", 3, "--batch-size", 4]
    done(*args, "--out", tmp_path / "whole.csv")
    with monkeypatch.context() as patch:
        breaking(patch, 3)
        stopped = call(*args, "--out", tmp_path / "x.csv")
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert "stopped after 12 of 20 items: " in stopped.stderr
    assert f"the same command goes on with {tmp_path / 'x.csv.part'}" in stopped.stderr
    assert not (tmp_path / "x.csv").exists()
    line = refused(*args, "--out", tmp_path / "x.csv", "--seed", 1)
    assert "begun with other settings (seed 0, now 1); --force starts anew" in line
    assert "another data" in refused("--run", points, "-n", 19, "--steps", 3, "--out", tmp_path / "x.csv")
    with monkeypatch.context() as patch:
        starts = breaking(patch, 99)
        done(*args, "--out", tmp_path / "x.csv")
    assert starts == [12, 16]
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "x.csv.part").exists()
    with monkeypatch.context() as patch:
        breaking(patch, 1)
        assert "nothing is kept; with --out it would be" in call(*args).stderr
        breaking(patch, 1)
        assert call(*args, "--out", tmp_path / "y.npz").exit_code == 130
    done(*args, "--out", tmp_path / "y.npz", "--seed", 1, "--force")
    assert not (tmp_path / "y.npz.part").exists()


def test_a_target_stops_and_a_finer_one_goes_on(points: Path, tmp_path: Path) -> None:
    args = ["--run", points, "-n", 400, "--steps", 3, "--out", tmp_path / "x.npz"]
    coarse = done(*args, "--target-error", 0.15)
    assert coarse["on_target"]
    assert coarse["standard_error"] <= 0.15
    assert coarse["items"] < coarse["total"] == 400
    first = rows(tmp_path / "x.npz")
    assert len(first["item"]) == coarse["items"]
    text = call("--run", points, "-n", 400, "--steps", 3, "--target-error", 0.15).stdout
    assert f"{coarse['items']} of 400 items" in text
    assert "stopped at the target of 0.15" in text
    fine = done(*args, "--target-error", 0.06)
    assert coarse["items"] < fine["items"] < 400
    whole = done(*args)
    second = rows(tmp_path / "x.npz")
    assert whole["items"] == len(second["item"]) == 400
    assert np.array_equal(second["log_prob"][first["item"]], first["log_prob"])
    assert not (tmp_path / "x.npz.part").exists()
    assert "was not reached" in call("--run", points, "-n", 40, "--steps", 3, "--target-error", 1e-6).stdout


# ---- pictures ----------------------------------------------------------------------------------------------------


def shown(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def where(pixels: np.ndarray, colour: int) -> np.ndarray:
    """Columns that have one of the pure colours, as parts of the width."""
    others = pixels.sum(axis=2) - pixels[:, :, colour]
    return np.flatnonzero(((pixels[:, :, colour] > 250) & (others < 10)).any(axis=0)) / pixels.shape[1]


@pytest.mark.parametrize("small_is_likely", [True, False])
def test_the_ends_are_on_their_sides(tmp_path: Path, small_is_likely: bool) -> None:
    """A red item with the smallest value and a green one with the largest, among grey ones."""
    images = torch.full((30, 3, 4, 4), 0.5)
    images[7], images[11] = torch.tensor([1.0, 0.0, 0.0])[:, None, None], torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    values = torch.linspace(1.0, 2.0, 30)
    values[7], values[11] = 0.0, 3.0
    found = Likelihoods(values, "x", 1.5, 0.1, small_is_likely)
    assert found.ranked()[0] == (7 if small_is_likely else 11)
    with_images(found, images, tmp_path / "x.png", low=0.0, high=1.0)
    red, green = (where(shown(tmp_path / "x.png"), colour) for colour in (0, 1))
    likely, unlikely = (red, green) if small_is_likely else (green, red)
    assert likely.size > 0
    assert likely.max() < 0.5 < unlikely.min()


def test_every_kind_of_item_has_its_picture(points: Path, digits: Path, tmp_path: Path) -> None:
    """Points and values on a line, images, anything else; one item or constant ones are enough."""
    rng = torch.Generator().manual_seed(0)
    for count, dim in ((1, 1), (1, 2), (500, 5)):
        values = torch.randn(count, generator=rng)
        found = Likelihoods(values, "x", float(values.mean()), math.nan if count == 1 else 0.1, small_is_likely=False)
        with_points(found, torch.randn(count, dim, generator=rng), tmp_path / "p.png")
        assert shown(tmp_path / "p.png").min() < 128
    with_images(found, torch.zeros(500, 8, 8), tmp_path / "i.png", low=0.0, high=0.0)
    histogram_only(found, tmp_path / "a.png")
    assert shown(tmp_path / "a.png").size < shown(tmp_path / "i.png").size
    pictures = done("--run", points, "-n", 9, "--steps", 3, "--picture", tmp_path / "only.png")
    assert Path(pictures["picture"]) == tmp_path / "only.png"
    assert pictures["out"] is None
    beside = done("--run", digits, "-n", 5, "--steps", 3, "--trace", "hutchinson", "--out", tmp_path / "items.csv")
    assert Path(beside["picture"]) == tmp_path / "items.png"
    assert shown(tmp_path / "items.png").shape != shown(tmp_path / "only.png").shape


# ---- bad input ---------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[str], str]] = {
    "suffix": (
        ["--out", "x.png"],
        "end in one of: .npz, .csv; not 'x.png'; the picture's name is --picture",
    ),
    "picture's suffix": (["--picture", "x.jpg"], ".jpg"),
    "option of the flow": (["--elbo", "--trace", "exact", "--item-error", "1"], "--trace, --item-error: not an option"),
    "option of the bound": (["--variance", "posterior"], "--variance: not an option of the likelihood"),
    "option of integers": (["--samples", "2"], "--samples: only integer data are dequantised"),
    "steps": (["--steps", "0"], "--steps"),
    "solver": (["--solver", "dopri"], "dopri"),
    "target": (["--target-error", "0"], "--target-error"),
    "dequantisation": (["--dequantisation", "uniforn"], "did you mean 'uniform'?"),
    "damaged part": (["--out", "bad.npz"], "bad.npz.part is damaged"),
    "folder": (["--out", "file/x.npz"], "file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    args, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.npz.part").write_bytes(b"junk")
    (tmp_path / "file").write_text("not a folder")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert message in refused("--run", points, "-n", 4, *args)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
