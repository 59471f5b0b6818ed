"""Whatever comes in: an answer, or one line that refuses it. Never a traceback, and nothing is lost.

500 inputs by default, over all tests; ``SDEDIFF_INPUTS=10000 pytest tests/test_properties.py`` tries more. They are
derandomised: the same inputs every time.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import sdediff
from catalogue import MIXTURE
from sdediff.cli import main
from sdediff.conditioning import CONDITIONINGS
from sdediff.config import PROCESSES, Config, build
from sdediff.data import load_dataset
from sdediff.description import describe_model
from sdediff.parametrization import PREDICTIONS
from sdediff.samplers import SAMPLERS
from strategies import (
    INFOS,
    OPTIONS,
    PROCESS_CHANGES,
    READING,
    SOLVER_NAMES,
    any_array,
    argument_lists,
    csv_texts,
    settings_of,
    some,
)

INPUTS = int(os.environ.get("SDEDIFF_INPUTS", "500"))
REFUSALS = (ValueError, TypeError, FloatingPointError, FileNotFoundError)


def inputs(share: float) -> Callable[[Any], Any]:
    """A share of all inputs."""
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    count = max(1, round(share * INPUTS))
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=slow)


def outcome(call: Callable[[], Any]) -> Any:
    """The answer, or ``None`` where it was refused in one line; anything else is a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except REFUSALS as error:
            line = str(error)
    assert line.strip()
    assert "\n" not in line
    assert len(line) < 2000
    return None


MODEL = MIXTURE.model(sdediff.VPSDE())


@inputs(0.2)
@given(options=some(OPTIONS, 4), solver=SOLVER_NAMES, count=st.integers(-1, 4))
def test_options_are_taken_or_refused(options: dict[str, Any], solver: Any, count: int) -> None:
    """And the samples are all there, and finite."""
    if isinstance(solver, str) and solver in SAMPLERS and SAMPLERS[solver].steps > 50:
        options.setdefault("steps", 5)
    x = outcome(lambda: sdediff.sample(MODEL, (count, 2), solver, **options))
    if x is not None:
        assert x.shape == (count, 2)
        assert bool(torch.isfinite(x).all())


@inputs(0.2)
@given(changes=some(settings_of(Config()), 5))
def test_configurations_are_taken_whole_or_refused(changes: dict[str, Any]) -> None:
    """And what is taken comes back from its file."""
    config = outcome(lambda: Config().updated(changes))
    if config is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(config.to_json(), encoding="utf-8")
            assert Config.load(path) == config


@inputs(0.15)
@given(array=any_array(), reading=some(READING, 2))
def test_arrays_are_read_whole_or_refused(array: np.ndarray[Any, Any], reading: dict[str, Any]) -> None:
    """Every item is in one of the two parts, unless those with missing values were to be left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, array)
        dataset = outcome(lambda: load_dataset(path, **reading))
        if dataset is not None:
            count = len(dataset.train) + len(dataset.held_out)
            assert count == len(array) or (count < len(array) and reading.get("missing") in ("drop", "mean", "median"))
            assert dataset.train.shape[1:] == dataset.held_out.shape[1:] == dataset.info.shape
            assert bool(torch.isfinite(dataset.train.double()).all())


@inputs(0.15)
@given(text=csv_texts(), reading=some(READING, 2))
def test_tables_are_read_or_refused(text: str, reading: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        dataset = outcome(lambda: load_dataset(path, **reading))
        if dataset is not None:
            assert dataset.train.shape[1:] == dataset.held_out.shape[1:] == dataset.info.shape
            assert bool(torch.isfinite(dataset.train.double()).all())


@inputs(0.1)
@given(
    info=INFOS,
    prediction=st.sampled_from(list(PREDICTIONS)),
    conditioning=st.sampled_from(list(CONDITIONINGS)),
    process=st.sampled_from(list(PROCESSES)),
    data=st.data(),
)
def test_checkpoints_give_back_the_model(
    info: sdediff.DataInfo, prediction: str, conditioning: str, process: str, data: st.DataObject
) -> None:
    """Description and numbers to the bit."""
    changes = data.draw(some(PROCESS_CHANGES[process], 1)) if process in PROCESS_CHANGES else {}
    names = {"sde.name": process, "model.prediction": prediction, "model.conditioning": conditioning}
    network = {"network.name": "mlp", "network.width": 8, "network.blocks": 1}
    model = outcome(lambda: build(Config().updated({**names, **changes, **network}), info))
    if model is None:
        return
    note(repr(model))
    with tempfile.TemporaryDirectory() as folder:
        saved = outcome(lambda: sdediff.save(model, Path(folder) / "run") or True)
        if saved is None:
            return
        again = sdediff.load(Path(folder) / "run")
    assert describe_model(again) == describe_model(model)
    x = torch.linspace(-1.0, 1.0, 2 * torch.Size(info.shape).numel()).reshape(2, *info.shape)
    with torch.no_grad():
        split = outcome(lambda: model(x, model.sde.level(0.5)))
        if split is not None:
            for one, other in zip(split, again(x, model.sde.level(0.5)), strict=True):
                assert torch.equal(one, other)


FLAGS: dict[str, dict[str, st.SearchStrategy[Any] | None]] = {
    "sample": {
        "--solver": st.sampled_from(["ode", "sde", "heun", "adaptive", "ddim"]),
        "--steps": st.integers(1, 8),
        "--rtol": st.floats(1e-3, 0.1),
        "--grid": st.sampled_from(list(sdediff.GRIDS)),
        "-n": st.integers(1, 5),
        "--seed": st.integers(-5, 2**70),
        "--log-prob": None,
        "--label": st.integers(0, 3),
        "--guidance": st.floats(0.0, 3.0),
        "--condition": st.sampled_from(["label=1", "x=1,2", "label"]),
        "--batch-size": st.integers(1, 5),
        "--autocast": st.sampled_from(["bf16"]),
        "--out": st.sampled_from(["taken", "taken.png", "new/x", "x.npz", "run", "x.txt"]),
        "--json": None,
    },
    "likelihood": {
        "-n": st.integers(1, 4),
        "--elbo": None,
        "--solver": st.sampled_from(["ode", "ab4", "adaptive", "heun"]),
        "--steps": st.integers(2, 6),
        "--trace": st.sampled_from(["auto", "exact", "hutchinson"]),
        "--probes": st.integers(1, 4),
        "--samples": st.integers(1, 3),
        "--draws": st.integers(1, 8),
        "--dequantisation": st.sampled_from(["uniform", "decoder"]),
        "--prior": st.sampled_from(["moments", "standard"]),
        "--seed": st.integers(-5, 2**70),
        "--batch-size": st.integers(1, 5),
        "--out": st.sampled_from(["taken.csv", "new/x.csv", "x.npz", "run", "x.txt"]),
        "--json": None,
    },
    "encode": {
        "-n": st.integers(1, 4),
        "--solver": st.sampled_from(["ode", "heun", "reversible"]),
        "--steps": st.integers(5, 8),
        "--out": st.sampled_from(["taken.npz", "new/x", "x.txt"]),
        "--json": None,
    },
    "info": {
        "--list": None,
        "--json": None,
        "--cite": None,
        "--run": st.sampled_from(["run", "taken.npz", "owner/name"]),
    },
}
ALWAYS = {
    "sample": ("--steps", "4", "-n", "3"),
    "likelihood": ("-n", "3", "--steps", "4"),
    "encode": ("-n", "3", "--steps", "6"),
    "info": (),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and with files that must not be lost."""
    folder = tmp_path_factory.mktemp("place")
    config = Config().updated({"data.name": "moons", "network.width": 8, "network.blocks": 1})
    sdediff.save(build(config, load_dataset("moons").info), folder / "run")
    (folder / "run" / "config.json").write_text(config.to_json())
    for name in ("taken.png", "taken.npz", "taken.csv", "taken"):
        (folder / name).write_bytes(b"precious")
    return folder


def kept(folder: Path) -> dict[str, bytes]:
    """The files that no command may change unasked."""
    files = [*folder.glob("taken*"), *(path for path in (folder / "run").iterdir() if path.is_file())]
    return {path.name: path.read_bytes() for path in files}


@inputs(0.2)
@given(data=st.data(), command=st.sampled_from(list(FLAGS)))
def test_command_lines_end_in_an_answer_or_one_line(place: Path, data: st.DataObject, command: str) -> None:
    before = kept(place)
    arguments = [command, *ALWAYS[command], *(() if command == "info" else ("--run", "run"))]
    arguments += data.draw(argument_lists(FLAGS[command]))
    note(" ".join(arguments))
    here = Path.cwd()
    try:
        os.chdir(place)
        result = CliRunner().invoke(main, arguments)
    finally:
        os.chdir(here)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code in (0, 1, 2)
    errors = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(errors) == (result.exit_code != 0), result.stderr
    assert "internal error" not in result.stderr, result.stderr
    assert "Traceback" not in result.output
    after = kept(place)
    assert {name: after.get(name) for name in before} == before


def test_faults_are_found() -> None:
    """The control: what the laws above do not let pass."""
    for fault in (KeyError("x"), ValueError("two\nlines"), ValueError(""), ZeroDivisionError("division by zero")):

        def call(fault: Exception = fault) -> None:
            raise fault

        with pytest.raises((AssertionError, KeyError, ZeroDivisionError)):
            outcome(call)
