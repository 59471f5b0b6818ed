"""The figures of samples beside data have the values that are known: closed forms, counts by hand, laws of tests."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import norm
from torch import Tensor, nn

import sdediff
from sdediff.data import load_dataset
from sdediff.quality import FEATURES, MEASURES, Figure, Scripted, frechet_distance, precision_and_recall
from sdediff.quality.measure import HalfSampled
from sdediff.quality.resampling import Resampling
from sdediff.quality.scripted import resized
from sdediff.quality.sliced import directions, squared_wasserstein


def normals(n: int, dim: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, dim)))


def as_they_are(x: Tensor) -> Tensor:
    return x


def figure(name: str, x: Tensor, y: Tensor, **options: Any) -> Figure:
    measure = next(key for key, measure in MEASURES.items() if name in measure.meanings)
    return sdediff.evaluate(x, y, **{"measures": [measure], "features": as_they_are, **options}).figures[name]


# ---- the Fréchet distance ------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_in_the_plane() -> None:
    """For matrices of 2 by 2 ``tr M^1/2 = sqrt(tr M + 2 sqrt(det M))``; these two do not commute."""
    first = torch.tensor([[2.0, 0.7], [0.7, 0.5]], dtype=torch.float64)
    second = torch.tensor([[0.3, -0.2], [-0.2, 1.5]], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    product = first @ second
    root = math.sqrt(float(product.trace()) + 2.0 * math.sqrt(float(product.det())))
    truth = 5.0 + float(first.trace() + second.trace()) - 2.0 * root
    found = frechet_distance(mean, first, torch.zeros_like(mean), second)
    assert found == pytest.approx(truth, rel=1e-12)
    diagonal = float((first.diagonal().sqrt() - second.diagonal().sqrt()).square().sum())  # the control
    assert abs(5.0 + diagonal - truth) > 0.1


def test_frechet_distance_of_singular_covariances() -> None:
    """Of ``a a'`` and S the common trace is ``sqrt(a' S a)``; of two equal ones the distance is 0 to rounding."""
    a, factor = normals(1, 6, 0)[0], normals(3, 6, 1)
    singular, other, zero = torch.outer(a, a), factor.T @ factor, torch.zeros(6, dtype=torch.float64)
    truth = float(singular.trace() + other.trace()) - 2.0 * math.sqrt(float(a @ other @ a))
    assert frechet_distance(zero, singular, zero, other) == pytest.approx(truth, rel=1e-12)
    assert abs(frechet_distance(zero, other, zero, other)) < 1e-12


def test_frechet_value_is_of_unbiased_covariances() -> None:
    """As that of FID's code: of few items those of their own spread would be smaller."""
    x, y = normals(20, 2, 0), 1.5 * normals(30, 2, 1)
    found = figure("frechet", x, y, resamples=0).value
    sides = [(torch.from_numpy(each.numpy().mean(0)), torch.from_numpy(np.cov(each.numpy().T))) for each in (x, y)]
    assert found == pytest.approx(frechet_distance(*sides[0], *sides[1]), rel=1e-9)


def test_an_interval_of_halves_is_student_s() -> None:
    """Of as many degrees of freedom as halves less one, about twice the whole less their mean where it is biased."""
    halves = torch.tensor([1.0, 1.5, 0.7, 1.2], dtype=torch.float64)
    settings = Resampling(4, 0, 0.95, lambda: None)
    for extrapolate, estimate in ((False, 1.3), (True, 2.0 * 1.3 - 1.1)):
        found = settings.interval(1.3, halves, extrapolate=extrapolate)
        half = 3.182446 * float(halves.std())  # Student's t of 3 degrees
        assert found == pytest.approx((estimate, estimate - half, estimate + half), rel=1e-6)


def test_frechet_estimate_is_of_infinitely_many() -> None:
    """The value of 200 items is too large by far, their estimate is not; bounds of 4 errors fail once in 16,000."""
    shift, stretch, dim = 0.5, 1.5, 8
    truth, values, estimates, inside = shift**2 + (stretch - 1.0) ** 2, [], [], 0
    for seed in range(24):
        x, y = normals(200, dim, 2 * seed), normals(200, dim, 2 * seed + 1)
        x[:, 0] = stretch * x[:, 0] + shift
        found = figure("frechet", x, y, resamples=20, seed=seed)
        values.append(found.value)
        estimates.append(found.estimate)
        inside += found.low <= truth <= found.high
    error = 4.0 * np.std(estimates, ddof=1) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < error
    assert np.mean(values) - truth > error  # the control
    assert inside >= 17  # of 24 with 95 % each: fewer with a chance of 2e-5


def test_halves_of_one_set_are_alike() -> None:
    """At a confidence at which one interval in 100,000 would miss, all hold what perfect samples have."""
    data = load_dataset("moons").train
    found = sdediff.evaluate(data[:600], data[600:1200], resamples=20, confidence=1.0 - 1e-5).figures
    assert set(found) == {name for measure in MEASURES.values() for name in measure.meanings}
    for name, each in found.items():
        assert each.low <= each.perfect <= each.high, name
    moved = sdediff.evaluate(data[:600] + 0.5, data[600:1200], resamples=20, confidence=1.0 - 1e-5).figures
    for name, each in moved.items():  # the control
        assert not each.low <= each.perfect <= each.high, name


# ---- precision and recall ------------------------------------------------------------------------------------------


def test_precision_and_recall_by_hand() -> None:
    """On a line: balls of the data to their first neighbour are [-1, 1], [0, 2], [1, 3] and [3, 9]."""
    data = torch.tensor([[0.0], [1.0], [2.0], [6.0]], dtype=torch.float64)
    data_radii = [1.0, 1.0, 1.0, 4.0]
    samples = torch.tensor([[-1.5], [-0.5], [3.0], [11.0]], dtype=torch.float64)  # radii 1, 1, 3.5, 8
    inside = [any(abs(x - y) <= r for y, r in zip(data[:, 0], data_radii, strict=True)) for x in samples[:, 0]]
    assert inside == [False, True, True, False]
    reached = [
        any(abs(x - y) <= r for x, r in zip(samples[:, 0], (1.0, 1.0, 3.5, 8.0), strict=True)) for y in data[:, 0]
    ]
    assert reached == [True, True, True, True]
    distances = (torch.cdist(samples, samples), torch.cdist(data, data), torch.cdist(samples, data))
    assert precision_and_recall(*distances, neighbours=1) == (0.5, 1.0)


def test_missing_modes_lower_recall_alone() -> None:
    """Samples of two of four modes: all lie among the data, and half of the data lie among them."""
    rng = np.random.default_rng(0)
    centres = torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 30.0], [30.0, 30.0]], dtype=torch.float64)
    data = centres[rng.integers(0, 4, 800)] + normals(800, 2, 1)
    samples = centres[rng.integers(0, 2, 400)] + normals(400, 2, 2)
    found = sdediff.evaluate(samples, data, measures=["precision-recall"], resamples=20, confidence=1.0 - 1e-5).figures
    precision, recall = found["precision"], found["recall"]
    assert precision.low <= precision.perfect <= precision.high
    assert recall.low <= 0.5 * recall.perfect <= recall.high
    assert recall.high < recall.perfect
    wide = sdediff.evaluate(data * 3.0, data, measures=["precision-recall"], resamples=0).figures  # too far out
    assert wide["precision"].value < 0.5


def test_perfect_precision_is_measured() -> None:
    """Of one law about ``1 - exp(-k)`` lie in a ball, not all."""
    perfect = figure("precision", normals(300, 4, 0), normals(300, 4, 1), resamples=0).perfect
    assert 0.8 < perfect < 0.97


# ---- the sliced Wasserstein distance -------------------------------------------------------------------------------


def test_wasserstein_of_unequal_numbers() -> None:
    """{0, 1} and {0, 0, 1} differ by 1 between the quantiles 1/2 and 2/3."""
    x, y = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[0.0, 0.0, 1.0]]).double()
    assert float(squared_wasserstein(x, y)) == pytest.approx(1.0 / 6.0, rel=1e-12)
    assert float(squared_wasserstein(x, x.repeat_interleave(3, dim=1))) == 0.0


def test_sliced_wasserstein_of_moved_and_stretched_gaussians() -> None:
    """A shift d counts ``|d| / sqrt(D)``, a factor c ``|c - 1|`` times the size of an entry, exactly for one draw."""
    x, shift = normals(300, 5, 0), torch.tensor([3.0, 0.0, 0.0, -4.0, 0.0]).double()
    moved = figure("sliced_wasserstein", x + shift, x, resamples=0).value
    assert moved == pytest.approx(5.0 / math.sqrt(5.0), rel=1e-12)
    stretched = figure("sliced_wasserstein", 1.5 * x, x, resamples=0).value
    assert stretched == pytest.approx(0.5 * math.sqrt(float(x.square().mean())), rel=1e-12)
    found = figure("sliced_wasserstein", normals(600, 5, 1) + shift, normals(500, 5, 2), resamples=20)
    assert found.estimate == pytest.approx(math.sqrt(5.0), abs=4.0 * (found.high - found.low) / 3.9)


def test_directions_are_orthogonal_sets() -> None:
    vectors = directions(5, 12, seed=0)
    assert vectors.shape == (15, 5)
    for part in vectors.split(5):
        torch.testing.assert_close(part @ part.T, torch.eye(5).double())
    few = directions(200, 16, seed=0)
    torch.testing.assert_close(few @ few.T, torch.eye(16).double())


# ---- the classifier ------------------------------------------------------------------------------------------------


def test_classifier_on_equal_laws_is_right_half_of_the_time() -> None:
    found = figure("classifier", normals(500, 4, 0), normals(500, 4, 1), confidence=1.0 - 1e-5)
    assert found.low <= 0.5 <= found.high


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_classifier_on_a_shift_has_the_accuracy_of_bayes(shift: float) -> None:
    """That is Phi(shift / 2); a learned one may lose .04 of it, and never has more but by chance."""
    x = normals(800, 4, 0)
    x[:, 0] += shift
    bayes = float(norm.cdf(shift / 2.0))
    chance = 4.0 * math.sqrt(bayes * (1.0 - bayes) / 800)
    assert bayes - 0.04 - chance < figure("classifier", x, normals(800, 4, 1)).value < bayes + chance


def test_classifier_sees_more_than_means_and_covariances() -> None:
    """A ring and a Gaussian of the same moments."""
    angle = torch.from_numpy(np.random.default_rng(0).uniform(0.0, 2.0 * math.pi, 600))
    ring = math.sqrt(2.0) * torch.stack([angle.cos(), angle.sin()], dim=1)
    found = sdediff.evaluate(ring, normals(600, 2, 1), measures=["frechet", "classifier"], resamples=0).figures
    assert found["classifier"].value > 0.8
    assert found["frechet"].value < 0.05


def test_the_interval_of_the_accuracy_is_exact() -> None:
    """Clopper and Pearson's: at its ends the tails of the binomial law have the probability 2.5 %."""
    from scipy.stats import binom

    found = figure("classifier", normals(100, 2, 0) + 1.0, normals(100, 2, 1))
    right = round(100 * found.value)
    assert binom.sf(right - 1, 100, found.low) == pytest.approx(0.025, rel=1e-6)
    assert binom.cdf(right, 100, found.high) == pytest.approx(0.025, rel=1e-6)
    apart = figure("classifier", normals(100, 2, 0) + 50.0, normals(100, 2, 1))
    assert (apart.value, apart.high) == (1.0, 1.0)
    assert apart.low < 1.0


# ---- halves --------------------------------------------------------------------------------------------------------


def test_the_spread_of_halves_is_the_error_of_a_mean() -> None:
    """Within 4 errors of a spread of 400 halves, which is ``1 / sqrt(800)`` of it."""
    x = normals(200, 1, 0)[:, 0]
    resampling = Resampling(400, 0, 0.95, lambda: None)
    halves = resampling.halves(lambda a, b: (float(x[a].mean()),), 200, 200)[:, 0]
    error = float(x.std()) / math.sqrt(200)
    assert float(halves.std()) == pytest.approx(error, rel=4.0 / math.sqrt(800))


# ---- features ------------------------------------------------------------------------------------------------------


def blurred(x: Tensor, size: float) -> Tensor:
    return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, size, size)))


def noisy(x: Tensor, size: float) -> Tensor:
    return x + size * torch.from_numpy(np.random.default_rng(0).standard_normal(x.shape)).float()


@pytest.mark.parametrize(("change", "sizes"), [(blurred, (0.45, 0.6, 1.0)), (noisy, (1.0, 2.0, 4.0))])
@pytest.mark.parametrize("features", ["convolutions", "values"])
def test_distance_grows_with_what_is_done_to_images(
    change: Callable[[Tensor, float], Tensor], sizes: tuple[float, ...], features: str
) -> None:
    digits = load_dataset("digits")
    x, y = digits.train[:500].float(), digits.train[500:1000].float()
    options: dict[str, Any] = {"measures": ["frechet"], "features": features, "resamples": 0}
    found = [
        sdediff.evaluate(each, y, **options).figures["frechet"].value for each in (x, *(change(x, s) for s in sizes))
    ]
    assert all(1.1 * one < two for one, two in pairwise(found)), found


def test_distance_grows_with_missing_classes() -> None:
    digits = load_dataset("digits")
    assert digits.train_labels is not None
    x, labels, y = digits.train[:700], digits.train_labels[:700], digits.train[700:1400]
    found = [
        sdediff.evaluate(x[labels >= first], y, measures=["frechet"], resamples=0).figures["frechet"].value
        for first in (0, 1, 4, 8)
    ]
    assert all(1.1 * one < two for one, two in pairwise(found)), found


@pytest.mark.parametrize("shape", [(2, 12), (1, 5, 7), (3, 4, 4, 6)])
def test_convolutions_of_series_images_and_volumes(shape: tuple[int, ...]) -> None:
    """They do not depend on unit or origin of a channel, nor on the batches."""
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.standard_normal((30, *shape))) for _ in range(2))
    plain = sdediff.evaluate(x, y, measures=["frechet"], resamples=4)
    other = sdediff.evaluate(7.0 * x + 3.0, 7.0 * y + 3.0, measures=["frechet"], resamples=4, batch_size=7)
    assert plain.dim == 112
    assert plain.features.startswith("convolutions (")
    assert "112 features" in plain.remarks[0]
    assert other.figures["frechet"].value == pytest.approx(plain.figures["frechet"].value, rel=1e-6)
    assert other.figures["frechet"].estimate == pytest.approx(plain.figures["frechet"].estimate, rel=1e-6, abs=1e-9)


def test_values_are_in_deviations_by_column() -> None:
    data = torch.stack([1e6 + 1e3 * normals(50, 1, 0)[:, 0], torch.full((50,), 4.0).double()], dim=1)
    features = FEATURES["values"](data)(data + torch.tensor([1e3, 1.0]).double())
    torch.testing.assert_close(features.std(dim=0), torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(features[:, 1], torch.ones(50).double())  # a constant column: its own unit


@pytest.mark.usefixtures("global_generators_untouched")
def test_a_seed_says_all() -> None:
    x, y = normals(60, 3, 0), normals(80, 3, 1)
    first, again = (sdediff.evaluate(x, y, resamples=4, seed=3).to_dict() for _ in range(2))
    assert first == again
    assert sdediff.evaluate(x, y, resamples=4, seed=4).to_dict() != first
    assert first["samples"], first["data"] == (60, 80)


def test_entries_made_later_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_column(data: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the first column."""
        return lambda x: x[:, :1]

    class Mean(HalfSampled):
        meanings, ends, extrapolated = {"mean": "difference of means"}, (-math.inf, math.inf), False

        def statistic(self, x: Tensor, y: Tensor, seed: int) -> Callable[[Tensor, Tensor], tuple[float, ...]]:
            return lambda a, b: (float(x[a].mean() - y[b].mean()),)

        def perfect(self, y: Tensor, seed: int) -> tuple[float, ...]:
            return (0.0,)

    monkeypatch.setitem(MEASURES, "mean", Mean())
    monkeypatch.setitem(FEATURES, "first", first_column)
    x, y = normals(30, 3, 0), normals(30, 3, 1)
    found = sdediff.evaluate(x, y, measures=["mean"], features="first")
    assert found.figures["mean"].value == pytest.approx(float(x[:, 0].mean() - y[:, 0].mean()))
    assert (found.dim, found.features) == (1, "first (the first column)")
    assert "difference of means" in str(found)


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    sdediff.evaluate(normals(30, 2, 0), normals(30, 2, 1), resamples=3, progress=lambda *at: seen.append(at))
    assert seen[-1][1] == 12
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# ---- networks in files ---------------------------------------------------------------------------------------------


class Bare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3)), x[:, :, 0, 0].mean(1) + 0.0 * x.size(3)], 1)[
            ..., None
        ]


class Whole(nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8
        return x.flatten(1).float() if return_features else torch.zeros(1)


def scripted(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(path))
    return path


def test_networks_get_what_they_take(tmp_path: Path) -> None:
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (40, 1, 3, 3)))
    levels[0, 0, 0, :2] = torch.tensor([0, 4])
    seen = Scripted(scripted(Bare(), tmp_path / "bare.pt"), pixels=(0.0, 2.0), size=6)
    function = seen.load(lambda x: (x * (255.0 / 4.0)).round().to(torch.uint8), torch.device("cpu"))
    features = function(levels.float())
    assert features.shape == (40, 3)
    torch.testing.assert_close(features[0, :2], torch.tensor([0.0, 2.0]))
    whole = sdediff.evaluate(levels, levels, features=str(scripted(Whole(), tmp_path / "w.pt")), resamples=0)
    assert (whole.dim, whole.features) == (27, "network of w.pt")
    values = levels.float() / 2.0 - 1.0  # floats on [-1, 1] are the same pixels
    same = sdediff.evaluate(values, values, features=tmp_path / "w.pt", resamples=0)
    assert [each.value for each in same.figures.values()] == [each.value for each in whole.figures.values()]


def test_resizing_is_linear_at_the_published_places() -> None:
    """Pixel k lies at ``k W / size``; beyond the last pixel of the source it is that."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    wide = resized(ramp, 8)[0, 0, 0]
    torch.testing.assert_close(wide, torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]))
    assert torch.equal(resized(ramp, 4), ramp)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_pickles_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bomb.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"weight": Bomb()}, "state.pt")
    images = torch.zeros(30, 3, 4, 4)
    for name in ("bomb.pt", "state.pt"):
        with pytest.raises(ValueError, match=f"{name} is no TorchScript file: "):
            sdediff.evaluate(images, images, features=name)
    assert not Path("exploded").exists()
    pickle.loads(Path("bomb.pt").read_bytes())  # the control
    assert Path("exploded").exists()


# ---- refusals ------------------------------------------------------------------------------------------------------

X = torch.zeros(30, 2)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((X.numpy(), X), {}, r"samples must be a tensor \(n, \*shape\), not ndarray"),
        ((X[:10], X), {}, r"samples must be at least 20 items \(n, \*shape\), not \(10, 2\)"),
        ((X, X[:, 0]), {}, r"the data must be at least 20 items"),
        ((X, torch.zeros(30, 3)), {}, r"samples have shape \(2,\), the data \(3,\)"),
        ((X, X.long()), {}, "samples are floats, the data integer levels: give both as"),
        ((X * math.nan, X), {}, "samples hold numbers that are not finite"),
        (
            (X, X),
            {"features": "inception"},
            "unknown features 'inception'; choose one of: auto, values, convolutions, or",
        ),
        ((X, X), {"features": Path("nowhere.pt")}, "no file nowhere.pt"),
        ((X, X), {"features": lambda x: x[:, 0]}, r"features must be a tensor \(30, D\), one row an item, not \(30,\)"),
        ((X, X), {"features": lambda x: x / 0.0}, "the features hold NaN"),
        ((X, X), {"measures": ["fid"]}, "unknown measure 'fid'; choose one of: frechet,"),
        ((X, X), {"measures": []}, "no measures"),
        ((X, X), {"resamples": 1}, "resamples must be a whole number, 0 or at least 2, not 1"),
        ((X, X), {"confidence": 1.0}, "confidence must lie between 0 and 1"),
        ((X, X), {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_compared_is_one_line(args: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        sdediff.evaluate(*args, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_rows_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"grey or RGB images, not of items of shape \(2,\)"):
        sdediff.evaluate(X, X, features=scripted(Bare(), tmp_path / "bare.pt"))
