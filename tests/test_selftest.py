"""The self-test: right programs pass, planted faults are caught, and every figure has its limits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner, Result
from scipy.stats import binom, chi2, kstest, kstwo
from torch import Tensor

from adapters import RIGHT, WRONG, exact_trace
from catalogue import GAUSSIAN, MIXTURE_1D, PROCESSES
from sdediff import SAMPLERS, VPSDE, selftest
from sdediff.cli import main
from sdediff.dynamics import Frame
from sdediff.samplers import Sampler, StepSampler
from sdediff.samplers.base import Noise
from sdediff.samplers.bridge import bridge_std, recombine
from sdediff.selftest import CHECKS, accelerators, bounds, densities, laws, orders, round_trips
from sdediff.selftest.cases import Case, Finding, Settings
from sdediff.selftest.chance import FALSE_ALARM, gaussian_deviance, kolmogorov_distance, largest_share
from sdediff.selftest.problems import share_below
from sdediff.selftest.result import Row, SelfTest
from sdediff.types import Level

CHEAP = ("likelihoods", "bounds", "round trips", "devices")
"""Checks that are run whole here; the others over a few solvers."""
FEW = ("ancestral", "heun", "pc", "dopri5")
"""One of each kind: affine, deterministic, not affine, adaptive."""


@dataclass(frozen=True)
class ForwardEuler(StepSampler):
    """A first-order method that says it is of second order, and whose step depends on the batch, or on chance."""

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False
    tied: bool = False

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        moved = y + (there.angle - here.angle) * denoise(y, here).mix(-here.sin, here.cos)
        return moved + (0.01 * moved.mean() if self.tied else 0.0), carry


@dataclass(frozen=True)
class NoisyAncestral(StepSampler):
    """Ancestral sampling with more noise in every step than belongs there."""

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    excess: float = 1.05

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        std = bridge_std(here, there)
        return recombine(denoise(y, here), there, math.sqrt(self.excess) * std, noise, mean_std=std), carry


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer samples, items and steps, whose limits are wider."""
    for module, numbers in ((laws, {"_COUNT": 1024, "_STEPS": 200}), (densities, {"_COUNT": 128, "_SEEDS": 2})):
        for name, number in numbers.items():
            monkeypatch.setattr(module, name, number)


@contextmanager
def put_back(table: dict[str, Any]) -> Iterator[None]:
    """Leave a table as it was, in its order."""
    before = dict(table)
    try:
        yield
    finally:
        table.clear()
        table.update(before)


@pytest.fixture
def only() -> Iterator[Callable[..., None]]:
    """Leave some solvers in the table, and put others of one's own in."""

    def choose(*names: str, **own: Sampler) -> None:
        kept = {name: SAMPLERS[name] for name in names} | own
        SAMPLERS.clear()
        SAMPLERS.update(kept)

    with put_back(SAMPLERS):
        yield choose


def failures(check: str) -> set[str]:
    """What fails in a check, by figures that are numbers."""
    rows = selftest.run(checks=[check]).failures
    assert all(math.isfinite(row.value) for row in rows)
    return {row.subject for row in rows}


# ---- the library -----------------------------------------------------------------------------------------------------


def test_every_check_is_run_here() -> None:
    assert {*CHEAP, "orders", "laws", "batches"} == set(CHECKS)


@pytest.mark.parametrize("check", CHEAP)
def test_the_library_passes(check: str) -> None:
    assert failures(check) == set()


@pytest.mark.parametrize("check", ["orders", "laws", "batches"])
def test_solvers_pass(check: str, only: Callable[..., None]) -> None:
    only(*FEW)
    result = selftest.run(checks=[check])
    assert result.passed, str(result)
    assert {row.subject for row in result.rows} >= set(FEW)


def test_a_wrong_order_is_caught(only: Callable[..., None]) -> None:
    only("heun", early=ForwardEuler(), noisy=NoisyAncestral())
    assert failures("orders") == {"early", "noisy"}


def test_a_wrong_law_is_caught(only: Callable[..., None]) -> None:
    only("ancestral", noisy=NoisyAncestral(1.3))
    assert failures("laws") == {"noisy"}


def test_neighbours_that_matter_are_caught(only: Callable[..., None]) -> None:
    only("heun", tied=ForwardEuler(tied=True))
    assert failures("batches") == {"tied"}


def test_likelihoods_and_errors_that_are_off_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift by more than the slack of any number of dimensions; errors stated at a third."""
    right = densities._ours

    def ours(trace: str, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        values, errors = right(trace, *args, **options)
        return (values + 0.05, errors) if trace == "exact" else (values, errors / 3.0)

    monkeypatch.setattr(densities, "_ours", ours)
    rows = selftest.run(checks=["likelihoods"]).failures
    assert {row.figure for row in rows if row.subject == "12-D mixture, 2 probes"} == {
        "share beyond 1.96 stated errors"
    }
    assert {row.subject for row in rows} == {"2-D Gaussian", "2-D mixture", "1-D mixture", "12-D mixture, 2 probes"}


def test_a_bound_that_is_too_good_or_too_loose_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bounds._ours
    for shift in (-0.3, 0.3):
        monkeypatch.setattr(bounds, "_ours", lambda *args, shift=shift, **options: right(*args, **options) + shift)
        assert len(failures("bounds")) == 6


def test_a_trip_that_does_not_come_back_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = round_trips.decode
    monkeypatch.delitem(round_trips._TRIPS, "ode")
    monkeypatch.setattr(round_trips, "decode", lambda *args: right(*args) + 0.01)
    assert len(failures("round trips")) == 2


def test_a_device_that_rounds_is_no_fault_and_one_that_errs_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for the accelerator."""

    def found() -> set[str]:
        cases = accelerators.device_cases(Settings(0, VPSDE()), torch.device("cpu"))
        return {case.subject for case in cases for name, value, low, high in case.measure() if not low <= value <= high}

    assert found() == set()
    right, made = accelerators._model, []

    def other(settings: Settings, device: torch.device) -> Any:
        made.append(right(settings, device))
        made[-1].network.weight.data *= 1.0 + 0.01 * (len(made) % 2)
        return made[-1]

    monkeypatch.setattr(accelerators, "_model", other)
    assert len(found()) > 20


def test_another_process_passes(only: Callable[..., None]) -> None:
    only("heun")
    result = selftest.run(checks=["orders", "laws", "bounds"], sde=PROCESSES["ve"])
    assert result.passed, str(result)


def test_what_is_affine_is_told_from_what_is_not() -> None:
    found = {name: orders.is_affine(SAMPLERS[name], VPSDE()) for name in ("ancestral", "edm-churn", "pc")}
    assert found == {"ancestral": True, "edm-churn": True, "pc": False}


# ---- somebody else's -------------------------------------------------------------------------------------------------


def named(table: dict[str, list[Callable[..., object]]]) -> list[Any]:
    return [pytest.param(role, each, id=each.__name__) for role, functions in table.items() for each in functions]


@pytest.mark.parametrize(("role", "function"), named(RIGHT))
def test_right_set_ups_pass(role: str, function: Callable[..., object]) -> None:
    result = selftest.run(function, role)
    assert result.passed, str(result)


@pytest.mark.parametrize(("role", "function"), named(WRONG))
def test_the_fields_faults_are_caught(role: str, function: Callable[..., object]) -> None:
    """By a figure, not by an error."""
    rows = selftest.run(function, role).failures
    assert rows
    assert all(math.isfinite(row.value) for row in rows)


def test_a_density_that_does_not_integrate_to_one_is_caught_as_such() -> None:
    rows = selftest.run(WRONG["likelihood"][-1], "likelihood").failures
    assert "mass of the density" in {row.figure for row in rows}
    assert "mass of the density" in {row.figure for row in selftest.run(exact_trace, "likelihood").rows}


def test_the_page_s_adapter_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[1] / "docs" / "selftest.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(block, str(page), "exec"), {})
    assert "2 figures (2 of sample): all as they should be" in capsys.readouterr().out


def test_what_raises_has_failed_and_the_rest_goes_on() -> None:
    def broken(model: Any, x: Tensor, *, steps: int, seed: int) -> Tensor:
        if x.shape[1] == 1:
            raise RuntimeError("no lines,\nplease")
        return x  # of the wrong shape

    result = selftest.run(broken, "likelihood")
    assert not result.passed
    texts = [row.figure for row in result.rows]
    assert texts[:2] == ["ValueError: the log-densities of 128 items must have shape (128,), not (128, 2)"] * 2
    assert texts[2] == "RuntimeError: no lines, please"
    assert all(math.isnan(row.value) for row in result.rows)
    wrong = selftest.run(lambda model, shape, *, steps, seed: torch.zeros(3, 2), "sample").rows
    assert wrong[0].figure == "ValueError: samples must have shape (1024, 2), not (3, 2)"
    wrong = selftest.run(lambda model, x, *, steps, seed: x, "bound").rows
    assert "the bounds of 1024 items must have shape (1024,)" in wrong[0].figure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checks": ["order"]}, "unknown check 'order'"),
        ({"role": "sample"}, "the role 'sample' is that of a target"),
        ({"target": exact_trace}, "say what the target is: sample, likelihood, bound"),
        ({"target": exact_trace, "role": "density"}, "unknown role 'density'"),
        ({"target": exact_trace, "role": "likelihood", "checks": ["laws"]}, "leave checks out"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selftest.run(**arguments)


# ---- chance ----------------------------------------------------------------------------------------------------------


def test_limits_of_chance_are_those_stated() -> None:
    """Of 400 exact samples a tenth passes the tenth's quantile: 16 to 68 but for a chance of 1e-4 on either side."""
    outside, draws = [0, 0], 400
    for seed in range(draws):
        deviance, _ = gaussian_deviance(GAUSSIAN.sample(512, seed=seed), GAUSSIAN)
        distance, _ = kolmogorov_distance(share_below(MIXTURE_1D.sample(512, seed=seed)))
        outside[0] += deviance > chi2.isf(0.1, 5)
        outside[1] += distance > kstwo.isf(0.1, 512)
    low, high = binom.ppf(1e-4, draws, 0.1), binom.isf(1e-4, draws, 0.1)
    assert all(low <= count <= high for count in outside), outside


def test_kolmogorov_s_distance_is_of_either_side() -> None:
    for shares in ([0.5, 0.6, 0.7, 0.8], [0.2, 0.3, 0.4, 0.5], [0.1, 0.3, 0.6, 0.9]):
        found, limit = kolmogorov_distance(torch.tensor(shares, dtype=torch.float64))
        assert found == pytest.approx(kstest(shares, "uniform").statistic)
        assert limit == pytest.approx(kstwo.isf(FALSE_ALARM, 4))


def test_limits_are_beyond_a_right_program_and_not_far() -> None:
    x = GAUSSIAN.sample(4096, seed=1)
    deviance, limit = gaussian_deviance(x, GAUSSIAN)
    assert deviance < limit == pytest.approx(chi2.isf(FALSE_ALARM, 2 + 3))  # of means and covariances in the plane
    assert gaussian_deviance(1.2 * x, GAUSSIAN)[0] > limit
    assert gaussian_deviance(x, GAUSSIAN, 0.04)[1] > limit
    distance, limit = kolmogorov_distance(share_below(MIXTURE_1D.sample(4096, seed=1)))
    assert distance < limit
    assert kolmogorov_distance(share_below(MIXTURE_1D.sample(4096, seed=1) + 0.1))[0] > limit
    assert binom.sf(256 * largest_share(256), 256, 0.05) < FALSE_ALARM


# ---- the result ------------------------------------------------------------------------------------------------------

ROWS = (
    Row("a", "one", "order", 2.1, 1.8, 2.2),
    Row("a", "two", "error", 0.5, -math.inf, 1.0),
    Row("b", "three", "gap", 3.0, -1.0, math.inf),
    Row("b", "four", "ValueError: no", math.nan, -math.inf, math.inf),
)


def test_the_result_in_numbers_and_words() -> None:
    result = SelfTest(ROWS)
    assert [row.passed for row in ROWS] == [True, True, True, False]
    assert [row.place for row in ROWS[:3]] == pytest.approx([0.5, 0.5, 0.0])
    assert not result.passed
    assert result.failures == ROWS[3:]
    lines = str(result).splitlines()
    assert [line.split()[-1] for line in lines[1:5]] == ["ok", "ok", "ok", "FAILED"]
    assert ["1.8 to 2.2" in lines[1], "at most 1" in lines[2], "at least -1" in lines[3]] == [True] * 3
    assert lines[-1] == "4 figures (2 of a, 2 of b): 1 not allowed"
    assert repr(result) == f"SelfTest({lines[-1]})"
    assert json.loads(json.dumps(SelfTest(ROWS[:1]).to_dict()))["rows"][0] == {
        "check": "a", "subject": "one", "figure": "order", "value": 2.1, "low": 1.8, "high": 2.2, "passed": True,
    }  # fmt: skip


# ---- the command -----------------------------------------------------------------------------------------------------


def call(*args: object) -> Result:
    return CliRunner().invoke(main, ["selftest", *(str(arg) for arg in args)])


@pytest.fixture
def small() -> Iterator[None]:
    """Two checks of one figure each."""

    def check(value: float) -> Callable[[Settings], list[Case]]:
        return lambda settings: [Case("a thing", lambda: [Finding("size", value, 0.0, 1.0)])]

    with put_back(CHECKS):
        CHECKS.clear()
        CHECKS.update(good=check(0.25), bad=check(2.0))
        yield


@pytest.mark.usefixtures("small")
def test_exit_status_table_picture_and_numbers(tmp_path: Path) -> None:
    picture = tmp_path / "selftest.png"
    result = call("--check", "good", "--plot", picture)
    assert result.exit_code == 0, result.stderr
    assert "good   a thing  size    0.25   0 to 1   ok" in result.stdout
    assert str(picture) in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    refused = call("--check", "good", "--plot", picture)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    result = call("--json", "--plot", picture, "--force")
    assert result.exit_code == 1
    figures = json.loads(result.stdout)
    assert [row["passed"] for row in figures["rows"]] == [True, False]
    assert figures["picture"] == str(picture)


TARGET = """
import torch

def normal(model, shape, *, steps, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

number = 3
"""


def test_targets_are_imported_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_selftest.py").write_text(TARGET)
    monkeypatch.chdir(tmp_path)
    result = call("--target", "mine_selftest:normal", "--role", "sample", "--process", "flow", "--json")
    assert result.exit_code == 1, result.stderr
    assert json.loads(result.stdout)["target"] == "normal"
    for arguments, message in (
        (["--target", "mine_selftest:number", "--role", "sample"], "is no function, but int"),
        (["--target", "mine_selftest:other", "--role", "sample"], "has no other"),
        (["--target", "no_such_module:f", "--role", "sample"], "the target no_such_module:f cannot be imported"),
        (["--target", "normal", "--role", "sample"], "a target of one's own is named package.module:function"),
        (["--target", "mine_selftest:normal"], "say what the target is"),
        (["--target", "mine_selftest:normal", "--role", "samples"], "did you mean 'sample'"),
        (["--check", "laws", "--target", "mine_selftest:normal", "--role", "sample"], "leave checks out"),
    ):
        refused = call(*arguments)
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr
