"""``sdediff tune`` and ``sdediff sample --solver tuned`` on a tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import sdediff
from sdediff import tuning
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.evaluation.distances import Errors
from sdediff.tuning.trajectories import starts

QUICK = ("--trajectories", 32, "--held-out", 16, "--iterations", 40, "--batch-size", 16)


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def done(*args: object) -> dict[str, Any]:
    result = call(*args, "--json")
    assert result.exit_code == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def lines(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if not line.startswith("run: ")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A network with random weights: curved enough for a solver to have work to do."""
    changes = {"data.name": "moons", "network.name": "mlp", "network.width": 16, "network.blocks": 1}
    model = build(Config().updated(changes), sdediff.DataInfo((2,)))
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # the last layer of an untrained network is zero
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=rng)
    sdediff.save(model, tmp_path / "run")
    return tmp_path / "run"


def test_tuned_solvers_are_kept_and_found(run: Path, tmp_path: Path) -> None:
    result = call("tune", "--run", run, "--steps", 4, "--steps", 3, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert list(figures["solvers"]) == ["4", "3"]
    for found in figures["solvers"].values():
        assert found["kept"]
        ratios = [found["after"][key] / found["before"][key] for key in ("rms", "median")]
        assert ratios[0] * ratios[1] < 1.0
    model = sdediff.load(run)
    for steps in (3, 4):
        drawn = done(
            "sample", "--run", run, "--solver", "tuned", "--steps", steps, "-n", 5, "--out", tmp_path / "a", "--force"
        )
        assert (drawn["solver"], drawn["steps"], drawn["nfe"], drawn["forwards"]) == ("tuned", steps, steps, steps)
        with np.load(tmp_path / "a.npz") as arrays:
            expected = sdediff.sample(model, (5, 2), tuning.load(run, model, steps))
            np.testing.assert_allclose(arrays["samples"], expected.numpy(), atol=1e-5)
    assert done("sample", "--run", run, "--solver", "tuned", "-n", 2)["steps"] == 4  # the most that there are


def test_held_out_errors_are_those_of_the_file_s_solver(run: Path) -> None:
    """What is said of a solver can be measured again from the file."""
    figures = done("tune", "--run", run, "--steps", 3, *QUICK, "--seed", 7)["solvers"]["3"]
    model = sdediff.load(run)
    x = starts(model, 48, seed=7)[32:]
    with torch.no_grad():
        exact = sdediff.solve(model, x, "dopri5", rtol=1e-7, t_to=0.0).x
        for key, solver in (("before", "ode"), ("after", tuning.load(run, model, 3))):
            errors = Errors.of(sdediff.solve(model, x, solver, t_to=0.0, steps=3).x, exact)
            # the network is in float32, and dopri5 ends on the data with a step of order one
            assert errors.rms == pytest.approx(figures[key]["rms"], rel=0.02)


def test_without_a_fitting_solver_nothing_is_sampled(run: Path, tmp_path: Path) -> None:
    """Samples by another solver would not be what was asked for."""
    args = ("sample", "--run", run, "--solver", "tuned", "--steps", 3, "-n", 4, "--out", tmp_path / "x")
    refused = {"tuned.json is missing": call(*args)}
    tuning_file = run / tuning.FILE
    assert call("tune", "--run", run, "--steps", 4, *QUICK).exit_code == 0
    refused["only of 4"] = call(*args)
    content = json.loads(tuning_file.read_text())
    tuning_file.write_text(json.dumps({**content, "model": "0" * 64}))
    refused["another model"] = call(*args)
    tuning_file.write_text("{")
    refused["damaged"] = call(*args)
    for word, result in refused.items():
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert len(lines(result)) == 1
        assert word in result.stderr
        assert result.stderr.endswith(f"`sdediff tune --run {run} --steps 3` makes one\n")
    assert not list(tmp_path.glob("x.*"))


def test_a_solver_that_is_no_better_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuning.tune(sdediff.load(run), 3, trajectories=16, held_out=8, iterations=1, batch_size=8)
    worse = tuning.Tuning(found.solver, Errors(0.1, 0.1), Errors(0.1, 0.11), 1.0)
    monkeypatch.setattr(tuning, "tune", lambda *args, **options: worse)
    result = call("tune", "--run", run, "--steps", 3, *QUICK)
    assert result.exit_code == 1
    assert "not kept" in result.stdout
    assert not (run / tuning.FILE).exists()


def test_an_interrupted_run_keeps_what_was_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("tune", "--run", run, "--steps", 3, *QUICK)
    before = {file.name: file.read_bytes() for file in run.iterdir()}

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "tune", interrupt)
    result = call("tune", "--run", run, "--steps", 5, *QUICK)
    assert result.exit_code == 130
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("tune", "--steps", 0), "--steps"),
        (("tune", "--steps", "many"), "--steps"),
        (("tune", "--run", "nowhere"), "nowhere"),
        (("tune", "--iterations", 0), "--iterations"),
        (("tune", "--held-out", -1), "--held-out"),
        (("sample", "--solver", "tuned", "--grid", "logsnr"), "no --grid"),
        (("sample", "--solver", "tuned", "--rtol", 1e-3), "no --grid, --rtol"),
        (("encode", "--solver", "tuned"), "unknown solver"),
    ],
)
def test_wrong_input_is_one_line(args: tuple[object, ...], word: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert word in result.stderr
