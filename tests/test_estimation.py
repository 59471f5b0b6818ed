"""Moments of models that come without: from data and from samples, in solves, in files and on the command line."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import sdediff
from catalogue import MIXTURE
from sdediff import VPSDE, Clip, DataInfo, Moments, ScoreModel, covariances
from sdediff.bases import Axes, Chain
from sdediff.cli import main
from sdediff.data.units import to_model
from sdediff.networks import MLP, UNet


def normals(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model_of(info: DataInfo | None, shape: tuple[int, ...] = (2,)) -> ScoreModel:
    return ScoreModel(MLP(shape, width=8, blocks=1), VPSDE(), "v_prediction", data=info)


def test_samples_of_the_model_have_its_moments() -> None:
    """Within 4.5 standard errors of 1,000 samples; false alarms: below 1e-4 together."""
    model = MIXTURE.model(VPSDE()).with_moments(None)
    found, true = sdediff.moments(model, shape=(2,), n=1000, seed=3, batch_size=600), MIXTURE.moments
    covariance = found.basis * found.variances @ found.basis.T
    deviation = MIXTURE.covariance.diagonal().sqrt()
    assert bool(((found.mean - true.mean).abs() < 4.5 * deviation / math.sqrt(1000)).all())
    assert float((covariance - MIXTURE.covariance).abs().max()) < 4.5 * float(deviation.max()) ** 2 * math.sqrt(
        2 / 1000
    )
    again = sdediff.moments(model, shape=(2,), n=1000, seed=3)
    torch.testing.assert_close(again.mean, found.mean)


def test_samples_are_taken_within_the_range_of_the_data() -> None:
    """A network that sends everything to 50 has the moments of the highest level."""
    info = DataInfo((2,), 256)
    far = ScoreModel(lambda x, t: torch.full_like(x, 50.0), VPSDE(), "sample", data=info)
    found = sdediff.moments(far, n=5, steps=2)
    torch.testing.assert_close(found.mean, torch.ones(2, dtype=torch.float64))
    assert float(found.variances.max()) < 1e-12


def test_data_are_taken_in_their_own_form() -> None:
    """Levels with the noise of dequantisation, rows in their units, floats as they are."""
    levels = (normals(400, 2) * 20.0 + 100.0).round().to(torch.uint8)
    info = DataInfo((2,), 256)
    found, width = sdediff.moments(model_of(info), levels), 2.0 / 255.0
    torch.testing.assert_close(found.mean, -1.0 + width * levels.double().mean(dim=0))
    expected = width**2 * (levels.double().var(dim=0, correction=0).sum() + 2.0 / 12.0)
    torch.testing.assert_close(found.variances.sum(), expected)
    rows, units = normals(400, 2) * 7.0 + 3.0, DataInfo((2,), shift=(3.0, 1.0), scale=(7.0, 2.0))
    torch.testing.assert_close(sdediff.moments(model_of(units), rows).mean, to_model(rows, units).mean(dim=0))
    torch.testing.assert_close(sdediff.moments(model_of(None), rows).mean, rows.mean(dim=0))


def test_what_does_not_fit_is_refused() -> None:
    model = model_of(DataInfo((2,)))
    with pytest.raises(ValueError, match=r"items have shape \(2,\), not \(3,\)"):
        sdediff.moments(model, normals(5, 3))
    with pytest.raises(ValueError, match="n, seed are for samples"):
        sdediff.moments(model, normals(5, 2), n=3, seed=0)
    with pytest.raises(ValueError, match="give the shape"):
        sdediff.moments(model_of(None))
    with pytest.raises(ValueError, match="what its levels are"):
        sdediff.moments(model_of(None), torch.zeros(3, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least one item"):
        sdediff.moments(model, normals(0, 2))
    with pytest.raises(TypeError, match="stepz"):
        sdediff.moments(model, stepz=3)


def test_moments_are_given_without_changing_the_model() -> None:
    model, found = model_of(None), Moments(torch.zeros(2), torch.ones(2))
    assert model.with_moments(found).moments is found
    assert model.moments is None
    wrapped = Clip(model, -1.0, 1.0).with_moments(found)
    assert isinstance(wrapped, Clip)
    assert wrapped.moments is found
    assert next(wrapped.parameters()) is next(model.parameters())


@pytest.fixture
def structured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ScoreModel, torch.Tensor]:
    monkeypatch.setattr(covariances, "FULL_UP_TO", 100)
    shape = (3, 8, 8)
    images = (normals(40, *shape).cumsum(dim=2).cumsum(dim=3) * 3.0 + 128.0).clamp(0, 255).to(torch.uint8)
    model = ScoreModel(UNet(shape, width=8), VPSDE(), "v_prediction", conditioning="logsnr", data=DataInfo(shape, 256))
    return model, images


def test_structured_moments_are_saved_with_the_model(structured, tmp_path: Path) -> None:
    """Each number, and so every sample and density."""
    model, images = structured
    model = model.with_moments(sdediff.moments(model, images)).eval()
    assert isinstance(model.moments.basis, Chain)
    sdediff.save(model, tmp_path / "run")
    again = sdediff.load(tmp_path / "run")
    assert torch.equal(*(sdediff.sample(each, (2, 3, 8, 8), steps=2) for each in (model, again)))
    x = sdediff.sample(model, (2, 3, 8, 8), steps=2)
    found = [sdediff.log_likelihood(each, x, steps=4, probes=2, seed=1).log_prob for each in (model, again)]
    assert torch.equal(*found)
    assert bool(torch.isfinite(found[0]).all())
    bound = sdediff.elbo(again, images[:2], draws=4, steps=math.inf)
    assert bool(torch.isfinite(bound.bits_per_dim).all())


def test_the_exact_trace_makes_no_matrix_of_all_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The axes come in parts; the density of Gaussian data is that in closed form."""
    monkeypatch.setattr(import_module("sdediff.bases.axes"), "_HELD", 100)
    monkeypatch.setattr(Axes, "matrix", property(lambda self: pytest.fail("the matrix was made")))
    shape = (3, 8, 8)
    own = Moments.fit(normals(30, *shape).cumsum(dim=2), covariance="structured")
    own = Moments(own.mean, own.variances.clamp(min=1e-2), own.basis)

    def network(x: torch.Tensor, level: sdediff.Level) -> torch.Tensor:
        z = own.coordinates(x / level.scale, level.cos)
        share = (own.variances - 1.0) * level.cos * level.sin / (level.sin**2 + own.variances * level.cos**2)
        back = own.basis.rotate_back(-z * share) - level.sin * own.mean.reshape(-1)
        return back.reshape(x.shape)

    model = ScoreModel(network, VPSDE(), "v_prediction", conditioning="level", moments=own)
    x = own.sample(normals(1, *shape), VPSDE().levels([VPSDE().t_data])[0])
    found = sdediff.log_likelihood(model, x, trace="exact", steps=3)
    level = VPSDE().levels([VPSDE().t_data])[0]
    torch.testing.assert_close(found.log_prob, own.log_prob(x, level), rtol=1e-8, atol=1e-6)


def test_the_command_gives_moments_to_a_model(structured, tmp_path: Path) -> None:
    model, images = structured
    sdediff.save(model, tmp_path / "plain")
    np.savez(tmp_path / "images.npz", data=images.numpy())
    runner, plain = CliRunner(), str(tmp_path / "plain")
    data, pilot = str(tmp_path / "of-data"), str(tmp_path / "of-samples")
    args = ["moments", plain, data, "--data", str(tmp_path / "images.npz"), "--json"]
    result = runner.invoke(main, args)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["folder"] == data
    expected = sdediff.moments(model, images)
    torch.testing.assert_close(sdediff.load(data).moments.variances, expected.variances)
    assert runner.invoke(main, args).exit_code == 2  # it already holds a model
    assert runner.invoke(main, [*args, "--force"]).exit_code == 0
    result = runner.invoke(main, ["moments", plain, pilot, "-n", "4", "--steps", "2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "4 samples" in result.stdout
    assert sdediff.load(pilot).moments is not None
