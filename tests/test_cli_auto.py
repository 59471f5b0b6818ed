"""``--solver auto``: chosen once for a run, kept in its folder, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import sdediff
from sdediff import checkpoint, tuning
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.samplers import SOLVERS
from sdediff.samplers.candidates import METHODS
from sdediff.samplers.chosen import Chosen
from sdediff.tuning import Choice

AUTO = ("--solver", "auto")


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def done(*args: object) -> tuple[dict[str, Any], list[str]]:
    """The figures of a command, and its remarks about the choice."""
    result = call(*args, "--json")
    assert result.exit_code == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)
    lines = result.stderr.splitlines()
    return figures, [line for line in lines if line.startswith("solver auto: ") or line.endswith(": choosing anew")]


def samples(path: Path) -> np.ndarray:
    with np.load(path.with_suffix(".npz")) as arrays:
        return np.asarray(arrays["samples"])


def refused(*args: object) -> str:
    result = call(*args)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def network(seed: int) -> sdediff.ScoreModel:
    """A network with random weights: curved enough for solvers to differ."""
    changes = {"data.name": "moons", "network.name": "mlp", "network.width": 16, "network.blocks": 1}
    model = build(Config().updated(changes), sdediff.DataInfo((2,)))
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # the last layer of an untrained network is zero
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=rng)
    return model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    sdediff.save(network(0), tmp_path / "run")
    return tmp_path / "run"


# ---- kept and reused -----------------------------------------------------------------------------------------------


def test_a_choice_is_made_once_and_is_the_library_s(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ("sample", "--run", run, *AUTO, "--steps", 4, "-n", 5, "--out")
    first, remarks = done(*sample, tmp_path / "a")
    file = run / tuning.CHOICES_FILE
    made = first["chosen"][0]
    assert (first["solver"], first["steps"], first["nfe"], made["kept"]) == ("auto", 4, 4, str(file))
    assert 0 < made["forwards"] <= 1280
    assert len(remarks) == 1
    assert remarks[0].startswith(f"solver auto: {made['name']}, 4 steps (chosen in ")
    assert remarks[0].endswith(f" s, kept in {file})")
    expected = sdediff.sample(sdediff.load(run), (5, 2), "auto", steps=4)
    np.testing.assert_allclose(samples(tmp_path / "a"), expected.numpy(), atol=1e-5)
    content = file.read_bytes()
    monkeypatch.setattr(tuning, "choose", None)  # nothing is chosen any more
    second, remarks = done(*sample, tmp_path / "b")
    assert remarks == [f"solver auto: {made['name']}, 4 steps (from {file})"]
    assert second["chosen"] == [{**made, "forwards": 0, "seconds": 0.0}]
    assert file.read_bytes() == content
    np.testing.assert_array_equal(samples(tmp_path / "a"), samples(tmp_path / "b"))


def test_latents_are_decoded_by_a_choice_for_the_other_direction(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32))
    z, back = tmp_path / "z.npz", tmp_path / "back"
    there, _ = done("encode", tmp_path / "x.npy", "--run", run, *AUTO, "--steps", 12, "--batch-size", 4, "--out", z)
    back_again, _ = done("decode", z, "--run", run, "--out", back)
    (out,), (home,) = there["chosen"], back_again["chosen"]
    assert (there["nfe"], back_again["nfe"]) == (12, 12)
    assert out["times"][0] == home["times"][-1] < out["times"][-1] == home["times"][0]
    assert np.abs(samples(back) - np.load(tmp_path / "x.npy")).max() < 0.05  # each to the error of 12 steps
    paths = tmp_path / "paths"
    both = ("interpolate", tmp_path / "x.npy", "--run", run, *AUTO, "--steps", 12, "--points", 3, "--out", paths)
    found, remarks = done(*both)
    assert [each["times"] for each in found["chosen"]] == [out["times"], home["times"]]
    assert all(line.endswith(f"(from {run / tuning.CHOICES_FILE})") for line in remarks)
    np.testing.assert_allclose(samples(paths)[[0, -1], 0], samples(back)[:2], atol=1e-4)


def test_compare_chooses_for_every_number_of_forwards(run: Path, tmp_path: Path) -> None:
    options = ("--solver", "auto,ddim", "--forwards", "4,3", "--count", 8, "--out", tmp_path / "c")
    figures, remarks = done("compare", "--run", run, *options)
    assert [(row["solver"], row["nfe"]) for row in figures["rows"]] == [
        ("auto", 3), ("auto", 4), ("ddim", 3), ("ddim", 4)
    ]  # fmt: skip
    assert sorted(each["steps"] for each in figures["chosen"]) == [3, 4]
    assert len(remarks) == 2
    by_name = {(row["solver"], row["steps"]): row["rms"] for row in figures["rows"]}
    assert all(by_name["auto", steps] < by_name["ddim", steps] for steps in (3, 4))


def test_choices_of_other_intervals_and_steps_stay(run: Path) -> None:
    model = sdediff.load(run)
    method, times = METHODS["ode"], (0.999, 0.5, 0.2, 0.0)
    choices = [
        (Choice("three", Chosen(method, times), -1.0), ""),
        (Choice("three, free", Chosen(method, (0.999, 0.7, 0.5, 0.2, 0.0), True), -1.5), "y=[1]"),
        (Choice("two", Chosen(METHODS["deis3"], (0.999, 0.3, 0.0)), -2.0), ""),
        (Choice("back", Chosen(method, (1e-5, 0.2, 0.5, 0.999)), -3.0), ""),
    ]
    for choice, setting in choices:
        tuning.save_choice(run, model, choice, setting)
    tuning.save_choice(run, model, Choice("three again", Chosen(method, times), -1.1))
    wanted = [(3, 0.999, 0.0, ""), (2, 0.999, 0.0, ""), (3, 1e-5, 0.999, ""), (4, 0.999, 0.0, "")]
    found = [tuning.load_choice(run, model, *key) for key in wanted]
    assert found == [Choice("three again", Chosen(method, times), -1.1), choices[2][0], choices[3][0], None]
    assert tuning.load_choice(run, model, 3, 0.999, 0.0, "y=[1]") == choices[1][0]


# ---- caches that cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["another model", "another format", "damaged", "no text"])
def test_a_file_that_cannot_be_used_is_replaced(run: Path, tmp_path: Path, case: str) -> None:
    file, sample = run / tuning.CHOICES_FILE, ("sample", "--run", run, *AUTO, "--steps", 3, "-n", 4, "--out")
    first, _ = done(*sample, tmp_path / "a")
    content = file.read_bytes()
    if case == "another model":
        sdediff.save(network(1), run, force=True)
    elif case == "another format":
        file.write_text(json.dumps({**json.loads(content), "format": 7}))
    else:
        file.write_bytes(content[:-20] if case == "damaged" else b"\xff")
    second, remarks = done(*sample, tmp_path / "b")
    words = {"another format": "has format 7", "no text": "is damaged"}.get(case, case)
    assert len(remarks) == 2
    assert words in remarks[0]
    assert remarks[0].endswith("choosing anew")
    assert "chosen in" in remarks[1]
    same = case != "another model"
    assert (file.read_bytes() == content) == same
    assert (second["chosen"][0]["times"] == first["chosen"][0]["times"]) == same
    assert len(done(*sample, tmp_path / "c")[1]) == 1


def test_a_folder_that_cannot_be_written_is_no_obstacle(run: Path, tmp_path: Path) -> None:
    """A folder of the file's name stands in the way of any user."""
    (run / tuning.CHOICES_FILE).mkdir()
    args = ("sample", "--run", run, *AUTO, "--steps", 3, "-n", 4, "--out", tmp_path / "a", "--force")
    for _ in range(2):
        figures, remarks = done(*args)
        assert figures["chosen"][0]["kept"] is None
        assert len(remarks) == 1
        assert "not kept: Is a directory" in remarks[0]
    expected = sdediff.sample(sdediff.load(run), (4, 2), "auto", steps=3)
    np.testing.assert_allclose(samples(tmp_path / "a"), expected.numpy(), atol=1e-5)


# ---- conditions ----------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """A clean half that curves towards the value that the network is told."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.weight * torch.tanh(x * y[:, None])


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(checkpoint.SAVED_NETWORKS, "told", Told)
    sdediff.save(sdediff.ScoreModel(Told(), sdediff.VPSDE(), "sample", data=sdediff.DataInfo((2,))), tmp_path / "told")
    return tmp_path / "told"


def test_every_condition_has_its_own_choice(told: Path, tmp_path: Path) -> None:
    args = ("sample", "--run", told, *AUTO, "--steps", 3, "-n", 4, "--out", tmp_path / "a", "--force", "--condition")
    one, two = (done(*args, f"y={y}")[0]["chosen"][0]["times"] for y in (0.5, 3.0))
    assert one != two
    for y, times in ((0.5, one), (3.0, two)):
        figures, (remark,) = done(*args, f"y={y}")
        assert figures["chosen"][0]["times"] == times
        assert f"(from {told / tuning.CHOICES_FILE})" in remark


def test_under_labels_a_choice_is_for_these_items_alone(told: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    np.savez(tmp_path / "x.npz", data=x, labels=np.arange(5))
    z = tmp_path / "z.npz"
    labels = ("--labels", "y", "--batch-size", 3)
    encoded, remarks = done("encode", tmp_path / "x.npz", "--run", told, *AUTO, "--steps", 8, *labels, "--out", z)
    decoded, _ = done("decode", z, "--run", told, "--out", tmp_path / "back")
    assert "for these conditions alone" in remarks[0]
    assert [each["chosen"][0]["kept"] for each in (encoded, decoded)] == [None, None]
    assert not (told / tuning.CHOICES_FILE).exists()
    assert np.isfinite(samples(tmp_path / "back")).all()


# ---- the library's verb --------------------------------------------------------------------------------------------


def test_choose_gives_what_auto_uses() -> None:
    model = network(0)
    start = model.sde.prior_sample((4, 2), seed=1)
    for t_from, t_to in ((None, 0.0), (0.5, 1e-3), (1e-3, 0.999)):
        found = tuning.choose(model, 4, t_from=t_from, t_to=t_to)
        ends = {"t_from": t_from, "t_to": t_to, "steps": 4}
        ours, auto = (sdediff.solve(model, start, solver, **ends).x for solver in (found.sampler, "auto"))
        assert torch.equal(ours, auto)
    with pytest.raises(ValueError, match="choose anew"):
        sdediff.solve(model, start, tuning.choose(model, 4).sampler, steps=5, t_to=0.0)
    with pytest.raises(ValueError, match=r"chosen for t = 0.999 to 0, not 0.5 to 0: choose anew"):
        sdediff.solve(model, start, tuning.ForIntervals((tuning.choose(model, 4).sampler,)), t_from=0.5, t_to=0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be a whole number, at least 1"),
        ({"steps": 3, "shape": (4, 3)}, r"items have shape \(2,\), not \(3,\)"),
        ({"steps": 3, "t_from": 0.5, "t_to": 0.5}, "no solver takes 3 steps from t = 0.5 to 0.5"),
        ({"steps": 3, "shape": (4, 2), "condition": torch.zeros(3)}, "3 rows for 4 items"),
    ],
)
def test_choose_refuses_what_it_cannot_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tuning.choose(network(0), **options)


def test_choose_wants_a_shape_where_the_model_has_none() -> None:
    model = sdediff.ScoreModel(lambda x, t: torch.zeros_like(x), sdediff.VPSDE())
    with pytest.raises(ValueError, match="give the shape"):
        tuning.choose(model, 3)


# ---- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("sample", *AUTO, "--grid", "karras"), "chooses its own nodes: give it no grid"),
        (("sample", *AUTO, "--rtol", 1e-3), "'auto' takes steps, not rtol/atol"),
        (("encode", *AUTO, "--grid", "karras"), "chooses its own nodes"),
        (("interpolate", *AUTO, "--atol", 1e-3), "takes steps"),
        (("sample", *AUTO, "--log-prob"), "as --solver ode"),
        (("sample", "--solver", "atuo"), "did you mean 'auto'?"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(args: tuple[object, ...], words: str) -> None:
    assert words in refused(*args)


def test_a_likelihood_is_refused_with_what_works(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    result = call("likelihood", tmp_path / "x.npy", "--run", run, *AUTO)
    assert result.exit_code == 2
    assert result.stdout == ""
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: the likelihood's path cannot be solved by auto: it needs a deterministic solver")
    assert "(ode, " in error
    assert "auto," not in error


def test_the_table_has_a_row_of_its_own() -> None:
    (row,) = [line.split() for line in call("info", "--list").stdout.splitlines() if line.strip().startswith("auto ")]
    assert row == ["auto", "ODE", "-", "N", "20", "chosen", "for", "the", "run"]
    for command in ("sample", "encode"):
        listed = call(command, "--help").stdout.partition("Solvers,")[2]
        (row,) = [line.split() for line in listed.splitlines() if "auto" in line.split()]
        assert row[:4] == ["chosen", "for", "the", "run"]
    figures = json.loads(call("info", "--list", "--json").stdout)
    assert figures["solvers"] == list(SOLVERS)
