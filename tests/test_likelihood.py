"""The likelihood through the ODE: exact densities, traces, probes that state their error, and the contract."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from catalogue import GAUSSIAN, MIXTURE
from sdediff import DDPM, SDE, VPSDE, RectifiedFlow, ScoreModel
from sdediff.analytic import GaussianMixture
from sdediff.likelihood import divergence, log_likelihood
from sdediff.likelihood.divergence import PROBES, value_and_divergence, value_and_products


def blurred_log_prob(law: GaussianMixture, x: Tensor, sde: SDE) -> Tensor:
    """Log-density of the data with the noise of ``t_min``: what the path can see."""
    return law.log_prob(sde.alpha(sde.t_min) * x, sde, sde.t_min) + law.dim * sde.log_alpha(sde.t_min)


def images(components: int = 4, shape: tuple[int, ...] = (1, 8, 8)) -> GaussianMixture:
    """A mixture with image-like spread: variances over two decades, in a basis of its own for each component."""
    rng = torch.Generator().manual_seed(1)
    dim = math.prod(shape)
    basis = torch.linalg.qr(torch.randn(components, dim, dim, generator=rng, dtype=torch.float64))[0]
    variances = torch.logspace(-2, 0, dim, dtype=torch.float64)
    covariances = basis @ torch.diag_embed(variances.expand(components, -1)) @ basis.transpose(1, 2)
    means = 0.5 * torch.randn(components, dim, generator=rng, dtype=torch.float64)
    return GaussianMixture(means, 0.5 * (covariances + covariances.transpose(1, 2)), shape=shape)


# ---- the density ---------------------------------------------------------------------------------------------


def test_gaussian_density_is_exact_on_every_process(sde):
    """With the data's moments the terminal law of Gaussian data is exact, and only the solver's tolerance is left."""
    x = GAUSSIAN.sample(8, seed=1)
    result = log_likelihood(GAUSSIAN.model(sde), x, rtol=1e-9, atol=1e-9)
    # of the order of 30 steps, each within 1e-9 of the path and of the log-density, whose sensitivity to the path is
    # the score, at most about 10 here
    assert result.log_prob == pytest.approx(blurred_log_prob(GAUSSIAN, x, sde), abs=1e-6)
    assert bool((result.standard_error == 0.0).all())


def test_mixture_density_is_exact_on_every_process(sde):
    """The flow carries the density from the exact terminal law back to the data; the prior's mismatch is its own."""
    x = MIXTURE.sample(8, seed=2)
    result = log_likelihood(MIXTURE.model(sde), x, rtol=1e-9, atol=1e-9)
    prior = sde.prior_log_prob(result.latent, moments=MIXTURE.moments)
    carried = result.log_prob - prior + MIXTURE.log_prob(result.latent, sde, sde.t_max)
    assert carried == pytest.approx(blurred_log_prob(MIXTURE, x, sde), abs=1e-6)


@pytest.mark.parametrize("sde", [VPSDE(), RectifiedFlow()], ids=["vp", "flow"])
def test_images_at_the_default_tolerance(sde):
    """The stated accuracy of the default tolerance: a mean within 1e-4 bits a dimension, here on 64-D images."""
    law = images()
    x = law.sample(8, seed=3)
    result = log_likelihood(law.model(sde), x, trace="exact")
    error = (result.log_prob - law.log_prob(x)) / (64 * math.log(2.0))
    assert abs(float(error.mean())) < 1e-4
    assert float(error.square().mean().sqrt()) < 1e-4
    # Negative control: the standard prior shows, for its mean and covariance are not those of the data.
    standard = log_likelihood(law.model(sde), x, prior="standard", trace="exact")
    expected = sde.prior_log_prob(result.latent) - sde.prior_log_prob(result.latent, moments=law.moments)
    assert standard.log_prob - result.log_prob == pytest.approx(expected, abs=1e-9)
    assert float(expected.abs().max()) > 1e-4


def test_any_shape_is_the_same_density():
    flat, shaped = images(shape=(12,)), images(shape=(3, 2, 2))
    x = flat.sample(4, seed=1)
    one = log_likelihood(flat.model(VPSDE()), x, steps=10)
    other = log_likelihood(shaped.model(VPSDE()), x.reshape(4, 3, 2, 2), steps=10)
    assert torch.allclose(one.log_prob, other.log_prob, rtol=1e-12, atol=0.0)
    assert torch.equal(one.latent, other.latent.reshape(4, 12))


def test_part_of_the_path_is_the_density_at_its_start():
    """From ``t_from`` on, x has the density of data blurred by that level's noise."""
    sde, x = VPSDE(), GAUSSIAN.sample(5, seed=1)
    result = log_likelihood(GAUSSIAN.model(sde), x, t_from=0.2, t_to=0.8, rtol=1e-9, atol=1e-9)
    blurred = GAUSSIAN.log_prob(sde.alpha(0.2) * x, sde, 0.2) + 2.0 * sde.log_alpha(0.2)
    assert result.log_prob == pytest.approx(blurred, abs=1e-6)


@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("midpoint", 2)])
def test_fixed_steps_converge_at_the_order_of_the_method(solver, order):
    sde, x = VPSDE(), GAUSSIAN.sample(16, seed=2)
    exact = blurred_log_prob(GAUSSIAN, x, sde)
    steps = [20, 40, 80]
    runs = [log_likelihood(GAUSSIAN.model(sde), x, steps=n, solver=solver).log_prob for n in steps]
    errors = [float((run - exact).square().mean().sqrt()) for run in runs]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(order, abs=0.2)


def test_float32_states_stay_float32_and_the_density_is_summed_in_float64():
    law = images(shape=(12,))
    x = law.sample(8, seed=4)
    fine = log_likelihood(law.model(VPSDE()), x, steps=20)
    result = log_likelihood(law.model(VPSDE()), x.float(), steps=20)
    assert result.latent.dtype == torch.float32
    assert result.log_prob.dtype == torch.float64
    # float32 has 6e-8 relative: of states of order 3 and scores up to 10 a dimension, rounded at 80 evaluations
    assert result.log_prob == pytest.approx(fine.log_prob, abs=12 * 80 * 30 * 6e-8)


# ---- the divergence ------------------------------------------------------------------------------------------


def small_network(channels: int) -> nn.Module:
    rng = torch.Generator().manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, channels, 3)
    )
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return network


NETWORK = small_network(2)


def padded(y: Tensor) -> Tensor:
    result: Tensor = NETWORK(nn.functional.pad(y, (1, 1, 1, 1)))
    return result


def field(y: Tensor) -> Tensor:
    return padded(y) * y.square()


def jacobians(y: Tensor) -> Tensor:
    rows = [torch.func.jacrev(field)(one[None]).reshape(one.numel(), one.numel()) for one in y]
    return torch.stack(rows).detach()


Y = torch.linspace(-1.0, 1.3, 3 * 2 * 16, dtype=torch.float64).sin().reshape(3, 2, 4, 4)


@pytest.mark.parametrize("budget", [1, 500, 1 << 16], ids=["one-by-one", "chunks", "at-once"])
def test_exact_trace_is_that_of_the_jacobian(budget, monkeypatch):
    monkeypatch.setattr(divergence, "_BUDGET", budget)
    jacobian = jacobians(Y)
    value, trace = value_and_divergence(field, Y)
    scale = float(jacobian.abs().sum(dim=(1, 2)).max())
    assert torch.equal(value, field(Y).detach())
    assert trace == pytest.approx(jacobian.diagonal(dim1=1, dim2=2).sum(dim=1), abs=1e-15 * scale)
    probes = PROBES["gaussian"].draw(torch.arange(3 * 5 * 32, dtype=torch.float64).sin().reshape(3, 5, 32))
    _, products = value_and_products(field, Y, probes)
    assert products == pytest.approx(torch.einsum("bij,bki->bkj", jacobian, probes), abs=1e-15 * scale)


def test_nothing_of_autograd_is_left_behind():
    model = ScoreModel(lambda x, t: padded(x), VPSDE())
    expected = log_likelihood(model, Y, steps=2)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = log_likelihood(model, Y.clone(), steps=2)
        assert torch.equal(result.log_prob, expected.log_prob)
    assert not expected.log_prob.requires_grad
    assert not expected.latent.requires_grad
    assert all(parameter.grad is None for parameter in NETWORK.parameters())


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_one_forward_serves_value_and_divergence(trace):
    calls = []

    def network(x, t):
        calls.append(len(x))
        return x.tanh()

    model = ScoreModel(network, VPSDE())
    result = log_likelihood(model, Y, trace=trace, probes=3)
    assert result.nfe == len(calls)
    assert set(calls) == {3}
    # dopri5 spends 6 forwards a step and 2 at the start; and in batches every batch counts
    assert (result.nfe - 2) % 6 == 0
    assert log_likelihood(model, Y, steps=3, batch_size=2, trace=trace).nfe == 2 * 3 * 4


# ---- the probes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", PROBES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_stated_variance_of_probes_is_unbiased(noise, count):
    """Over 20,000 draws on one symmetric matrix, against the known variance of Hutchinson's estimator.

    The mean of the stated variances has its own standard error; 5 of them: 6e-7 of false alarm. A single Rademacher
    probe states more, by twice the spread of the diagonal (times D / (D - 2)).
    """
    rng = torch.Generator().manual_seed(3)
    a = torch.randn(12, 12, generator=rng, dtype=torch.float64)
    a = a + a.T
    law = PROBES[noise]
    probes = law.draw(torch.randn(20_000, count, 12, generator=rng, dtype=torch.float64))
    stated = law.variance(probes, probes @ a)
    diagonal = a.diagonal()
    exact = {
        "gaussian": 2.0 * float(a.square().sum()),
        "rademacher": 2.0 * float(a.square().sum() - diagonal.square().sum()),
    }[noise]
    if (noise, count) == ("rademacher", 1):
        exact += 2.0 * 12 / 10 * float((diagonal - diagonal.mean()).square().sum())
    error = float(stated.std()) / math.sqrt(len(stated))
    assert abs(float(stated.mean()) - exact) < 5.0 * error
    assert abs(float(stated.mean()) - 1.1 * exact) > 5.0 * error  # negative control: 10 % more would be seen


@pytest.mark.parametrize(("noise", "probes"), [("rademacher", 2), ("rademacher", 4), ("gaussian", 1)])
def test_stated_error_covers_the_truth(noise, probes):
    """The 95 % interval holds the truth for 93 to 97 % of 2,000 items.

    Where the true rate is within that range the observed one lies in [0.907, 0.985] but for a chance of 1e-4, 4
    standard errors of the binomial.
    """
    law = images(components=3, shape=(1, 6, 6))
    x = law.sample(2000, seed=5)
    # 12 steps of rk4 are exact to 1e-3 nats, the probes to about 1
    result = log_likelihood(law.model(VPSDE()), x, trace="hutchinson", probes=probes, noise=noise, steps=12, seed=7)
    z = (result.log_prob - law.log_prob(x)) / result.standard_error
    assert 0.907 < float((z.abs() < 1.96).double().mean()) < 0.985
    assert abs(float((z * result.standard_error).mean())) < 4.0 * float(
        result.standard_error.square().mean().sqrt()
    ) / math.sqrt(2000)
    # Negative controls: an error of half the variance, and one that forgets the mean over 4 probes.
    assert float((z.abs() * math.sqrt(2.0) < 1.96).double().mean()) < 0.907
    assert float((z.abs() / 2.0 < 1.96).double().mean()) > 0.985


def test_probes_belong_to_the_item(global_generators_untouched):
    law = images(components=2, shape=(5,))
    model, x = law.model(VPSDE()), law.sample(7, seed=1)
    options = {"trace": "hutchinson", "probes": 2, "steps": 6, "seed": 3}
    together = log_likelihood(model, x, **options)
    in_parts = log_likelihood(model, x, batch_size=3, **options)
    alone = log_likelihood(model, x[5:6], first=5, **options)
    assert torch.allclose(together.log_prob, in_parts.log_prob, rtol=1e-12, atol=0.0)
    assert torch.allclose(together.log_prob[5:6], alone.log_prob, rtol=1e-12, atol=0.0)
    assert torch.allclose(together.standard_error[5:6], alone.standard_error, rtol=1e-9, atol=0.0)
    other = log_likelihood(model, x, **(options | {"draw": 1}))
    assert float((other.log_prob - together.log_prob).abs().min()) > 0.0


def test_a_single_probe_in_the_plane_states_an_upper_bound():
    """Two coordinates show no spread beside their mean: ``2 |A|_F^2`` holds for each of the four pairs of signs."""
    a = torch.tensor([[1.0, 0.7], [0.7, -0.2]], dtype=torch.float64)
    signs = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]], [[-1.0, 1.0]], [[-1.0, -1.0]]], dtype=torch.float64)
    stated = PROBES["rademacher"].variance(signs, signs @ a)
    assert float(stated.mean()) == pytest.approx(2.0 * float(a.square().sum()))
    assert float(stated.mean()) > 4.0 * 0.7**2


def test_progress_counts_items():
    seen = []
    log_likelihood(
        MODEL, torch.zeros(5, 2), steps=1, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_auto_takes_the_exact_trace_up_to_32_dimensions():
    for dim, exact in ((32, True), (33, False)):
        model = ScoreModel(lambda x, t: x.tanh(), VPSDE())
        x = torch.full((1, dim), 0.3, dtype=torch.float64)
        result = log_likelihood(model, x, steps=1, noise="gaussian")
        assert bool((result.standard_error == 0.0).all()) == exact


# ---- the contract --------------------------------------------------------------------------------------------

MODEL = GAUSSIAN.model(VPSDE())
X = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X, {"steps": 5, "rtol": 1e-5}, "either steps"),
        (X, {"steps": 5, "solver": "dopri5"}, "unknown solver with fixed steps 'dopri5'"),
        (X, {"solver": "rk4"}, "unknown adaptive solver"),
        (X, {"steps": 0}, "at least 1"),
        (X, {"rtol": 0.0}, "positive"),
        (X, {"trace": "approximate"}, "choose one of: auto, exact, hutchinson"),
        (X, {"noise": "cauchy"}, "rademacher, gaussian"),
        (X, {"prior": "flat"}, "moments, standard"),
        (X, {"grid": "curved", "steps": 4}, "unknown grid 'curved'"),
        (X, {"probes": 0}, "at least 1"),
        (X, {"batch_size": 0}, "at least 1"),
        (X, {"t_from": 0.9, "t_to": 0.1}, "t_from < t_to"),
        (X, {"t_from": 0.0}, "t_from < t_to"),
        (X * math.nan, {}, "NaN"),
        (X[:0], {}, "non-empty"),
        (torch.zeros(2, 3), {}, "shape"),
        (torch.zeros(2, 2, dtype=torch.int64), {}, "levels"),
    ],
)
def test_refuses(x, options, message):
    with pytest.raises(ValueError, match=message) as error:
        log_likelihood(MODEL, x, **options)
    assert "\n" not in str(error.value)


def test_no_bits_for_continuous_data():
    with pytest.raises(ValueError, match="integer data only"):
        _ = log_likelihood(MODEL, X, steps=2).bits_per_dim


def test_a_broken_network_is_an_error_not_a_number():
    with pytest.raises(FloatingPointError, match="not finite"):
        log_likelihood(ScoreModel(lambda x, t: x * math.nan, DDPM.linear(10)), X)
    with pytest.raises(FloatingPointError, match="not finite"):
        log_likelihood(MODEL, X.double() + 1e200, steps=2)
    with pytest.raises(ValueError, match="autograd"):
        value_and_divergence(lambda y: y.detach(), Y)
