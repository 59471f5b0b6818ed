"""Anomalies: areas under ROC curves and their intervals, a mixture of Gaussians, and what the command lists."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import binom, norm

import sdediff
from sdediff.checkpoint import save
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.data import load_dataset
from sdediff.evaluation import auroc, auroc_difference, fit_mixture


def pairs(scores: np.ndarray, kinds: np.ndarray) -> float:
    """Mann and Whitney's statistic, pair by pair."""
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in scores[kinds] for b in scores[~kinds]]))


@pytest.mark.parametrize("levels", [2, 6, 10**9])
def test_the_area_is_the_share_of_pairs_in_order_and_ties_count_half(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores, kinds = rng.integers(0, levels, 60), rng.random(60) < 0.3
    assert auroc(scores, kinds).value == pytest.approx(pairs(scores, kinds), abs=1e-12)
    assert auroc(-scores, kinds).value == pytest.approx(1.0 - pairs(scores, kinds), abs=1e-12)
    assert auroc(np.zeros(60), kinds).value == 0.5


def test_the_variance_is_that_of_the_pairs() -> None:
    """DeLong, DeLong and Clarke-Pearson (1988), eq. 3 to 6, written out."""
    rng = np.random.default_rng(1)
    a, b, kinds = rng.integers(0, 9, 50), rng.integers(0, 9, 50), rng.random(50) < 0.4

    def shares(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wins = (scores[kinds][:, None] > scores[~kinds]) + 0.5 * (scores[kinds][:, None] == scores[~kinds])
        return wins.mean(axis=1), wins.mean(axis=0)

    def error(x: np.ndarray, y: np.ndarray) -> float:
        return math.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))

    assert auroc(a, kinds).standard_error == pytest.approx(error(*shares(a)), rel=1e-9)
    difference, spread = auroc_difference(a, b, kinds)
    assert difference == pytest.approx(pairs(a, kinds) - pairs(b, kinds), abs=1e-12)
    assert spread == pytest.approx(error(*(x - y for x, y in zip(shares(a), shares(b), strict=True))), rel=1e-9)


def covered(shift: float, trials: int, shrink: float = 1.0) -> int:
    """How many 95 % intervals hold the area of two normal laws, P(X > Y) = Phi(shift / sqrt 2)."""
    truth, rng, count = norm.cdf(shift / math.sqrt(2.0)), np.random.default_rng(2), 0
    kinds = np.arange(100) < 40
    for _ in range(trials):
        found = auroc(rng.standard_normal(100) + shift * kinds, kinds)
        low, high = found._replace(standard_error=shrink * found.standard_error).interval(0.95)
        count += bool(low <= truth <= high)
    return count


@pytest.mark.parametrize("shift", [0.5, 1.5])
def test_the_interval_covers_and_one_of_half_its_width_does_not(shift: float) -> None:
    """False alarm: 1e-4 for coverage of at least 93 %, which leaves 2 % to the normal approximation."""
    assert covered(shift, 600) >= binom.ppf(1e-4, 600, 0.93)
    assert covered(shift, 600, shrink=0.5) < binom.ppf(1e-4, 600, 0.93)


def test_a_separated_pair_has_an_exact_end() -> None:
    """A pair of kinds with area A is all in order with probability at most A to the number of disjoint pairs."""
    found = auroc([1.0, 2.0, 3.0, 4.0, 5.0], [False, False, False, True, True])
    assert found.interval(0.9) == pytest.approx((0.05**0.5, 1.0))
    assert auroc([-1.0, -2.0, -3.0], [False, False, True]).interval(0.9) == pytest.approx((0.0, 0.95))


@pytest.mark.parametrize(
    ("scores", "kinds", "message"),
    [
        ([1.0, math.nan], [True, False], "1 of 2 scores are NaN"),
        ([1.0, 2.0], [True, True], "2 anomalous and 0 others"),
        ([1.0, 2.0, 3.0], [True, False], "one size"),
    ],
)
def test_scores_without_an_area_are_refused(scores: list[float], kinds: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auroc(scores, kinds)


def test_a_mixture_has_the_density_of_its_data_in_their_units() -> None:
    """On Gaussian data the mean is the negative entropy, within five standard errors and the few parameters' cost."""
    data = sdediff.analytic.Gaussian([2000.0, 0.0], 0.25)
    fitted, fresh = fit_mixture(data.sample(2000)), data.sample(2000, seed=1)
    gap = fitted.values(fresh) - data.log_prob(fresh).numpy()
    assert abs(gap.mean()) < 5.0 * gap.std() / math.sqrt(2000) + 5 / 2000
    assert fitted.description == "1 Gaussian with full covariances, fitted to 2,000 items"


def test_a_mixture_bounds_the_bits_of_integers() -> None:
    """Independent fair levels of 16 cost 4 bits; a bound is above, and a continuous density would not be near."""
    x = torch.randint(16, (4000, 2), generator=torch.Generator().manual_seed(0))
    bits = fit_mixture(x[:2000]).values(x[2000:])
    assert 4.0 - 5.0 * bits.std() / math.sqrt(2000) < bits.mean() < 4.4
    with pytest.raises(ValueError, match="two kinds"):
        fit_mixture(x).values(x.float())


# ---- the command -------------------------------------------------------------------------------------------------


def table(path: Path, rows: np.ndarray, kinds: list[str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        head = ["a", "b", *["kind"] * (kinds is not None)]
        named = [[]] * len(rows) if kinds is None else [[kind] for kind in kinds]
        csv.writer(file).writerows([head, *([*row, *more] for row, more in zip(rows.tolist(), named, strict=True))])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on Gaussian rows with an untrained network, which with the data's moments is their Gaussian, and rows of
    which three are far away."""
    home, rng = tmp_path_factory.mktemp("anomalies"), np.random.default_rng(0)
    train = table(home / "train.csv", rng.standard_normal((200, 2)))
    rows = rng.standard_normal((30, 2))
    rows[[4, 11, 17]] += [[9.0, 0.0], [0.0, 8.0], [-7.0, 0.0]]
    table(home / "rows.csv", rows, ["bad" if k in (4, 11, 17) else "good" for k in range(30)])
    config = Config().updated({"data.name": str(train), "network.width": 8, "network.blocks": 1})
    save(build(config, load_dataset(train).info), home / "run")
    (home / "run" / "config.json").write_text(config.to_json())
    return home


def call(folder: Path, *args: object) -> Any:
    given = ("likelihood", folder / "rows.csv", "--run", folder / "run", "--steps", 10, *args)
    return CliRunner().invoke(main, [str(arg) for arg in given])


def test_planted_anomalies_come_first(folder: Path, tmp_path: Path) -> None:
    options = ("--top", 4, "--anomaly-label", "kind=bad", "--baseline", "gmm")
    files = ("--out", tmp_path / "s.csv", "--picture", tmp_path / "s.svg")
    result = call(folder, *options, *files, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {row["row"] for row in found["least_likely"][:3]} == {4, 11, 17}
    assert [row["anomalous"] for row in found["least_likely"]] == [1, 1, 1, 0]
    area = found["auroc"]
    assert (area["value"], area["high"], area["anomalous"], area["others"]) == (1.0, 1.0, 3, 27)
    assert area["low"] == pytest.approx(0.025 ** (1 / 3))
    beside = found["baseline"]
    assert beside["difference"] == pytest.approx(found["mean"] - beside["mean"], abs=1e-9)
    assert (beside["auroc"]["value"], beside["auroc_difference"]) == (1.0, 0.0)
    with (tmp_path / "s.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert sum(float(line["gmm"]) for line in lines) / 30 == pytest.approx(beside["mean"], abs=1e-9)
    assert [k for k, line in enumerate(lines) if line["anomalous"] == "1"] == [4, 11, 17]
    assert b"<svg" in (tmp_path / "s.svg").read_bytes()
    text = call(folder, *options).stdout
    assert "AUROC 1.0000, 95 % interval 0.2924 to 1.0000; 3 anomalous (kind=bad), 27 others" in text
    assert "model - gmm" in text


def test_a_pdf_by_its_suffix(folder: Path, tmp_path: Path) -> None:
    rows = ("--anomaly-label", "kind=bad", "--picture", tmp_path / "s.pdf")
    result = call(folder, *rows)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "s.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--anomaly-label", "kind=worse"), "no item of"),
        (("--anomaly-label", "kind=good", "--anomaly-label", "kind=bad"), "needs others too"),
        (("--anomaly-label", "kind=good", "--anomaly-label", "bad"), "of one column"),
        (("--anomaly-label", "sort=good"), "no column 'sort'"),
        (("--anomaly-label", "kind=bad", "--baseline", "svm"), "svm"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(folder: Path, args: tuple[str, ...], message: str) -> None:
    result = call(folder, *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


# ---- frames ------------------------------------------------------------------------------------------------------


def test_results_are_frames() -> None:
    pytest.importorskip("pandas")
    model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    x = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    found = sdediff.log_likelihood(model, x)
    assert found.to_frame()["log_prob"].tolist() == found.log_prob.tolist()
    bound = sdediff.elbo(model, x, steps=10)
    assert bound.to_frame()["total"].tolist() == bound.total.tolist()
    rows = sdediff.compare(model, (4, 2), ["ddim"], forwards=[5, 10])
    assert rows.to_frame()["nfe"].tolist() == [5.0, 10.0]


@pytest.mark.parametrize("kind", ["log_likelihood", "elbo", "bits_per_dim"])
def test_columns_have_a_row_an_item(kind: str) -> None:
    model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    x = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    levels = torch.tensor([[3, 1], [0, 1], [2, 2]])
    result = {
        "log_likelihood": lambda: sdediff.log_likelihood(model, x),
        "elbo": lambda: sdediff.elbo(model, x, steps=10),
        "bits_per_dim": lambda: sdediff.bits_per_dim(model, levels, levels=4, low=-1.0, high=2.0, samples=2),
    }[kind]()
    assert {tuple(column.shape) for column in result.columns().values()} == {(3,)}
