"""``sdediff compare`` on a tiny run: tables, picture, numbers, and every error with its exit code."""

from __future__ import annotations

import csv
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sdediff import plots, tuning
from sdediff.checkpoint import save
from sdediff.cli import compare as module
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.data import load_dataset
from sdediff.samplers import SAMPLERS, Sampler
from untrained import untrained_run

CHEAP = ["--count", "8", "--tolerance", "1e-3"]


def call(*args: object) -> Result:
    return CliRunner().invoke(main, ["compare", *(str(arg) for arg in args)])


def done(*args: object) -> dict[str, Any]:
    result = call(*args, *CHEAP, "--json")
    assert result.exit_code == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights on points; the last layer of an untrained one is zero."""
    return untrained_run(tmp_path_factory.mktemp("compare") / "run", width=16, described=False)


def test_tables_picture_and_numbers(run: Path, tmp_path: Path) -> None:
    """The same figures in all three; the best of each column, and it alone, has the mark."""
    args = ("--run", run, "--solver", "ode,ddim", "--solver", "heun", "--forwards", "4,8", "--out", tmp_path / "new")
    result = call(*args, *CHEAP)
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader((tmp_path / "new.csv").read_text().splitlines()))
    assert (tmp_path / "new.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert [(row["solver"], row["budget"]) for row in rows] == [
        (solver, budget) for solver in ("ode", "ddim", "heun") for budget in ("4", "8")
    ]
    for measure, head in (("rms", "RMS error by forwards"), ("median", "median error by forwards")):
        table = result.stdout.partition(head)[2].splitlines()[1:5]
        assert table[0].split() == ["solver", "4", "8"]
        for line, solver in zip(table[1:], ("ode", "ddim", "heun"), strict=True):
            shown = re.findall(r"(\d\.\de[-+]\d\d)(~?)(\*?)", line)
            own = [row for row in rows if row["solver"] == solver]
            assert [value for value, _, _ in shown] == [f"{float(row[measure]):.1e}" for row in own]
            for (_, _, mark), row in zip(shown, own, strict=True):
                rivals = [float(other[measure]) for other in rows if other["budget"] == row["budget"]]
                assert (mark == "*") == (float(row[measure]) == min(rivals))
    assert "(3)" in result.stdout  # what Heun spends of 4
    assert re.search(
        r"8 starts; reference: dopri5 at rtol 0.001, \d+ forwards, own error at most about \d\.\de-", result.stdout
    )
    assert "energy" not in result.stdout


def test_json_holds_every_row_and_the_reference(run: Path) -> None:
    figures = done("--run", run, "--solver", "dopri5,sde", "--rtol", "0.1,0.01", "--forwards", 4)
    assert [(row["solver"], row["rtol"]) for row in figures["rows"]] == [
        ("dopri5", 0.1),
        ("dopri5", 0.01),
        ("sde", None),
    ]
    assert figures["rows"][2]["rms"] is None
    assert figures["rows"][2]["distance_error"] > 0.0
    assert figures["reference"]["rtol"] == 1e-3
    assert figures["starts"] == 8
    assert Path(figures["picture"]).parent == run / "comparisons"


def test_stochastic_solvers_get_a_table_and_axes_of_their_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[plots.Panel] = []
    monkeypatch.setattr(plots, "trade_off", lambda panels, path, xlabel: drawn.extend(panels))
    result = call("--run", run, "--solver", "ddim,sde,dopri5", "--forwards", 4, "--rtol", 0.1, *CHEAP)
    assert "*" not in result.stdout.partition("RMS error by rtol")[2].partition("\n\n")[0]
    assert [head for head in ("RMS error by rtol", "energy distance by forwards") if head in result.stdout] == [
        "RMS error by rtol",
        "energy distance by forwards",
    ]
    assert [list(panel.series) for panel in drawn] == [
        ["ddim", "dopri5"],
        ["ddim", "dopri5"],
        ["ddim", "sde", "dopri5"],
    ]
    alone = call("--run", run, "--solver", "sde", "--forwards", 4, *CHEAP)
    assert "RMS error" not in alone.stdout
    assert len(drawn) == 4


def test_nothing_is_overwritten_unasked(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "trade_off", lambda panels, path, xlabel: path.write_bytes(b""))
    args = ("--run", run, "--solver", "ddim", "--forwards", 2)
    first, second = (done(*args, "--out", tmp_path) for _ in range(2))
    assert first["picture"] != second["picture"]
    named = Path(first["picture"])
    before = named.with_suffix(".csv").read_bytes()
    refused = call(*args, "--out", named, *CHEAP)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert named.with_suffix(".csv").read_bytes() == before
    assert done(*args, "--out", named, "--force", "--seed", 1)["picture"] == str(named)
    assert named.with_suffix(".csv").read_bytes() != before


def test_the_tuned_solver_is_another_for_every_number_of_steps(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There for 4 steps alone; and a budget without one has no row."""

    def load(folder: Path, model: object, steps: int | None = None) -> Sampler:
        if steps not in (None, 4):
            raise ValueError("none of so many")
        return SAMPLERS["ode"]

    monkeypatch.setattr(tuning, "load", load)
    rows = done("--run", run, "--solver", "tuned,ode", "--forwards", "3,4")["rows"]
    assert [(row["solver"], row["budget"]) for row in rows] == [("tuned", 4), ("ode", 3), ("ode", 4)]
    assert rows[0]["rms"] == rows[2]["rms"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--solver", "odd"), "unknown solver 'odd' (did you mean 'ode'?)"),
        (("--solver", "ode,nope"), "unknown solver 'nope'"),
        (("--forwards", "5,x"), "'x' is not a valid int"),
        (("--forwards", "0"), "0 is not in the range x>=1"),
        (("--rtol", "-1"), "not in the range"),
        (("--count", "2"), "not in the range x>=3"),
        (("--out", "a.txt"), "--out must end in .png or .csv"),
        (("--solver", "tuned"), "tuned"),
        (("--device", "abacus"), "no device 'abacus'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Path, args: tuple[str, ...], message: str) -> None:
    result = call("--run", run, *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (run / "a.png").exists()


def test_an_interrupted_comparison_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*args: object, progress: object, **settings: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(module, "compare", compare)
    result = call("--run", run, "--out", tmp_path / "a.png")
    assert (result.exit_code, list(tmp_path.iterdir())) == (130, [])


def test_solves_without_error_can_be_drawn(tmp_path: Path) -> None:
    """A network that says nothing makes every solver exact, and a logarithm cannot show that."""
    config = Config().updated({"data.name": "moons", "network.name": "mlp", "network.width": 16, "network.blocks": 1})
    save(build(config, load_dataset("moons").info), tmp_path)
    figures = done("--run", tmp_path, "--solver", "ddim", "--forwards", 3)
    assert Path(figures["picture"]).exists()
