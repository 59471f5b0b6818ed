"""Autoencoders, VAEs and latent models: exact identities on linear-Gaussian models, bounds, files."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import sdediff
from sdediff import latent
from sdediff.analytic import Gaussian
from sdediff.gaussian import gaussian_kl
from sdediff.latent.code_laws import StandardNormal
from sdediff.latent.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from sdediff.latent.observations import GaussianObservation
from sdediff.training.latent_task import LatentTask
from sdediff.types import DataInfo

DIM, CODE = 6, 2
ROWS = DataInfo((DIM,))
DIGITS = DataInfo((1, 8, 8), levels=17)


class LinearGaussian:
    """``x = W z + b + s eps`` with ``z ~ N(0, I)``: likelihood and posterior in closed form (Tipping & Bishop 1999)."""

    def __init__(self, seed: int = 0, std: float = 0.5) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(DIM, CODE, generator=draw, dtype=torch.float64)
        self.bias = torch.randn(DIM, generator=draw, dtype=torch.float64)
        self.std = std
        noise = std**2 * torch.eye(DIM, dtype=torch.float64)
        self.law = MultivariateNormal(self.bias, self.weight @ self.weight.T + noise)
        precision = torch.eye(CODE, dtype=torch.float64) + self.weight.T @ self.weight / std**2
        self.covariance = torch.linalg.inv(precision)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal((x - self.bias) @ self.weight @ self.covariance / self.std**2, self.covariance)

    def vae(self, mean: Tensor, offset: Tensor, log_variance: Tensor) -> latent.VAE:
        """The VAE of this model with the encoder ``N(mean x + offset, exp(log_variance))``."""
        encoder, decoder = nn.Linear(DIM, 2 * CODE).double(), nn.Linear(CODE, DIM).double()
        with torch.no_grad():
            encoder.weight.copy_(torch.cat([mean, torch.zeros_like(mean)]))
            encoder.bias.copy_(torch.cat([offset, log_variance]))
            decoder.weight.copy_(self.weight)
            decoder.bias.copy_(self.bias)
        return latent.VAE(encoder, decoder, GaussianObservation(self.std).double(), data=ROWS)

    def best(self) -> latent.VAE:
        """The VAE with the best diagonal encoder: the posterior's mean, and the inverse of its precisions."""
        mean = self.covariance @ self.weight.T / self.std**2
        return self.vae(mean, -mean @ self.bias, torch.linalg.inv(self.covariance).diagonal().log().neg())


PPCA = LinearGaussian()
X = PPCA.bias + torch.linspace(-2.0, 2.0, 7 * DIM, dtype=torch.float64).reshape(7, DIM)


def other() -> latent.VAE:
    """A VAE of the same model with a poor encoder."""
    mean = 0.1 * torch.ones(CODE, DIM, dtype=torch.float64)
    return PPCA.vae(mean, torch.zeros(CODE, dtype=torch.float64), torch.zeros(CODE, dtype=torch.float64) - 1.0)


def diagonal(vae: latent.VAE, x: Tensor) -> MultivariateNormal:
    """The encoder's law."""
    with torch.no_grad():
        mean, log_std = vae.posterior(x)
    return MultivariateNormal(mean, torch.diag_embed((2.0 * log_std).exp()))


def test_divergence_of_gaussians() -> None:
    m, s, n, r = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, -2.0], [0.5, 3.0], [0.0, 1.0], [1.0, 0.7]))
    expected = kl_divergence(Normal(m, s), Normal(n, r))
    found = gaussian_kl(((m - n) / r).square(), 2.0 * (s / r).log())
    assert torch.allclose(found, expected, rtol=1e-13)
    tiny = torch.tensor(1e-7, dtype=torch.float64)  # KL = r^2 / 4 (1 + r / 3 + ...), which 1 + r - 1 - r loses whole
    assert float(gaussian_kl(torch.zeros_like(tiny), tiny)) == pytest.approx(0.25e-14 * (1.0 + 1e-7 / 3.0), rel=1e-8)
    assert abs(0.5 * ((1.0 + float(tiny.expm1())) - 1.0 - float(tiny)) / 0.25e-14 - 1.0) > 1e-3  # the plain formula


@pytest.mark.parametrize("make", [PPCA.best, other], ids=["best", "poor"])
def test_every_draw_is_likelihood_less_divergence(make: object) -> None:
    """``log p(x|z) + log p(z) - log q(z|x) = log p(x) - log q(z|x) / p(z|x)``, to rounding, draw by draw."""
    vae: latent.VAE = make()  # type: ignore[operator]
    stage, law = vae.parts()
    posterior = stage.posterior(X)
    eps = sdediff.NoiseSource(0, (len(X), CODE), dtype=torch.float64).normal(0)
    z = posterior.draw(eps)
    with torch.no_grad():
        bound = -stage.reconstruction(X, X, z) + law.log_prob(z, 0, 0, 0).log_prob - posterior.log_prob(eps)
    gap = diagonal(vae, X).log_prob(z) - PPCA.posterior(X).log_prob(z)
    assert torch.allclose(bound, PPCA.law.log_prob(X) - gap, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("make", [PPCA.best, other], ids=["best", "poor"])
def test_bound_is_likelihood_less_divergence_of_posteriors(make: object) -> None:
    """Jensen's gap is KL(q, p(z | x)); 42 intervals at 5 standard errors miss with probability below 1e-4."""
    vae: latent.VAE = make()  # type: ignore[operator]
    found = latent.elbo(vae, X, samples=4096)
    gap = kl_divergence(diagonal(vae, X), PPCA.posterior(X))
    distance = (found.total - (gap - PPCA.law.log_prob(X))).abs() / found.standard_error
    assert float(distance.max()) < 5.0
    assert torch.allclose(found.kl, StandardNormal().kl(vae.posterior(X)), rtol=1e-12)  # type: ignore[arg-type]
    if float(gap.max()) > 1.0:  # and is seen
        assert float((found.total + PPCA.law.log_prob(X)).min()) > 0.5


def test_importance_bound_tightens_towards_the_likelihood() -> None:
    vae, exact = other(), -PPCA.law.log_prob(X).mean()
    bounds = {
        k: latent.elbo(vae, X.repeat(64, 1), samples=k, bound="importance", batch_size=64) for k in (1, 10, 100, 1000)
    }
    means = [float(found.total.mean()) for found in bounds.values()]
    errors = [float(found.total.reshape(64, -1).mean(dim=1).std()) / 8.0 for found in bounds.values()]
    for (before, after), error in zip(pairwise(means), errors, strict=False):
        assert after < before + 4.0 * error
    for mean, error in zip(means, errors, strict=True):
        assert mean > float(exact) - 5.0 * error
    assert means[-1] - float(exact) < 0.2 * (means[0] - float(exact))
    assert bounds[10].kind == "importance"
    near = latent.elbo(PPCA.best(), X, samples=1000, bound="importance")  # a good encoder leaves no gap
    assert float((near.total + PPCA.law.log_prob(X)).abs().max()) < 5.0 * float(near.standard_error.max()) + 1e-3 < 0.2
    weightless = means[-1] - math.log(1000)  # without -log K it lies far below what is possible
    assert weightless < float(exact) - 5.0 * errors[-1]


@pytest.mark.parametrize("name", latent.OBSERVATIONS)
def test_laws_of_levels_sum_to_one(name: str) -> None:
    info = DataInfo((1,), levels=2 if name == "bernoulli" else 7)
    if not latent.OBSERVATIONS[name].integers:
        pytest.skip("a density")
    for parameters in [{}] if name in ("bernoulli", "categorical") else [{}, {"entrywise": True}, {"std": 0.03}]:
        law = latent.make_observation(name, info, **parameters)
        count = law.outputs(info)
        outputs = torch.linspace(-3.0, 2.5, 5 * count, dtype=torch.float64).reshape(5, count, 1)
        x = torch.arange(info.levels or 0)[:, None, None].expand(-1, 5, 1)
        total = torch.stack([law.log_prob(level, outputs, info) for level in x]).logsumexp(dim=0)
        assert torch.allclose(total.double(), torch.zeros(5, dtype=torch.float64), atol=1e-6)
        assert bool(((law.mean(outputs, info) >= info.low) | torch.tensor("discretised" in name)).all())


@pytest.mark.parametrize("name", [name for name, law in latent.OBSERVATIONS.items() if law.integers])
def test_moments_of_laws_of_levels(name: str) -> None:
    """The stated mean is that of the law; the deviation that of fine bins, whose own is added (Sheppard)."""
    few = {"bernoulli": 2, "categorical": 5}
    info = DataInfo((1,), levels=few.get(name, 401), low=0.5, high=2.5)
    law = latent.make_observation(name, info, **({} if name in few else {"std": 0.1}))
    count = info.levels or 0
    outputs = torch.linspace(1.52, 0.3, law.outputs(info), dtype=torch.float64).reshape(1, -1, 1)
    chances = law.log_prob(torch.arange(count)[:, None], outputs.expand(count, -1, -1), info).double().exp()
    values = torch.linspace(info.low, info.high, count, dtype=torch.float64)
    mean = float(chances @ values)
    assert float(law.mean(outputs, info)) == pytest.approx(mean, rel=1e-6)
    if name not in few:
        assert float(chances @ (values - mean) ** 2) == pytest.approx(0.1**2 + 0.005**2 / 12.0, rel=1e-4)


def test_density_of_values_is_that_of_a_gaussian() -> None:
    law = GaussianObservation(entrywise=True)
    outputs = torch.tensor([[[0.5, -1.0], [0.0, 0.7]]])
    x = torch.tensor([[0.2, 0.3]])
    expected = Normal(outputs[:, 0], outputs[:, 1].exp()).log_prob(x).sum()
    assert torch.allclose(law.log_prob(x, outputs, DataInfo((2,))).float(), expected)


@pytest.mark.parametrize("density", latent.DENSITIES)
def test_gaussian_score_model_has_the_bound_of_its_gaussian(density: str) -> None:
    """With codes of law N(m, s^2) the bound has a closed form; shift and scale change its coordinates alone."""
    vae = other()
    shift, scale, mean, var = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.7]), torch.tensor([0.3, 0.1]), 0.6
    prior = Gaussian(mean, var).model(sdediff.VPSDE())
    model = latent.LatentModel(vae, prior, shift=shift, scale=scale)
    options = {"steps": 60} if density == "flow" else {"draws": 128}
    found = latent.elbo(model, X, samples=8, density=density, **options)
    law = Normal(shift.double() + scale.double() * mean, scale.double() * math.sqrt(var))
    expected = -law.log_prob(draws(vae, 8)).sum(dim=2).mean(dim=0)
    tolerance = 1e-3 if density == "flow" else 0.03  # t_min's blur; the sampled levels
    assert torch.allclose(found.cross_entropy, expected, atol=tolerance * float(expected.abs().max()))
    assert torch.allclose(found.entropy, diagonal(vae, X).entropy())
    assert found.nfe > 0
    if density == "flow":
        assert {"draws", "solver"} <= set(found.error_budget.parts)


def draws(vae: latent.VAE, count: int) -> Tensor:
    """The codes that a bound draws, ``(count, B, CODE)``."""
    q = diagonal(vae, X)
    eps = [sdediff.NoiseSource(0, (7, CODE), dtype=torch.float64).normal(k, -13) for k in range(count)]
    return q.mean + torch.stack(eps) * q.covariance_matrix.diagonal(dim1=1, dim2=2).sqrt()


def test_effects_on_the_density_of_codes_are_signed_as_the_bound() -> None:
    """What the noise of a chain's first instant adds to the bound is what the budget says, with its sign."""
    vae, data = other(), Gaussian([0.3, 0.1], 0.05)
    found = latent.elbo(latent.LatentModel(vae, data.model(sdediff.DDPM.linear(50))), X, samples=2, steps=40)
    added = found.cross_entropy + data.log_prob(draws(vae, 2).reshape(-1, CODE)).reshape(2, 7).mean(dim=0)
    effect = found.error_budget.systematic["t_min"]
    assert float(effect.abs().min()) > 1e-3
    assert torch.allclose(added, effect, rtol=0.02)
    assert not torch.allclose(added, -effect, rtol=0.5)


def test_scales_of_codes_count_once_an_entry() -> None:
    """Codes ``(C, h, w)`` with a scale a channel have the density of the standardised ones over all scales."""
    info, shape = DataInfo((1, 4, 4)), (3, 2, 2)
    vae = latent.VAE(
        ConvEncoder(info.shape, shape, width=8, halvings=1),
        ConvDecoder(info.shape, shape, width=8, halvings=1),
        data=info,
    )
    data, scale = Gaussian(torch.linspace(-1.0, 1.0, 12), 0.3, shape=shape), torch.tensor([0.5, 2.0, 3.0])
    _, law = latent.LatentModel(vae, data.model(sdediff.VPSDE()), shift=0.2, scale=scale).parts(steps=20)
    z = torch.linspace(-2.0, 2.0, 48, dtype=torch.float64).reshape(4, *shape)
    truth = data.log_prob((z - 0.2) / scale.double()[:, None, None]) - 4.0 * math.log(0.5 * 2.0 * 3.0)
    assert torch.allclose(law.log_prob(z, 0, 0, 0).log_prob, truth, atol=1e-2)


def test_importance_needs_exact_densities() -> None:
    model = latent.LatentModel(other(), Gaussian([0.0, 0.0], 1.0).model(sdediff.VPSDE()))
    assert latent.elbo(model, X, samples=4, bound="importance", steps=10).kind == "importance"
    for options in ({"trace": "hutchinson"}, {"density": "continuous"}):
        with pytest.raises(ValueError, match="exact densities"):
            latent.elbo(model, X, samples=4, bound="importance", **options)


def small(kind: str = "vae", info: DataInfo = DIGITS, **options: object) -> latent.FirstStage:
    return latent.build_first_stage(kind, info, code=(4,), width=16, blocks=1, **options)  # type: ignore[arg-type]


LEVELS = torch.arange(5 * 64).reshape(5, 1, 8, 8) % 17


def test_items_have_their_own_draws() -> None:
    vae = small()
    whole = latent.elbo(vae, LEVELS, samples=3)
    parts = latent.elbo(vae, LEVELS, samples=3, batch_size=2)
    alone = latent.elbo(vae, LEVELS[3:4], samples=3, first=3)
    assert torch.allclose(whole.total, parts.total, rtol=1e-6)
    assert torch.allclose(whole.total[3:4], alone.total, rtol=1e-6)
    assert not torch.allclose(whole.total, latent.elbo(vae, LEVELS, samples=3, seed=1).total, rtol=1e-6)


def test_levels_of_a_continuous_observation_are_dequantised() -> None:
    """A bound on probabilities: summed over all levels their lower bounds are at most 1."""
    info = DataInfo((1,), levels=5)
    vae = latent.VAE(MLPEncoder((1,), (1,)), MLPDecoder((1,), (1,)), GaussianObservation(0.8), data=info)
    found = latent.elbo(vae, torch.arange(5)[:, None], samples=4096)
    assert found.discrete
    assert 0.3 < float((-found.total).exp().sum()) < 1.0
    assert torch.allclose(found.bits_per_dim, found.total / math.log(2.0))


def test_loss_is_the_bound_in_nats_a_dimension() -> None:
    vae = small()
    eps = torch.zeros(5, 4)
    values = vae.values(LEVELS)
    posterior = vae.posterior(values)
    cost = vae.reconstruction(LEVELS, values, posterior.mean)  # type: ignore[attr-defined]
    kl = posterior.kl().sum(dim=1).detach()
    for beta, free in ((1.0, 0.0), (0.25, 0.0), (1.0, 0.5)):
        expected = (cost + beta * posterior.kl().clamp(min=free).sum(dim=1)) / 64
        assert torch.allclose(vae.loss(LEVELS, values, eps, beta=beta, free_bits=free).double(), expected.double())
    assert float(kl.min()) > 0.0
    plain = small("ae")
    assert torch.allclose(
        plain.loss(LEVELS, values, eps), plain.reconstruction(LEVELS, values, plain.posterior(values).mean) / 64
    )


def test_joint_loss_is_the_bound_up_to_a_constant() -> None:
    """Between two encoders it differs by as much as their exact bounds: 5 standard errors of 2^15 draws."""
    codes = Gaussian([0.0, 0.0], 0.7)
    x = PPCA.law.mean + torch.zeros(1 << 15, DIM, dtype=torch.float64)
    task = object.__new__(LatentTask)
    task.joint = True
    losses, bounds = [], []
    for vae in (PPCA.best(), other()):
        model = latent.LatentModel(vae, codes.model(sdediff.CosineVPSDE()))
        task.objective = sdediff.training.Objective(model.score_model.sde, "logsnr", "likelihood")
        noise = sdediff.NoiseSource(0, (len(x), 2, CODE), dtype=torch.float64).normal(0)
        u = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
        batch = sdediff.training.batches.Batch(
            x, u[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))], noise, x
        )
        with torch.no_grad():
            losses.append(task.loss(model, batch, sdediff.conditions.Condition(), 0) * DIM)
        q = diagonal(vae, x[:1])
        marginal = MultivariateNormal(torch.zeros(CODE).double(), 0.7 * torch.eye(CODE).double())
        eps = noise[:, 0]
        z = q.mean + eps * q.covariance_matrix[0].diagonal().sqrt()
        with torch.no_grad():
            cost = vae.reconstruction(x, x, z)
        bounds.append(float((cost - marginal.log_prob(z)).mean() - q.entropy()))
    difference = losses[0] - losses[1]
    error = float(difference.std()) / math.sqrt(len(difference))
    assert abs(float(difference.mean()) - (bounds[0] - bounds[1])) < 5.0 * error + 2e-3
    assert abs(bounds[0] - bounds[1]) > 50.0 * error


@pytest.mark.parametrize("kind", latent.FIRST_STAGES)
def test_files_round_trip(kind: str, tmp_path: Path) -> None:
    model = small(kind)
    sdediff.save(model, tmp_path / "m")  # type: ignore[arg-type]
    loaded = sdediff.load(tmp_path / "m")
    assert type(loaded) is type(model)
    assert torch.equal(loaded.to_codes(LEVELS), model.to_codes(LEVELS))  # type: ignore[attr-defined]
    with pytest.raises(FileExistsError):
        sdediff.save(model, tmp_path / "m")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data= is for score models"):
        sdediff.load(tmp_path / "m", data=DIGITS)


def latent_model() -> latent.LatentModel:
    network = sdediff.networks.MLP((4,), width=16, blocks=1)
    prior = sdediff.ScoreModel(
        network, sdediff.CosineVPSDE(), "v_prediction", conditioning="logsnr", data=DataInfo((4,))
    )
    return latent.LatentModel(small(), prior, shift=torch.arange(4.0), scale=2.0)  # type: ignore[arg-type]


def test_files_of_latent_models(tmp_path: Path) -> None:
    model = latent_model()
    sdediff.save(model, tmp_path / "m")  # type: ignore[arg-type]
    loaded = sdediff.load(tmp_path / "m")
    x = sdediff.sample(model, (3, 1, 8, 8), steps=5)
    assert x.shape == (3, 1, 8, 8)
    assert torch.equal(sdediff.sample(loaded, (3, 1, 8, 8), steps=5), x)
    assert torch.equal(loaded.scale, model.scale)  # type: ignore[attr-defined]


@pytest.mark.parametrize("harm", ["kind", "coder", "observation", "shape", "weights", "scale", "part", "number"])
def test_damaged_files_are_one_line(harm: str, tmp_path: Path) -> None:
    model = latent_model()
    sdediff.save(model, tmp_path / "m")  # type: ignore[arg-type]
    stage = tmp_path / "m" / "first_stage"
    values = json.loads((stage / "model.json").read_text())
    if harm in ("kind", "part"):
        (stage / "model.json").write_text(json.dumps({**values, "kind": "vqe"}) if harm == "kind" else "{")
    elif harm == "coder":
        (stage / "model.json").write_text(json.dumps({**values, "encoder": {"name": "nope"}}))
    elif harm == "observation":
        (stage / "model.json").write_text(json.dumps({**values, "observation": {"name": "gaussian", "std": -1.0}}))
    elif harm == "shape":
        values["encoder"]["width"] = 1 << 20
        (stage / "model.json").write_text(json.dumps(values))
    elif harm == "number":
        values["decoder"]["blocks"] = "many"
        (stage / "model.json").write_text(json.dumps(values))
    elif harm == "weights":
        (stage / "model.safetensors").write_bytes(b"nothing")
    else:
        from safetensors.torch import save_file

        save_file({"shift": torch.zeros(4), "scale": torch.zeros(4)}, tmp_path / "m" / "model.safetensors")
    with pytest.raises((ValueError, FileNotFoundError)) as failure:
        sdediff.load(tmp_path / "m")
    assert "\n" not in str(failure.value)


def test_networks_of_ones_own_are_given(tmp_path: Path) -> None:
    model, other_one = PPCA.best(), other()
    sdediff.save(model, tmp_path / "m")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="code of your own"):
        sdediff.load(tmp_path / "m")
    loaded = sdediff.load(tmp_path / "m", network=other_one)
    assert torch.equal(loaded.to_codes(X), model.to_codes(X))  # type: ignore[attr-defined]


def test_both_stages_reverse() -> None:
    model = latent_model()
    codes = model.to_codes(LEVELS)
    z = sdediff.encode(model, LEVELS, "reversible", steps=10)
    again = sdediff.decode(model.prior, z, "reversible", steps=10)
    assert torch.allclose(again, codes, atol=1e-4)
    back = sdediff.decode(model, z, "reversible", steps=10)
    assert torch.allclose(back, model.from_codes(codes), atol=1e-3)
    path = sdediff.interpolate(model, LEVELS[:2], LEVELS[2:4], points=3, steps=10)
    assert path.shape == (3, 2, 1, 8, 8)
    assert torch.allclose(path[0], model.from_codes(codes[:2]), atol=0.05)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("code", [(5,), (3, 4, 4)])
def test_convolutional_networks(code: tuple[int, ...], patch: int) -> None:
    halvings = 2 if patch == 1 else 1
    options = {"width": 8, "halvings": halvings, "patch": patch}
    info = DataInfo((2, 16, 16), levels=2)
    vae = latent.VAE(
        ConvEncoder(info.shape, code, **options),
        ConvDecoder(info.shape, code, **options),
        data=info,  # type: ignore[arg-type]
    )
    assert vae.code_shape == code
    x = torch.zeros(3, 2, 16, 16, dtype=torch.int64)
    assert sdediff.sample(vae, (3, 2, 16, 16), steps=3).shape == (3, 2, 16, 16)
    assert latent.elbo(vae, x).mean > 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: latent.VAE(nn.Linear(6, 4), nn.Linear(2, 5), data=ROWS), "the decoder returns"),
        (lambda: latent.make_observation("bernoulli", DIGITS), "2 levels"),
        (lambda: latent.make_observation("nope", DIGITS), "observation"),
        (lambda: latent.make_observation("categorical", ROWS), "continuous"),
        (lambda: latent.make_observation("gaussian", ROWS, std=0.0), "positive"),
        (lambda: ConvEncoder((3,), (4,)), "images"),
        (lambda: ConvEncoder((1, 8, 8), (4, 3, 3)), "last level"),
        (lambda: ConvEncoder((1, 9, 9), (4,), patch=2), "patches"),
        (lambda: latent.elbo(small("ae"), LEVELS), "VAE"),
        (lambda: latent.elbo(small(), LEVELS / 8.0 - 1.0), "law of levels"),
        (lambda: latent.elbo(small(), LEVELS + 17), "17"),
        (lambda: latent.elbo(small(), LEVELS, samples=0), "samples"),
        (lambda: latent.elbo(small(), LEVELS, steps=3), "takes no options"),
        (lambda: sdediff.sample(small("ae"), (2, 1, 8, 8)), "no law"),
        (lambda: sdediff.sample(small(), (2, 3)), "shape"),
        (lambda: sdediff.sample(small(), (2, 1, 8, 8), return_log_prob=True), "bounded"),
        (lambda: sdediff.log_likelihood(small(), LEVELS), "denoiser"),
        (lambda: latent.LatentModel(small(), Gaussian([0.0], 1.0).model(sdediff.VPSDE())), "codes"),
        (lambda: latent.measure_scale(torch.ones(4, 2)), "constant"),
    ],
)
def test_refusals(make: object, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as failure:
        make()  # type: ignore[operator]
    assert "\n" not in str(failure.value)


def test_chain_is_a_hierarchical_vae() -> None:
    """L_T and L_{t-1} are divergences of Gaussians by the same function as a VAE's."""
    chain = sdediff.DDPM.linear(10)
    law = Gaussian([1.0, -0.5], 0.3)
    model = law.model(chain)
    x = torch.tensor([[0.4, 1.0]])
    found = sdediff.elbo(model, x, seed=3, control="none", prior="standard")
    source = sdediff.NoiseSource(3, x.shape, dtype=torch.float32)
    level = chain.levels([1.0])[0]
    last = gaussian_kl((level.alpha * x.double() / level.sigma).square(), torch.zeros(1, dtype=torch.float64)).sum(
        dim=1
    )
    assert torch.allclose(found.prior, last, atol=1e-12)
    for step in range(1, 10):
        s, t = step / 10, (step + 1) / 10
        eps = source.normal(step, 4)
        x_t = chain.perturb(x, t, eps)
        mean, std = chain.bridge(x_t.double(), x.double(), t, s)
        guess, _ = chain.bridge(x_t.double(), model.denoise(x_t, t).double(), t, s)
        kl = kl_divergence(Normal(mean, std), Normal(guess, std)).sum(dim=1)
        assert torch.allclose(found.diffusion[step - 1], kl, rtol=1e-3, atol=1e-6)


def test_active_units() -> None:
    means = torch.stack([torch.linspace(-1.0, 1.0, 50), 0.01 * torch.linspace(-1.0, 1.0, 50)], dim=1)
    assert latent.active_units(means).tolist() == [True, False]
    assert np.isclose(
        float(latent.Posterior(torch.zeros(1, 2), torch.zeros(1, 2)).entropy()), 1.0 + math.log(2 * math.pi)
    )
