"""The command line on tiny runs: every command, every error with its exit code, and nothing overwritten unasked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import sdediff
from sdediff import plots
from sdediff.checkpoint import load, save
from sdediff.cli import COMMANDS, main
from sdediff.config import Config, build
from sdediff.data import load_dataset
from sdediff.grids import GRIDS
from sdediff.samplers import ADAPTIVE, SAMPLERS, SOLVERS
from sdediff.types import DataInfo

ROUNDING = 1e-3
"""Float32 sums over a solve differ in their last bits with the batch's shape and the alignment of memory; that is some
hundred times below this. Another seed, solver or item differs by far more."""

TINY = ["--set", "network.name=mlp", "--set", "network.width=16", "--set", "network.blocks=1"]


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def done(*args: object) -> dict[str, Any]:
    """Run a command with ``--json``; its figures."""
    result = call(*args, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def refused(*args: object, code: int = 2) -> str:
    """Run a command that must fail with one line; the line."""
    result = call(*args)
    assert result.exit_code == code, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("run: ", "training on "))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0]


def is_png(path: Path | str) -> bool:
    return Path(path).read_bytes().startswith(b"\x89PNG\r\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run on digits, and what training it said."""
    run = tmp_path_factory.mktemp("cli") / "runs" / "digits"
    return run, done(
        "train", "--run", run, "--steps", 30, "--batch-size", 32, "--set", "training.sample_every=15", *TINY
    )


@pytest.fixture(scope="session")
def digits(trained: tuple[Path, dict[str, Any]]) -> Path:
    return trained[0]


@pytest.fixture(scope="session")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run on points."""
    run = tmp_path_factory.mktemp("cli") / "points"
    config = Config().updated({"data.name": "moons", "network.name": "mlp", "network.width": 16, "network.blocks": 1})
    save(build(config, load_dataset("moons").info), run)
    (run / "config.json").write_text(config.to_json())
    return run


# ---- the group ---------------------------------------------------------------------------------------------------


def test_help_lists_every_command_in_order() -> None:
    text = call("--help").stdout
    positions = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert positions == sorted(positions)
    assert call().stdout == text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    examples, _, options = result.stdout.partition("Examples:")[2].partition("Options:")
    assert examples.count(f"sdediff {command}") >= 2
    assert "--json" in options


def test_solver_help_is_generated_from_the_table() -> None:
    text = call("info", "--list").stdout
    for name, solver in SAMPLERS.items():
        row = next(line.split() for line in text.splitlines() if line.strip().startswith(f"{name} "))
        assert row[1:3] == ["SDE" if solver.stochastic else "ODE", str(solver.order)]
    listed = {command: _listed_solvers(command) for command in ("sample", "encode")}
    assert set(SAMPLERS) <= listed["sample"]
    assert listed["encode"] & set(SAMPLERS) == {name for name, solver in SAMPLERS.items() if not solver.stochastic}


def _listed_solvers(command: str) -> set[str]:
    """The names at the end of a command's help."""
    text = call(command, "--help").stdout.partition("Solvers,")[2]
    return {word.strip(",") for line in text.splitlines()[1:] for word in line.split()}


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_is_narrow_and_short(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, and two screens of 40 lines, on a wide terminal too."""
    monkeypatch.setenv("COLUMNS", "200")
    lines = call(*command, "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 2 * 40


def test_lists_are_narrow() -> None:
    assert max(len(line) for line in call("info", "--list").stdout.splitlines()) <= 82


def test_colours_are_of_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        for terminal in (True, False):
            result = CliRunner().invoke(main, ["sampel"], color=terminal)
            assert ("\x1b[" in result.stderr) == (coloured and terminal)
            assert click.unstyle(result.stderr).startswith("error: no command")


def test_module_and_lazy_imports() -> None:
    code = (
        "import sys\nfrom sdediff.cli import main\n"
        "try: main(['--help'], prog_name='sdediff')\n"
        "finally: assert not [m for m in sys.modules if m in ('sdediff.cli.train', 'torch')]"
    )
    commands = (
        "import sys\nfrom importlib import import_module\nfrom sdediff.cli import COMMANDS\n"
        "for name in COMMANDS: import_module(f'sdediff.cli.{name}')\n"
        "print([m for m in ('scipy.stats', 'torchdiffeq', 'matplotlib', 'accelerate', 'sklearn') if m in sys.modules])"
    )
    runs = [
        subprocess.Popen([sys.executable, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for args in (["-m", "sdediff", "--version"], ["-m", "sdediff", "sampel"], ["-c", code], ["-c", commands])
    ]
    (version, _), (_, wrong), (text, _), (heavy, _) = (run.communicate(timeout=120) for run in runs)
    assert [run.returncode for run in runs] == [0, 2, 0, 0]
    assert heavy == "[]\n"
    assert version == f"sdediff {sdediff.__version__}\n"
    assert wrong.startswith("error: no command 'sampel' (did you mean 'sample'?)")
    assert "Commands:" in text


def test_shells_complete_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, there in (
        ("sdediff sam", "sample"),
        ("sdediff sample --solver dpm++3", "dpm++3m"),
        ("sdediff info --ci", "--cite"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        monkeypatch.setenv("_SDEDIFF_COMPLETE", "bash_complete")
        result = CliRunner().invoke(main, [], prog_name="sdediff")
        assert f"plain,{there}\n" in result.stdout


def test_the_citation_is_that_of_the_repository() -> None:
    text = (Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8")
    said = done("info", "--cite")
    for name, value in (("title", said["title"]), ("version", said["version"]), ("  - name", said["author"])):
        assert f"{name}: {value}\n" in text.replace('"', "")
    assert call("info", "--cite").stdout == said["bibtex"] + "\n"


def test_hub_names_are_fetched_when_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a stand-in of the hub's client, which has the folder and lets only some files through."""
    monkeypatch.chdir(tmp_path)
    sdediff.save(build(Config(), DataInfo((2,), name="moons")), "cache")
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "owner/gone":
            raise RuntimeError("404 Client Error\nmore")
        return "cache"

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert "--download" in refused("info", "--run", "owner/name")
    assert asked == []
    assert done("info", "--run", "owner/name", "--download")["run"] == "cache"
    assert asked == [("owner/name", ["*.json", "*.safetensors"])]
    assert (
        refused("info", "--run", "owner/gone", "--download") == "error: owner/gone cannot be fetched: 404 Client Error"
    )


# ---- train -------------------------------------------------------------------------------------------------------


def test_train_writes_a_run_that_loads(trained: tuple[Path, dict[str, Any]]) -> None:
    run, figures = trained
    assert figures["run"] == str(run)
    assert figures["steps"] == 30
    assert not figures["interrupted"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert figures["loss"] == next(line["loss"] for line in reversed(lines) if "loss" in line)
    assert {file.name for file in (run / "samples").glob("step_*.png")} == {"step_000015.png", "step_000030.png"}
    assert is_png(run / "loss.png")
    assert load(run).data == load_dataset("digits").info


def test_train_does_not_overwrite_a_run(digits: Path) -> None:
    before = contents(digits)
    line = refused("train", "--run", digits, "--steps", 5)
    assert "--resume" in line
    assert "--force" in line
    assert "exclude" in refused("train", "--run", digits, "--resume", "--force")
    assert "training.batch_size" in refused("train", "--run", digits, "--resume", "--batch-size", 31)
    assert contents(digits) == before


def test_interrupted_run_resumes_with_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["train", "--data", "moons", "--batch-size", "32", "--seed", "3", "--steps", "20", *TINY]

    def picture(samples: object, info: object, path: Path, **settings: object) -> None:
        if path.name == "step_000006.png":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(plots, "picture", picture)
        result = call(*args, "--set", "training.sample_every=6")
    assert result.exit_code == 130
    assert "stopped after 7 steps" in result.stdout  # the step that the signal met is finished
    assert "sdediff train --resume --run runs/moons" in result.stdout
    assert done("train", "--resume")["steps"] == 20
    done(*args, "--run", "straight")
    done(*args, "--run", "other", "--seed", 4)
    assert "finished already, after 20 steps" in call("train", "--resume", "--run", "runs/moons").stderr
    resumed, straight, other = (done("info", "--run", run)["last"] for run in ("runs/moons", "straight", "other"))
    # float32 sums depend on the alignment of memory, in their last bits; another seed is another loss
    assert resumed["held_out_loss"] == pytest.approx(straight["held_out_loss"], rel=1e-4)
    assert other["held_out_loss"] != pytest.approx(straight["held_out_loss"], rel=1e-4)
    assert resumed["learning_rate"] == straight["learning_rate"]
    done(*args, "--force", "--steps", 2)
    assert done("info", "--run", "runs/moons")["steps"] == 2


def test_train_from_a_file_with_flags_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("cloud.npy", np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    Path("run.toml").write_text(
        '[data]\nname = "cloud.npy"\n[network]\nname = "mlp"\nwidth = 16\nblocks = 1\n'
        "[training]\nsteps = 9\nbatch_size = 8\nlearning_rate = 0.5\n"
    )
    done(
        "train", "--config", "run.toml", "--steps", 2, "--lr", 0.25, "--set", "sde.name=ve", "--set", "sde.sigma_max=9"
    )
    config = Config.load("runs/cloud/config.json")
    assert (config.training.steps, config.training.batch_size, config.training.learning_rate) == (2, 8, 0.25)
    assert load("runs/cloud").sde == sdediff.VESDE(sigma_max=9.0)
    assert is_png("runs/cloud/samples/step_000002.png")


# ---- sample ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SAMPLERS)
def test_sample_is_the_library_s_with_every_forward_counted(digits: Path, tmp_path: Path, solver: str) -> None:
    options: dict[str, Any] = {"rtol": 1e-2} if SAMPLERS[solver].adaptive else {"steps": 3}
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    figures = done("sample", "--run", digits, "--solver", solver, "-n", 4, "--seed", 5, "--out", tmp_path / "x", *flags)
    model = load(digits)
    x = sdediff.sample(model, (4, 1, 8, 8), solver, seed=5, **options)
    start = model.sde.prior_sample((4, 1, 8, 8), moments=model.moments, seed=5)
    nfe = sdediff.solve(model, start, solver, t_to=0.0, seed=5, **options).nfe
    # the figure is a sample's own; where samples leave the batch as they arrive, the average
    assert 0.5 * nfe < figures["nfe"] <= nfe if solver in ("adaptive", "adaptive-sde") else figures["nfe"] == nfe
    assert figures["steps"] == options.get("steps")
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_allclose(arrays["samples"], x.numpy(), atol=ROUNDING)
        assert arrays["levels"].dtype == np.uint8
        # level k sits at -1 + k / 8 and owns the half bin of 1/16 on either side; the outer ones are clamped
        distance = np.abs(np.clip(x.numpy(), -1.0, 1.0) - (arrays["levels"] / 8.0 - 1.0))
        assert distance.max() <= 1.0 / 16.0 + 1e-6
        assert (int(arrays["seed"]), str(arrays["solver"])) == (5, solver)
    assert is_png(tmp_path / "x.png")


def test_batches_change_nothing_but_the_count_of_forwards(digits: Path, tmp_path: Path) -> None:
    args = ["sample", "--run", digits, "-n", 5, "--steps", 4, "--out"]
    whole, parts = done(*args, tmp_path / "a"), done(*args, tmp_path / "b.png", "--batch-size", 2)
    assert (whole["nfe"], whole["forwards"]) == (4, 4)
    assert (parts["nfe"], parts["forwards"]) == (4, 12)
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        np.testing.assert_allclose(a["samples"], b["samples"], atol=ROUNDING)


def test_sample_writes_the_library_s_densities(digits: Path, tmp_path: Path) -> None:
    args = ["sample", "--run", digits, "-n", 3, "--steps", 3, "--log-prob", "--out"]
    figures = done(*args, tmp_path / "a")
    x, log_prob = sdediff.sample(load(digits), (3, 1, 8, 8), steps=3, return_log_prob=True)
    assert (figures["steps"], figures["nfe"]) == (3, 4)
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_allclose(arrays["samples"], x.numpy(), atol=ROUNDING)
        np.testing.assert_allclose(arrays["log_prob"], log_prob.numpy(), rtol=ROUNDING)
        assert figures["log_prob"] == pytest.approx(float(arrays["log_prob"].mean()))
    assert "one forward a step" in refused(*args, tmp_path / "b", "--solver", "heun")


def test_repeated_samples_lose_nothing(digits: Path, tmp_path: Path) -> None:
    first = done("sample", "--run", digits, "-n", 2, "--steps", 2)
    before = contents(digits)
    second = done("sample", "--run", digits, "-n", 2, "--steps", 2)
    assert Path(first["numbers"]).parent == digits / "samples"
    assert first["numbers"] != second["numbers"]
    assert before.items() <= contents(digits).items()
    out = tmp_path / "mine.png"
    out.write_text("precious")
    assert "--force" in refused("sample", "--run", digits, "-n", 2, "--steps", 2, "--out", out)
    assert contents(tmp_path) == {"mine.png": b"precious"}
    done("sample", "--run", digits, "-n", 2, "--steps", 2, "--out", out, "--force")
    assert set(contents(tmp_path)) == {"mine.png", "mine.npz"}
    assert is_png(out)


def test_most_recent_run_is_taken_and_named(digits: Path, points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits.parents[1])
    result = call("sample", "-n", "1", "--steps", "1", "--out", digits / "samples" / "recent")
    assert result.exit_code == 0
    assert result.stderr == "run: runs/digits (the most recent)\n"
    assert "solver ode, 1 steps, NFE 1" in result.stdout


def test_a_run_whose_data_are_unknown_still_samples(points: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model.json", "model.safetensors"):
        (run / name).write_bytes((points / name).read_bytes())
    figures = done("sample", "--run", run / "model.json", "-n", 3, "--steps", 2)
    assert Path(figures["picture"]).parent == run / "samples"
    assert is_png(figures["picture"])
    assert "give DATA" in refused("encode", "--run", run)


# ---- encode, decode, interpolate ---------------------------------------------------------------------------------


def test_decode_undoes_encode(digits: Path, tmp_path: Path) -> None:
    encoded = done("encode", "--run", digits, "-n", 5, "--batch-size", 3, "--out", tmp_path / "z.npz")
    assert encoded["items"] == 5
    figures = done("decode", tmp_path / "z.npz", "--run", digits, "--out", tmp_path)
    with np.load(figures["numbers"]) as arrays:
        assert np.array_equal(arrays["levels"], load_dataset("digits").held_out[:5].numpy())
    again = done("decode", tmp_path / "z.npz", "--run", digits, "--out", tmp_path)
    # in a folder every file gets a new name: z.npz are the latents themselves
    assert [Path(one["numbers"]).name for one in (figures, again)] == ["z-2.npz", "z-3.npz"]


def test_reversible_latents_give_the_very_items_back(digits: Path, tmp_path: Path) -> None:
    exactly = ("--solver", "reversible", "--steps", 6)
    encoded = done("encode", "--run", digits, "-n", 4, "--batch-size", 3, *exactly, "--out", tmp_path / "z.npz")
    figures = done("decode", tmp_path / "z.npz", "--run", digits, "--out", tmp_path / "x")
    assert (encoded["nfe"], figures["nfe"]) == (6, 5)
    with np.load(figures["numbers"]) as arrays, np.load(tmp_path / "z.npz") as z:
        values = load_dataset("digits").held_out[:4].numpy() / 8.0 - 1.0
        assert np.sqrt(np.mean((arrays["samples"] - values) ** 2) / np.mean(values**2)) < 1e-4
        assert z["latents"].shape == (4, 5, 1, 8, 8)
    for other in (("--steps", 7), ("--solver", "ode"), ("--grid", "time")):
        assert "decoded as they came" in refused("decode", tmp_path / "z.npz", "--run", digits, *other)


def test_own_samples_can_be_encoded(digits: Path, tmp_path: Path) -> None:
    done("sample", "--run", digits, "-n", 3, "--steps", 2, "--out", tmp_path / "s")
    done("encode", tmp_path / "s.npz", "--run", digits, "--solver", "heun", "--steps", 8, "--out", tmp_path / "z")
    model = load(digits)
    with np.load(tmp_path / "s.npz") as s, np.load(tmp_path / "z.npz") as z:
        x = torch.from_numpy(s["levels"] / 8.0 - 1.0).float()
        expected = sdediff.encode(model, x, "heun", steps=8)
        np.testing.assert_allclose(z["latents"], expected.numpy(), atol=ROUNDING)


def test_interpolate_begins_and_ends_at_the_items(digits: Path, points: Path, tmp_path: Path) -> None:
    args = ["interpolate", "--pair", 4, 1, "--pair", 0, 0, "--points", 3, "--batch-size", 3]
    figures = done(*args, "--run", digits, "--out", tmp_path / "film")
    assert figures["pairs"] == [[4, 1], [0, 0]]
    items = load_dataset("digits").held_out.numpy()
    with np.load(tmp_path / "film.npz") as arrays:
        assert np.array_equal(arrays["levels"][0], items[[4, 0]])
        assert np.array_equal(arrays["levels"][-1], items[[1, 0]])
        assert np.array_equal(arrays["levels"][1, 1], items[0])
    done(*args, "--run", points, "--out", tmp_path / "lines")
    held_out = load_dataset("moons").held_out.numpy()
    with np.load(tmp_path / "lines.npz") as arrays:
        # there and back at a tolerance of 1e-6 a step
        np.testing.assert_allclose(arrays["samples"][0], held_out[[4, 0]], atol=1e-3)
    np.save(tmp_path / "one.npy", items[:1])
    assert "at least 2 items" in refused("interpolate", tmp_path / "one.npy", "--run", digits)
    assert "items 0 to 359; there is no item 360" in refused("interpolate", "--run", digits, "--pair", 0, 360)


# ---- info --------------------------------------------------------------------------------------------------------


def test_info_of_a_run(digits: Path) -> None:
    figures = done("info", "--run", digits)
    assert figures["parameters"] == sum(p.numel() for p in load(digits).parameters())
    assert (figures["steps"], figures["training"]["batch_size"]) == (30, 32)
    assert f"{figures['parameters']:,} parameters" in call("info", "--run", digits).stdout


def test_info_lists_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = done("info")
    assert figures["solvers"] == list(SOLVERS)
    assert figures["grids"] == list(GRIDS)
    assert figures == done("info", "--list")
    text = call("info").stdout
    assert all(f"\n  {name} " in text for name in [*SOLVERS, *GRIDS, *figures["processes"], *figures["data"]])


# ---- what goes wrong ---------------------------------------------------------------------------------------------


BAD = {
    "solver": (["sample", "--solver", "oed"], "unknown solver 'oed' (did you mean 'ode'?)"),
    "grid": (["sample", "--grid", "karas"], "unknown grid 'karas' (did you mean 'karras'?)"),
    "negative steps": (["sample", "--steps", "-3"], "-3 is not in the range x>=1"),
    "no samples": (["sample", "-n", "0"], "0 is not in the range x>=1"),
    "steps and tolerance": (["sample", "--steps", "5", "--rtol", "1e-3"], "not both"),
    "tolerance of a fixed solver": (["sample", "--solver", "heun", "--rtol", "1e-3"], ", ".join(ADAPTIVE)),
    "steps of an adaptive solver": (["sample", "--solver", "dopri5", "--steps", "5"], "give rtol/atol"),
    "grid of an adaptive solver": (["sample", "--solver", "dopri5", "--grid", "karras"], "give it no grid"),
    "negative tolerance": (["encode", "--rtol", "-1"], "is not in the range x>0"),
    "device": (["sample", "--device", "abacus"], "no device 'abacus' here; available: "),
    "absent device": (["sample", "--device", "cuda:99"], "no device 'cuda:99' here; available: "),
    "suffix": (["sample", "--out", "x.jpg"], "must end in .png or .npz"),
    "option": (["sample", "--sovler", "ode"], "--sovler"),
    "stochastic encoder": (
        ["encode", "--solver", "sde"],
        "the solver 'sde' is not for this command; choose one of: ode, ",
    ),
    "table suffix": (["likelihood", "--out", "x.xlsx"], "must end in one of: .npz, .csv; not"),
    "trace": (["likelihood", "--trace", "exakt"], "did you mean 'exact'?"),
    "no data": (["likelihood", "nowhere.npz"], "no data 'nowhere.npz': neither a path nor one of digits, "),
    "NaN data": (["likelihood", "nan.npy"], "nan.npy: 1 of 192 values are missing, in 1 of 3 items"),
    "wrong shape": (["encode", "wide.npy"], "the run's items have shape (1, 8, 8), these (1, 9, 9)"),
    "levels": (["likelihood", "bright.npy"], "levels must lie in 0 .. 16; came 17 to 17"),
    "pickled data": (["encode", "objects.npy"], "pickled objects"),
    "grid of an adaptive encoder": (["encode", "--rtol", "1e-3", "--grid", "karras"], "give it no grid"),
    "one point": (["interpolate", "--points", "1"], "1 is not in the range x>=2"),
    "no latents": (["decode", "nowhere.npz"], "no data at nowhere.npz"),
    "latents of another shape": (["decode", "wide.npy"], "the run's latents are floats (1, 8, 8)"),
    "missing argument": (["decode"], "LATENTS"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    args, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    nan, wide = np.zeros((3, 1, 8, 8), dtype=np.float32), np.zeros((3, 1, 9, 9), dtype=np.float32)
    nan[1, 0, 2, 3] = np.nan
    np.save("nan.npy", nan)
    np.save("wide.npy", wide)
    np.save("bright.npy", np.full((1, 1, 8, 8), 17))
    np.save("objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    before = contents(tmp_path), contents(digits)
    assert message in refused(*args, "--run", digits)
    assert (contents(tmp_path), contents(digits)) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "training.stepz=3"], "unknown setting training.stepz"),
        (["--set", "training.steps=many"], "training.steps"),
        (["--set", "sde.name=vpp"], "unknown process 'vpp'"),
        (["--set", "steps"], "SECTION.KEY=VALUE"),
        (["--data", "nowhere"], "no data 'nowhere'"),
        (["--config", "none.toml"], "no configuration file none.toml"),
        (["--config", "bad.toml"], "bad.toml cannot be read"),
        (["--batch-size", "0"], "0 is not in the range x>=1"),
        (["--lr", "-1"], "-1.0 is not in the range x>0"),
        (["--resume"], "no run under runs"),
        (["--resume", "--run", "nowhere"], "nothing to resume in nowhere"),
        (["--run", "bad.toml/run", "--steps", "1", *TINY], "bad.toml"),
    ],
)
def test_bad_training_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("steps = = 3")
    result = call("train", *args)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert set(contents(tmp_path)) == {"bad.toml"}


def test_a_checkpoint_that_is_none(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "train one with `sdediff train`" in refused("sample")
    assert "no model in nowhere: there is no such folder" in refused("sample", "--run", "nowhere")
    Path("model.pt").write_bytes(b"\x80\x04cposix\nsystem\n")
    assert "pickles are refused" in refused("sample", "--run", "model.pt")
    for name in ("model.json", "model.safetensors"):
        Path(name).write_bytes((digits / name).read_bytes())
    whole = Path("model.safetensors").read_bytes()
    Path("model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused("sample", "--run", ".")
    Path("model.safetensors").write_bytes(whole)
    Path("model.json").write_text("{")
    assert "damaged" in refused("sample", "--run", ".")


def test_an_unwritable_output_is_found_before_the_work(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("the work began")

    for command in ("sample", "encode", "likelihood"):
        monkeypatch.setattr(
            "sdediff.evaluation.evaluate" if command == "likelihood" else f"sdediff.cli.{command}.{command}", work
        )
        (tmp_path / "file").write_text("not a folder")
        line = refused(command, "--run", digits, "--out", tmp_path / "file" / "x.npz")
        assert str(tmp_path / "file") in line


def test_failed_work_exits_1_and_writes_nothing(points: Path, tmp_path: Path) -> None:
    model = load(points)
    with torch.no_grad():
        next(model.parameters()).fill_(3e38)
    save(model, tmp_path / "run")
    before = set(contents(tmp_path))
    line = refused("sample", "--run", tmp_path / "run", "--steps", 2, code=1)
    assert "finite" in line
    assert set(contents(tmp_path)) == before


def test_a_fault_of_the_program_is_one_line_too(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise KeyError("gone\nwrong")

    monkeypatch.setattr("sdediff.cli.sample.sample", broken)
    assert "SDEDIFF_DEBUG=1" in refused("sample", "--run", digits, code=1)
    monkeypatch.setenv("SDEDIFF_DEBUG", "1")
    assert isinstance(call("sample", "--run", digits).exception, KeyError)
