"""However a command ends, what is done is kept: signals, closed and full streams, failures between two files."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from torch import Tensor

from sdediff import plots, tuning
from sdediff.cli import evaluation, main
from sdediff.evaluation import LIKELIHOOD_METHODS, PartialResults, solvers
from sdediff.interrupt import ENDING
from untrained import untrained_run

SIGNALS = (signal.SIGINT, *ENDING)
TINY = ["--set", "network.name=mlp", "--set", "network.width=8", "--set", "network.blocks=1"]

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def said(result: Result) -> list[str]:
    """What is on the error stream beside the line about the data."""
    return [line for line in result.stderr.splitlines() if not line.startswith("data: ")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights on points; the last layer of an untrained one is zero."""
    return untrained_run(tmp_path_factory.mktemp("endings") / "run")


def at(call_number: int, act: Callable[[], object], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but for something that happens before one of its calls."""
    calls: list[int] = []

    def changed(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call_number:
            act()
        return function(*args, **options)

    return changed


# ---- likelihood --------------------------------------------------------------------------------------------------


LIKELIHOOD = ["-n", 12, "--steps", 2, "--batch-size", 4]


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of a run without a break."""
    path = tmp_path_factory.mktemp("whole") / "x.csv"
    assert call("likelihood", "--run", run, *LIKELIHOOD, "--out", path).exit_code == 0
    return path.read_bytes()


def interrupt() -> None:
    raise KeyboardInterrupt


STEPS = ("table", "picture", "summary", "end")


@pytest.mark.parametrize("step", STEPS)
def test_the_same_command_finishes_whatever_was_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes, step: str
) -> None:
    """Stopped before each of the last steps: the unfinished file stands until the table, picture and summary do."""
    out = tmp_path / "x.csv"
    args = ["likelihood", "--run", run, *LIKELIHOOD, "--out", out]
    with monkeypatch.context() as patch:
        if step == "table":
            patch.setitem(evaluation.WRITERS, ".csv", at(1, interrupt, evaluation.WRITERS[".csv"]))
        elif step == "picture":
            patch.setattr(evaluation, "draw_picture", at(1, interrupt, evaluation.draw_picture))
        elif step == "summary":
            patch.setattr(evaluation, "_print_evaluation", at(1, interrupt, evaluation._print_evaluation))
        else:
            unlink = Path.unlink
            patch.setattr(
                Path,
                "unlink",
                lambda path, **options: interrupt() if path.suffix == ".part" else unlink(path, **options),
            )
        stopped = call(*args)
    assert stopped.exit_code == 130
    assert (tmp_path / "x.csv.part").exists()
    assert [(tmp_path / name).exists() for name in ("x.csv", "x.png")] == [
        STEPS.index(step) > number for number in (0, 1)
    ]
    assert ("mean and standard error" in stopped.stdout) == (step == "end")
    finished = call(*args)
    assert finished.exit_code == 0
    assert "mean and standard error" in finished.stdout
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.png"]


@pytest.mark.parametrize("number", SIGNALS)
def test_likelihood_keeps_what_is_done_at_a_signal(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes, number: int
) -> None:
    args = ["likelihood", "--run", run, *LIKELIHOOD, "--out", tmp_path / "x.csv"]
    method = LIKELIHOOD_METHODS["flow"]
    with monkeypatch.context() as patch:
        patch.setitem(
            LIKELIHOOD_METHODS,
            "flow",
            method._replace(evaluate=at(3, lambda: signal.raise_signal(number), method.evaluate)),
        )
        stopped = call(*args)
    assert stopped.exit_code == 130
    assert "stopped after 8 of 12 items" in stopped.stderr
    assert call(*args).exit_code == 0
    assert (tmp_path / "x.csv").read_bytes() == whole


def test_a_summary_that_cannot_be_written_loses_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes
) -> None:
    """A full disk behind the standard output: one line, code 1, and the same command says it again."""
    args, echo = ["likelihood", "--run", run, *LIKELIHOOD, "--out", tmp_path / "x.csv"], click.echo

    def full(text: str, err: bool = False) -> None:
        if not err:
            raise OSError(errno.ENOSPC, "No space left on device")
        echo(text, err=True)

    with monkeypatch.context() as patch:
        patch.setattr(click, "echo", full)
        failed = call(*args)
    assert failed.exit_code == 1
    assert said(failed) == ["error: No space left on device: standard output"]
    assert (tmp_path / "x.csv").read_bytes() == whole
    assert "mean and standard error" in call(*args).stdout
    assert not (tmp_path / "x.csv.part").exists()


def test_a_part_that_cannot_be_written_is_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.csv.part")

    monkeypatch.setattr(PartialResults, "write", full)
    failed = call("likelihood", "--run", run, *LIKELIHOOD, "--out", tmp_path / "x.csv")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert said(failed) == ["error: No space left on device: x.csv.part"]


@needs_full
def test_out_through_links(run: Path, tmp_path: Path, whole: bytes) -> None:
    """The link stays a link; a full device behind it is one line, and the work goes on elsewhere."""
    (tmp_path / "far").mkdir()
    (tmp_path / "x.csv").symlink_to(tmp_path / "far" / "real.csv")
    args = ["likelihood", "--run", run, *LIKELIHOOD]
    assert call(*args, "--out", tmp_path / "x.csv").exit_code == 0
    assert (tmp_path / "x.csv").is_symlink()
    assert (tmp_path / "far" / "real.csv").read_bytes() == whole
    (tmp_path / "y.csv").symlink_to("/dev/full")
    assert "exists; --force replaces" in call(*args, "--out", tmp_path / "y.csv").stderr
    failed = call(*args, "--out", tmp_path / "y.csv", "--force")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert said(failed) == [f"error: No space left on device: {tmp_path / 'y.csv'}"]
    (tmp_path / "y.csv").unlink()
    assert call(*args, "--out", tmp_path / "y.csv").exit_code == 0
    assert (tmp_path / "y.csv").read_bytes() == whole


# ---- train -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_training_saves_at_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The step is finished and saved; another signal of those that supervisors send changes nothing."""

    def picture(samples: Tensor, info: object, path: Path, **settings: object) -> None:
        if path.name == "step_000002.png":
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(plots, "picture", picture)
    args = ["train", "--data", "moons", "--run", tmp_path / "run", "--batch-size", 8, "--steps", 5, *TINY]
    stopped = call(*args, "--set", "training.sample_every=2")
    assert stopped.exit_code == 130
    assert "stopped after 3 steps" in stopped.stdout
    assert call("train", "--resume", "--run", tmp_path / "run").exit_code == 0


def test_a_run_stopped_before_its_first_checkpoint_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its beginning, to the very state of a run without a break; also where no run is named."""
    from sdediff.training import trainer

    monkeypatch.chdir(tmp_path)
    args = ["train", "--data", "moons", "--batch-size", 8, "--steps", 4, *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", at(3, interrupt, trainer.Trainer.step))
        assert call(*args).exit_code == 130
    assert not Path("runs/moons/state.safetensors").exists()
    assert "--resume goes on with it" in call(*args).stderr
    resumed = call("train", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "trained 4 steps" in resumed.stdout
    assert call(*args, "--run", "straight").exit_code == 0
    first, second = (Path(run) / "state.safetensors" for run in ("runs/moons", "straight"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("file", ["state", "model"])
def test_a_run_that_ended_within_its_checkpoint_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Before the state or before the model was written; a model that is older than the state is made from it."""
    from sdediff.training import trainer

    owner, name, call_number = {  # the first model that is saved is the best one
        "state": (trainer, "save_state", 1),
        "model": (trainer.checkpoint, "save", 2),
    }[file]
    args = ["train", "--data", "moons", "--batch-size", 8, "--steps", 4, *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at(call_number, interrupt, getattr(owner, name)))
        assert call(*args, "--run", tmp_path / "run").exit_code == 130
    assert not (tmp_path / "run" / "model.json").exists()
    assert (tmp_path / "run" / "state.safetensors").exists() == (file == "model")
    assert call("train", "--resume", "--run", tmp_path / "run").exit_code == 0
    assert call(*args, "--run", tmp_path / "straight").exit_code == 0
    first, second = (tmp_path / run / "model.safetensors" for run in ("run", "straight"))
    assert first.read_bytes() == second.read_bytes()


# ---- compare and tune --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_compare_writes_the_rows_that_are_done(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    args = ["compare", "--run", run, "--count", 4, "--tolerance", 0.1, "--solver", "ddim", "--forwards", "2,3,4"]
    assert call(*args, "--out", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(solvers, "_row", at(3, lambda: signal.raise_signal(number), solvers._row))
        stopped = call(*args, "--out", tmp_path / "part")
    assert stopped.exit_code == 130
    assert "stopped after 2 rows" in stopped.stderr
    part, rows = (list(csv.reader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("part", "whole"))
    assert part == rows[:3]
    assert (tmp_path / "part.png").exists()
    with monkeypatch.context() as patch:
        patch.setattr(solvers, "_row", at(1, lambda: signal.raise_signal(number), solvers._row))
        assert call(*args, "--out", tmp_path / "none").exit_code == 130
    assert not list(tmp_path.glob("none*"))


@pytest.mark.parametrize("number", SIGNALS)
def test_tune_keeps_the_solvers_that_are_done(run: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    args = ["tune", "--run", run, "--trajectories", 16, "--held-out", 8, "--iterations", 3, "--batch-size", 8]
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "tune", at(2, lambda: signal.raise_signal(number), tuning.tune))
        stopped = call(*args, "--steps", 3, "--steps", 4)
    assert stopped.exit_code == 130
    assert "stopped: no solver of 4 steps was learned" in stopped.stderr
    assert list(json.loads((run / "tuned.json").read_text())["solvers"]) == ["3"]
    (run / "tuned.json").unlink()


# ---- streams -----------------------------------------------------------------------------------------------------


TALK = """
import sys, types, click
from sdediff.cli.console import Console
from sdediff.cli.group import CommandTable

def talk():
    with open(__file__) as file:
        assert file.fileno() > 2  # else what is said would go into it
    Console().note("remark")
    Console().say("word " * 100_000)

sys.modules["p"], sys.modules["p.talk"] = types.ModuleType("p"), types.ModuleType("p.talk")
sys.modules["p.talk"].command = click.Command("talk", callback=talk)
CommandTable(table={"talk": ""}, package="p").main(["talk"])
"""

STREAMS = {
    "enough": (">&{closed}", 0, "remark\n"),
    "enough of both": (">&{closed} 2>&{closed}", 0, ""),
    "full": ("> /dev/full", 1, "remark\nerror: No space left on device: standard output\n"),
    "closed": ("<&- >&- 2>&-", 0, ""),
    "all full": ("> /dev/full 2> /dev/full", 1, ""),
    "remarks full": ("> /dev/null 2> /dev/full", 0, ""),
}


@needs_full
def test_streams_that_are_closed_or_full(tmp_path: Path) -> None:
    """A reader that has had enough and a closed stream are no failure; a full disk is one, in one line."""
    (tmp_path / "talk.py").write_text(TALK)
    nobody, closed = os.pipe()
    os.close(nobody)
    started = {
        name: subprocess.Popen(
            ["bash", "-c", f"{sys.executable} {tmp_path / 'talk.py'} {redirection.format(closed=closed)}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(closed,),
        )
        for name, (redirection, _, _) in STREAMS.items()
    }
    os.close(closed)
    for name, process in started.items():
        _, error = process.communicate(timeout=120)
        assert (name, process.returncode, error) == (name, *STREAMS[name][1:])


def test_the_command_line_puts_handlers_back(run: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    assert call("info", "--run", run).exit_code == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_data_without_items_are_one_line(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 2), dtype=np.float32))
    for command in ("likelihood", "encode", "interpolate", "decode"):
        result = call(command, tmp_path / "none.npy", "--run", run)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert result.stderr.startswith(f"error: {tmp_path / 'none.npy'}")
