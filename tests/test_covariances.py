"""Estimates of covariances: what they recover, what held-out items choose, and what few items do no harm with."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from torch import Tensor

from catalogue import PROCESSES
from sdediff import VPSDE, Moments, ScoreModel, numerics, solve
from sdediff.analytic import Gaussian, GaussianMixture
from sdediff.bases import Axes, Blocks, Chain, Cosine, as_basis
from sdediff.covariances import COVARIANCES, FULL_UP_TO
from sdediff.covariances.shrinkage import towards_no_correlation
from sdediff.data import load_dataset
from sdediff.samplers.relative import Relative
from sdediff.types import CLEAN

SHAPE = (3, 8, 8)
DIM = math.prod(SHAPE)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=rng(seed), dtype=torch.float64)


def stationary(shape: tuple[int, ...] = SHAPE) -> Moments:
    """Channels that are alike, of a spectrum that falls with the square of the frequency."""
    squares = sum(
        torch.arange(n, dtype=torch.float64).square().reshape(-1, *(1,) * (len(shape) - 2 - i))
        for i, n in enumerate(shape[1:])
    )
    powers = (1.0 / (0.5 + squares)).reshape(-1)
    channels = torch.linalg.qr(normals(shape[0], shape[0], seed=3))[0].expand(len(powers), -1, -1).contiguous()
    index = torch.arange(math.prod(shape)).reshape(shape[0], -1).T.contiguous()
    variances = powers * torch.logspace(0, -2, shape[0], dtype=torch.float64)[:, None]
    mean = torch.linspace(-0.5, 0.5, math.prod(shape), dtype=torch.float64).reshape(shape)
    return Moments(mean, variances.reshape(-1), Chain((Cosine.of(shape), Blocks(index, channels))))


def matrix(moments: Moments) -> Tensor:
    """The covariance ``(D, D)``."""
    rows = Axes(as_basis(moments.basis), moments.mean.numel(), moments.variances).matrix
    return rows.T * moments.variances @ rows


def divergence(found: Moments, true: Moments) -> float:
    """The KL divergence of two Gaussians from the true one, nats a dimension."""
    ratio = torch.linalg.solve(matrix(found), matrix(true))
    shift = (found.mean - true.mean).reshape(-1)
    distance = shift @ torch.linalg.solve(matrix(found), shift)
    return float(0.5 * (ratio.trace() - torch.logdet(ratio) + distance) / len(shift) - 0.5)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_structured_gaussian_is_that_of_its_matrix(process: str) -> None:
    """Density, divergence and draws agree with those of the covariance as a matrix."""
    own, level = stationary(), PROCESSES[process].levels([0.5])[0]
    dense = Moments.of(own.mean, matrix(own))
    x = own.mean + normals(4, *SHAPE)
    torch.testing.assert_close(own.log_prob(x, level), dense.log_prob(x, level), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(own.kl(x, level), dense.kl(x, level), rtol=1e-10, atol=1e-10)
    # the map from normals to draws is a root of the covariance
    draws = own.sample(torch.eye(DIM, dtype=torch.float64).reshape(DIM, *SHAPE), level) - level.alpha * own.mean
    expected = level.alpha**2 * matrix(own) + level.sigma**2 * torch.eye(DIM, dtype=torch.float64)
    torch.testing.assert_close(
        draws.flatten(1).T @ draws.flatten(1), expected, rtol=0.0, atol=1e-10 * float(expected.max())
    )


@pytest.mark.parametrize("shape", [SHAPE, (1, 6, 5), (4, 9), (2, 3, 4, 5)])
@pytest.mark.parametrize("process", ["vp", "ve", "flow", "cosine"])
def test_gaussian_data_of_a_structure_take_one_step(process: str, shape: tuple[int, ...]) -> None:
    own, sde = stationary(shape), PROCESSES[process]
    dense = Gaussian(own.mean.reshape(-1), matrix(own), shape=shape)
    (start,) = sde.levels([sde.t_max])
    x = own.sample(normals(5, *shape), start)
    spread = (own.variances * start.alpha**2 + start.sigma**2).sqrt()
    along = own.coordinates(x, start.alpha) / spread * own.variances.sqrt()
    truth = as_basis(own.basis).rotate_back(along).reshape(x.shape) + own.mean
    model = dense.model(sde).with_moments(own)
    assert (solve(model, x, Relative(), steps=1, t_to=0.0).x - truth).abs().max() < 1e-10 * x.abs().max()
    diagonal = model.with_moments(Moments(own.mean, matrix(own).diagonal().clone()))
    assert (solve(diagonal, x, Relative(), steps=1, t_to=0.0).x - truth).abs().max() > 1e-2


def test_held_out_items_choose_the_structure() -> None:
    """Stationary items the transform alone, white ones the axes, mirrored ones groups by parity, others one group."""
    turn = torch.linalg.qr(normals(DIM, DIM))[0]
    scales = torch.logspace(0, -2, DIM, dtype=torch.float64)
    any_other = normals(3000, DIM) * scales @ turn.T
    mirrored = any_other.reshape(-1, *SHAPE)
    for axis in (2, 3):
        flips = torch.rand(len(mirrored), generator=rng(axis)) < 0.5
        mirrored = torch.where(flips[:, None, None, None], mirrored.flip(axis), mirrored)
    items = {
        "axes": normals(3000, *SHAPE) * torch.linspace(0.1, 1.0, DIM, dtype=torch.float64).reshape(SHAPE),
        "frequencies": stationary().sample(normals(3000, *SHAPE), CLEAN),
        "parity": mirrored,
        "one": any_other.reshape(-1, *SHAPE),
    }
    found = {name: Moments.fit(data, covariance="structured").basis for name, data in items.items()}
    assert found["axes"] is None
    kinds = {name: [type(part).__name__ for part in basis.parts] for name, basis in found.items() if basis is not None}
    assert kinds["frequencies"] == ["Cosine", "Blocks"]
    assert found["parity"].parts[-1].index.shape == (4, DIM // 4)
    assert found["one"].parts[-1].index.shape == (1, DIM)


@pytest.mark.parametrize("shape", [SHAPE, (1, 10, 12), (5, 40), (200,)])
def test_a_structured_fit_comes_near_the_truth(shape: tuple[int, ...]) -> None:
    """Nearer than the whole covariance of the items, and far nearer than their diagonal, where there is structure."""
    true = (
        stationary(shape)
        if len(shape) > 1
        else Moments(torch.zeros(shape).double(), torch.linspace(1, 2, *shape).double())
    )
    data = true.sample(normals(600, *shape), CLEAN)
    structured, full, diagonal = (
        divergence(Moments.fit(data, covariance=name), true) for name in ("structured", "full", "diagonal")
    )
    assert structured < 0.25 * full
    assert structured < 0.01 + 0.05 * (diagonal - structured)
    assert len(shape) == 1 or diagonal > 0.2


def test_rows_of_many_columns_get_groups_of_the_widest() -> None:
    loadings = normals(60, 4)
    true = Moments.of(torch.zeros(60).double(), 0.01 * torch.eye(60).double() + loadings @ loadings.T)
    data = true.sample(normals(2000, 60), CLEAN)
    found = Moments.fit(data, covariance="structured")
    assert divergence(found, true) < 0.05
    assert divergence(Moments.fit(data, covariance="diagonal"), true) > 0.5


def test_grey_images_of_three_channels_have_no_negative_variances() -> None:
    """Two of three coordinates at every frequency have none but for rounding, and constant borders none."""
    grey = torch.nn.functional.pad(normals(40, 1, 4, 4).cumsum(dim=2), (2, 2, 2, 2)).repeat(1, 3, 1, 1)
    found = Moments.fit(grey, covariance="structured")
    assert float(found.variances.min()) >= 0.0
    assert float(found.variances.sum()) == pytest.approx(
        float(Moments.fit(grey, covariance="diagonal").variances.sum())
    )


def test_only_many_dimensions_are_structured() -> None:
    assert isinstance(Moments.fit(normals(12, FULL_UP_TO)).basis, Tensor)
    assert not isinstance(Moments.fit(normals(12, 1, 25, 41)).basis, Tensor)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_parts_and_types_change_nothing(covariance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (stationary().sample(normals(90, *SHAPE), CLEAN) * 40.0 + 128.0).round().clamp(0, 255)
    whole = Moments.fit(data.to(torch.uint8), covariance=covariance)
    monkeypatch.setattr(numerics, "PART", 7 * DIM)
    in_parts = Moments.fit(data, covariance=covariance)
    torch.testing.assert_close(matrix(whole), matrix(in_parts), rtol=0.0, atol=1e-9 * float(matrix(whole).max()))
    torch.testing.assert_close(whole.mean, in_parts.mean)


def test_no_matrix_of_many_dimensions_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """12,288 dimensions: no tensor of the fit has 20 million entries, let alone 151 million, and its file is small."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for each in result if isinstance(result, tuple | list) else (result,):
                largest = max(largest, each.numel() if isinstance(each, Tensor) else 0)
            return result

    monkeypatch.setattr(import_module("sdediff.covariances.structured"), "ENTRIES", 1 << 16)
    shape = (3, 64, 64)
    data = stationary(shape).sample(normals(40, *shape), CLEAN)
    with Watch():
        found = Moments.fit(data)
    assert isinstance(found.basis, Chain)
    assert largest < 2e6


# ---- few items ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 20])
def test_many_items_are_not_shrunk(size: int) -> None:
    """From 8 items a dimension on; one fewer is."""
    data = normals(8 * size, size)
    for count, same in ((8 * size, True), (8 * size - 1, False)):
        fits = [matrix(Moments.fit(data[:count], shrink=shrink)) for shrink in (True, False)]
        assert torch.equal(*fits) == same


def test_correlations_of_few_items_are_chance() -> None:
    """Those of white items go to 0, and those of two items, which are 1, too; strong ones of many items stay."""
    assert float((towards_no_correlation(torch.corrcoef(normals(30, 200)), 200).fill_diagonal_(0.0)).abs().max()) < 0.1
    assert float(towards_no_correlation(torch.ones(3, 3).double(), 2).fill_diagonal_(0.0).abs().max()) == 0.0
    strong = torch.full((3, 3), 0.9).double().fill_diagonal_(1.0)
    torch.testing.assert_close(towards_no_correlation(strong, 1000), strong, rtol=2e-3, atol=0.0)


@pytest.fixture(scope="module")
def digits() -> tuple[GaussianMixture, ScoreModel, Tensor, Tensor]:
    """A mixture of ten Gaussians in 64 dimensions, its exact velocity, starts and where the flow takes them."""
    data = load_dataset("digits").train.double().flatten(1) / 8.0 - 1.0
    groups = torch.cdist(data, data[:10]).argmin(dim=1)
    means = torch.stack([data[groups == k].mean(dim=0) for k in range(10)])
    covariances = torch.stack([torch.cov(data[groups == k].T, correction=0) for k in range(10)])
    level = covariances.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(64, dtype=torch.float64)
    law = GaussianMixture(means, 0.9 * covariances + 0.1 * level, torch.bincount(groups, minlength=10))
    model = law.model(VPSDE()).with_moments(None)
    x = model.sde.prior_sample((48, 64), seed=1, dtype=torch.float64)
    return law, model, x, solve(model, x, steps=120, t_to=1e-3).x


@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
def test_moments_of_few_items_do_no_harm(digits, count: int) -> None:
    """The error is at most 1.5 times that without moments in the mean over fits, and no single one 3 times; as they
    are, moments of 3 items make it six times as large."""
    law, model, x, truth = digits

    def median(moments: Moments | None) -> float:
        found = solve(model.with_moments(moments), x, steps=20, t_to=1e-3).x
        return float((found - truth).norm(dim=1).median())

    fits = [law.sample(count, seed=seed) for seed in range(4)]
    errors = torch.tensor([median(Moments.fit(data)) for data in fits]) / median(None)
    assert float(errors.log().mean().exp()) < 1.5
    assert float(errors.max()) < 3.0
    if count == 3:
        raw = torch.tensor([median(Moments.fit(data, shrink=False)) for data in fits]) / median(None)
        assert float(raw.log().mean().exp()) > 3.0


@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("covariance", ["structured", "diagonal"])
def test_few_items_of_many_dimensions_are_wide_enough(covariance: str, count: int) -> None:
    """Other items are within a nat a dimension of the truth, on the average over four fits."""
    true = stationary()
    other = true.sample(normals(50, *SHAPE, seed=9), CLEAN)
    found = [Moments.fit(true.sample(normals(count, *SHAPE, seed=k), CLEAN), covariance=covariance) for k in range(4)]
    lost = [(true.log_prob(other, CLEAN) - fit.log_prob(other, CLEAN)).mean() / DIM for fit in found]
    standard = float((true.log_prob(other, CLEAN) - Moments.unit(SHAPE).log_prob(other, CLEAN)).mean() / DIM)
    assert float(torch.stack(lost).mean()) < standard
