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
from sdediff.likelihood import log_likelihood
from sdediff.likelihood.flow import divergence
from sdediff.likelihood.flow.divergence import value_and_diagonal, value_and_products
from sdediff.likelihood.flow.hutchinson import ALWAYS_EXACT_UP_TO, PROBES, ProbeProducts, standard_error
from sdediff.samplers import SAMPLERS
from sdediff.types import Level


def blurred_log_prob(law: GaussianMixture, x: Tensor, sde: SDE) -> Tensor:
    """Log-density of the data with the noise of ``t_min``, of a chain's first instant: what the path can see."""
    start = sde.t_min if sde.instants is None else float(sde.instants[1])
    return law.log_prob(sde.alpha(start) * x, sde, start) + law.dim * sde.log_alpha(start)


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
def test_images_at_the_default(sde):
    """The stated accuracy of the default path: a mean within 1e-4 bits a dimension, here on 64-D images."""
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
    torch.testing.assert_close(one.latent, other.latent.reshape(4, 12), rtol=1e-12, atol=1e-12)


def test_part_of_the_path_is_the_density_at_its_start():
    """From ``t_from`` on, x has the density of data blurred by that level's noise."""
    sde, x = VPSDE(), GAUSSIAN.sample(5, seed=1)
    result = log_likelihood(GAUSSIAN.model(sde), x, t_from=0.2, t_to=0.8, rtol=1e-9, atol=1e-9)
    blurred = GAUSSIAN.log_prob(sde.alpha(0.2) * x, sde, 0.2) + 2.0 * sde.log_alpha(0.2)
    assert result.log_prob == pytest.approx(blurred, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_gaussian_data_need_one_step(sde, steps):
    """Against the data's own Gaussian nothing moves: path, quadrature and prior are exact on steps of any length.

    What is left is rounding: of scores up to 1 / tan(theta), 1e3 here, times 1e-16, and sums of a few hundred terms.
    """
    x = GAUSSIAN.sample(8, seed=1)
    result = log_likelihood(GAUSSIAN.model(sde), x, steps=steps)
    assert result.nfe == steps + 1
    assert result.log_prob == pytest.approx(blurred_log_prob(GAUSSIAN, x, sde), abs=1e-9)
    plain = GAUSSIAN.model(sde)
    plain.moments = None  # negative control: who does not know the Gaussian has to solve for it
    rough = log_likelihood(plain, x, steps=steps)
    assert float((rough.log_prob - result.log_prob).abs().max()) > 1e-3


@pytest.fixture(scope="module")
def fine():
    """Items, a model that does not know their moments, and the log-density on many steps: its error is 1e-9."""
    x, model = MIXTURE.sample(16, seed=2), MIXTURE.model(VPSDE())
    model.moments = None
    return x, model, log_likelihood(model, x, steps=1000, prior="standard").log_prob


@pytest.mark.parametrize(("solver", "order"), [(None, 4), ("ab2", 2), ("ddim", 1)])
def test_the_log_density_converges_at_the_order_of_the_path(solver, order, fine):
    """The quadrature is of order 6, so what is left is the path's: of the solver's order, at least."""
    x, model, fine = fine
    steps = [60, 90, 130]
    errors = [
        float((log_likelihood(model, x, steps=n, solver=solver).log_prob - fine).square().mean().sqrt()) for n in steps
    ]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] > order - 0.2


def test_every_solver_of_one_forward_a_node_will_do():
    sde, x = VPSDE(), MIXTURE.sample(4, seed=3)
    exact = log_likelihood(MIXTURE.model(sde), x, rtol=1e-9).log_prob
    names = [name for name, method in SAMPLERS.items() if method.nfe(1, clean=False) == 1 and not method.stochastic]
    assert len(names) > 8
    for name in names:
        result = log_likelihood(MIXTURE.model(sde), x, solver=name, steps=100)
        assert result.nfe == 101, name
        # within what it states itself, and a floor for those that are far better than the quadrature's estimate
        size = 5.0 * result.error_budget.systematic["solver"] + 1e-4
        assert bool(((result.log_prob - exact).abs() < size).all()), name


def test_float32_states_stay_float32_and_the_density_is_summed_in_float64():
    law = images(shape=(12,))
    x = law.sample(8, seed=4)
    fine = log_likelihood(law.model(VPSDE()), x, steps=20)
    result = log_likelihood(law.model(VPSDE()), x.float(), steps=20)
    assert result.latent.dtype == torch.float32
    assert result.log_prob.dtype == torch.float64
    # float32 has 6e-8 relative: of states of order 3 and scores up to 10 a dimension, rounded at 21 evaluations
    assert result.log_prob == pytest.approx(fine.log_prob, abs=12 * 21 * 30 * 6e-8)


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


@pytest.mark.parametrize("budget", [1, 800, 1 << 16], ids=["one-by-one", "chunks", "at-once"])
def test_exact_trace_is_that_of_the_jacobian(budget, monkeypatch):
    monkeypatch.setattr(divergence, "_MAX_COTANGENTS", budget)
    jacobian = jacobians(Y)
    axes = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0].T
    value, rows = value_and_diagonal(field, Y, axes)
    diagonal, squares = rows.unbind(dim=1)
    scale = float(jacobian.abs().sum(dim=(1, 2)).max())
    assert torch.equal(value, field(Y).detach())
    assert diagonal == pytest.approx(torch.einsum("ki,bij,kj->bk", axes, jacobian, axes), abs=1e-13 * scale)
    assert squares.sum(dim=1) == pytest.approx(jacobian.square().sum(dim=(1, 2)), rel=1e-12)
    assert diagonal.sum(dim=1) == pytest.approx(jacobian.diagonal(dim1=1, dim2=2).sum(dim=1), abs=1e-13 * scale)
    probes = PROBES["gaussian"].draw(torch.arange(3 * 5 * 32, dtype=torch.float64).sin().reshape(3, 5, 32))
    _, products = value_and_products(field, Y, probes)
    assert products == pytest.approx(torch.einsum("bij,bki->bkj", jacobian, probes), abs=1e-15 * scale)
    for count in (1, 2, 3):  # a pass each, or one for all
        few = value_and_products(field, Y, probes[:, :count])[1]
        assert few == pytest.approx(products[:, :count], abs=1e-15 * scale)


class Unbatched(torch.autograd.Function):
    """A sine whose backward pass asks for a number, which vmap refuses, as it does some layers of real networks."""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y.sin()

    @staticmethod
    def backward(ctx, of_value):
        assert math.isfinite(of_value.sum().item())
        return ctx.saved_tensors[0].cos() * of_value


def test_layers_that_cannot_be_batched_have_a_divergence():
    probes = PROBES["gaussian"].draw(torch.arange(3 * 5 * 32, dtype=torch.float64).sin().reshape(3, 5, 32))
    for look, directions in (
        (divergence.value_and_products, probes),
        (divergence.value_and_diagonal, torch.eye(32, dtype=torch.float64)),
    ):
        value, seen = look(Unbatched.apply, Y, directions)
        other, expected = look(torch.sin, Y, directions)
        # one by one and all together differ by the last bit of a sine
        torch.testing.assert_close(value, other, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(seen, expected, rtol=1e-13, atol=1e-13)


def test_a_pass_that_memory_does_not_hold_is_halved_and_the_next_is_not_tried(monkeypatch):
    probes = PROBES["gaussian"].draw(torch.arange(3 * 5 * 32, dtype=torch.float64).sin().reshape(3, 5, 32))
    _, expected = value_and_products(field, Y, probes)
    tried, backward = [], divergence._backward

    def small(value: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
        tried.append(len(cotangents))
        if len(cotangents) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return backward(value, leaf, cotangents)

    monkeypatch.setattr(divergence, "_backward", small)
    batched = divergence.BatchedPass()
    for passes in ([5, 2, 2, 1], [2, 2, 1]):
        tried.clear()
        torch.testing.assert_close(value_and_products(field, Y, probes, batched)[1], expected, rtol=1e-12, atol=1e-13)
        assert tried == passes


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_layers_that_cannot_be_batched_are_found_out_once_a_path(trace, monkeypatch):
    tried, backward = [], divergence._backward

    def counted(value: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
        tried.append(len(cotangents))
        return backward(value, leaf, cotangents)

    monkeypatch.setattr(divergence, "_backward", counted)
    log_likelihood(ScoreModel(lambda x, t: Unbatched.apply(x), VPSDE()), Y, steps=3, trace=trace, probes=8)
    assert sum(size > 1 for size in tried) == 1
    assert tried[0] > 1


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

    class Counted(nn.Module):
        def forward(self, x, t):
            calls.append(len(x))
            return x.tanh()

    model = ScoreModel(Counted(), VPSDE())
    result = log_likelihood(model, Y, trace=trace, probes=3)
    assert result.nfe == len(calls)
    assert calls[0] == 3
    assert set(calls) <= {1, 2, 3}  # rough items are solved once more, alone
    # an interval each and one at the end, and in batches every batch counts
    assert log_likelihood(model, Y, steps=3, trace=trace).nfe == 4
    assert log_likelihood(model, Y, steps=3, batch_size=2, trace=trace).nfe == 2 * 4
    each = 32 if trace == "exact" else 3
    assert log_likelihood(model, Y, steps=3, trace=trace, probes=3).products == 3 * 4 * each
    calls.clear()
    adaptive = log_likelihood(model, Y, rtol=1e-3, trace=trace)
    assert adaptive.nfe == len(calls)
    # dopri5: 6 forwards a step and 2 at the start, twice, and one at each end
    assert (adaptive.nfe - 2 * 2 - 2) % 6 == 0


# ---- the probes ----------------------------------------------------------------------------------------------


def random_matrices(nodes: int, dim: int, drift: float) -> Tensor:
    """Symmetric matrices that turn slowly from node to node, ``(nodes, dim, dim)``."""
    rng = torch.Generator().manual_seed(3)
    ends = torch.randn(2, dim, dim, generator=rng, dtype=torch.float64)
    part = drift * torch.linspace(0.0, 1.0, nodes, dtype=torch.float64)[:, None, None]
    mixed = (1.0 - part) * ends[0] + part * ends[1]
    return mixed + mixed.mT


@pytest.mark.parametrize("noise", PROBES)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dim", [6, 12])
def test_stated_variance_of_probes_is_unbiased(noise, count, dim):
    """Over 4,000 draws along a path of 30 nodes, against the known variance of Hutchinson's estimator.

    The mean of the stated variances has its own standard error, and 5 of them a chance of 6e-7 to be exceeded. What
    is added for few degrees of freedom, here about 20, is allowed for.
    """
    rng = torch.Generator().manual_seed(4)
    a, law = random_matrices(30, dim, 0.3), PROBES[noise]
    probes = [law.draw(torch.randn(4000, count, dim, generator=rng, dtype=torch.float64)) for _ in a]
    stated = (
        standard_error(law, ProbeProducts(probes, [e @ m for e, m in zip(probes, a, strict=True)], [1.0] * 30)) ** 2
    )
    total = a.square().sum() - (a.diagonal(dim1=1, dim2=2).square().sum() if noise == "rademacher" else 0.0)
    exact = 2.0 * float(total) / count
    error = float(stated.std()) / math.sqrt(len(stated))
    low, high = exact - 5.0 * error, exact * (1.0 + 0.5 / 15.0) ** 2 + 5.0 * error
    assert low < float(stated.mean()) < high
    assert not low < 0.9 * float(stated.mean()) < high  # negative control: a tenth less would be seen
    estimates = sum((e * (e @ m)).sum(dim=2).mean(dim=1) for e, m in zip(probes, a, strict=True))
    assert float(estimates.var()) == pytest.approx(exact, rel=0.15)  # 5 sd of a variance from 4,000 (kurtosis < 5)


COVERED = {
    "mixture": (lambda: images(components=3, shape=(1, 6, 6)), True),
    "gaussian": (lambda: images(components=1, shape=(1, 6, 6)), False),
    "ring": (
        lambda: GaussianMixture(
            torch.stack([torch.linspace(0, 5.5, 8).cos(), torch.linspace(0, 5.5, 8).sin()], dim=1), 0.2**2
        ),
        True,
    ),
}
"""Data, and whether the model knows their moments."""


@pytest.mark.parametrize("probes", [1, 4])
@pytest.mark.parametrize("name", COVERED)
def test_stated_interval_covers_the_truth(name, probes):
    """The 95 % interval holds the truth for 93 to 97 % of 2,000 items.

    Where the true rate is within that range the observed one lies in [0.907, 0.985] but for a chance of 1e-4, 4
    standard errors of the binomial.
    """
    make, informed = COVERED[name]
    law = make()
    if probes >= law.dim or law.dim <= ALWAYS_EXACT_UP_TO:
        pytest.skip("the trace is exact there")
    x, model = law.sample(2000, seed=5).double(), law.model(VPSDE())
    model.moments = model.moments if informed else None
    result = log_likelihood(model, x, trace="hutchinson", probes=probes, steps=40, seed=7)
    low, high = result.interval()
    truth = law.log_prob(x)
    assert 0.907 < float(((low < truth) & (truth < high)).double().mean()) < 0.985
    error = result.log_prob - truth
    assert abs(float(error.mean())) < 4.0 * float(result.standard_error.square().mean().sqrt()) / math.sqrt(2000)
    # Negative controls: an error of half the variance, and one twice too large.
    z = (error / result.standard_error).abs()
    assert float((z * math.sqrt(2.0) < 1.96).double().mean()) < 0.907
    assert float((z / 2.0 < 1.96).double().mean()) > 0.985


def test_a_target_error_is_reached_by_every_item():
    law = images(components=3, shape=(1, 6, 6))
    x, model = law.sample(40, seed=6), law.model(VPSDE())
    first = log_likelihood(model, x, trace="hutchinson")
    target = 0.3 * float(first.standard_error.median())
    result = log_likelihood(model, x, trace="hutchinson", target_error=target, seed=2)
    assert float(result.standard_error.max()) <= target
    # a third of the error is ten times the probes, some less where they go to the nodes that need them
    assert result.products < 20 * first.products
    z = (result.log_prob - law.log_prob(x)) / result.standard_error
    # 40 normal deviates: the sum of squares exceeds 90 with a chance of 1e-5; stopping early favours small errors a bit
    assert 8.0 < float(z.square().sum()) < 90.0
    alone = log_likelihood(model, x[7:8], trace="hutchinson", target_error=target, seed=2, first=7)
    assert torch.allclose(alone.log_prob, result.log_prob[7:8], rtol=1e-10)


def test_rough_items_are_solved_again():
    """Around a ring of modes: trajectories near the ridge between two of them turn sharply, most do not."""
    make, _ = COVERED["ring"]
    law = make()
    x, model = law.sample(40, seed=1).double(), law.model(VPSDE())
    coarse = log_likelihood(model, x, steps=40)
    parts = coarse.error_budget.systematic
    estimate = parts["solver"] + parts["quadrature"]
    tolerance = 0.2 * float(estimate.max())
    result = log_likelihood(model, x, target_error=tolerance)
    assert (
        float((result.error_budget.systematic["solver"] + result.error_budget.systematic["quadrature"]).max())
        <= tolerance
    )
    assert result.nfe > coarse.nfe
    smooth = estimate <= tolerance
    assert bool(smooth.any())
    assert torch.equal(result.log_prob[smooth], coarse.log_prob[smooth])


# ---- the budget ----------------------------------------------------------------------------------------------


def test_the_budget_states_what_the_errors_are():
    """Every part against the truth that analytic data allow."""
    law, sde = images(), VPSDE()
    x, model = law.sample(24, seed=8), law.model(sde)
    result = log_likelihood(model, x, trace="exact", steps=16, prior="standard")
    parts = result.error_budget.systematic
    fine = log_likelihood(model, x, trace="exact", steps=60, prior="standard").log_prob

    def rms(values: Tensor) -> float:
        return float(values.square().mean().sqrt())

    # its size within a factor of 3, and who is worst
    assert 1.0 / 3.0 < rms(parts["solver"]) / rms(result.log_prob - fine) < 3.0
    # the heat equation to first order: twice the time is tau^2 from 1e-5 to 2e-5 and no more
    first, second = (
        law.log_prob(sde.alpha(t) * x, sde, t) + 64 * sde.log_alpha(t) for t in (sde.t_min, 2.0 * sde.t_min)
    )
    assert parts["t_min"] == pytest.approx(second - first, rel=0.05, abs=0.05 * rms(second - first))
    # means and covariances forgotten by the standard prior: within the factor of 2 that is stated
    mismatch = law.log_prob(result.latent, sde, 1.0) - sde.prior_log_prob(result.latent)
    ratio = rms(parts["prior"]) / rms(mismatch)
    assert 0.5 < ratio < 2.1
    table = str(result.error_budget)
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["probes", "solver", "quadrature", "t_min", "prior"]
    assert result.error_budget.unit == "nats"


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_what_is_missed_between_nodes_is_stated(trace):
    """A field whose divergence wiggles with the noise level, faster than the nodes follow, and is no Gaussian's.

    It is ``v = w(theta) y`` with a known integral: the path is a scaling, the log-density's change D times it.
    """
    sde, dim = VPSDE(), 40

    def wiggle(angle: Tensor | float) -> Tensor:
        return 0.3 * torch.as_tensor(14.0 * torch.as_tensor(angle, dtype=torch.float64)).sin()

    def network(x: Tensor, level: Level) -> Tensor:
        return wiggle(level.angle) * x

    model = ScoreModel(network, sde, "v_prediction", conditioning="level")
    x = torch.linspace(-0.5, 0.5, 6 * dim, dtype=torch.float64).reshape(6, dim)
    fine = log_likelihood(model, x, trace="exact", steps=400).log_prob
    for steps in (8, 16):
        result = log_likelihood(model, x, trace=trace, steps=steps)
        error = (result.log_prob - fine).abs()
        budget = result.error_budget
        stated = budget.systematic["solver"] + budget.systematic["quadrature"].abs()
        assert bool((error < 2.0 * stated).all()), steps
        assert float(budget.to_dict()["quadrature"]["item"]) > 0.05 * float(error.max()), steps
        # a multiple of the identity costs signs nothing: the probes state no error, and alone would claim to be exact
        assert float(result.standard_error.max()) < 1e-9


def test_the_exact_trace_where_it_costs_no_more():
    law = images(components=2, shape=(5,))
    x = law.sample(3, seed=1)
    exact = log_likelihood(law.model(VPSDE()), x, trace="exact", steps=9)
    assert torch.equal(
        log_likelihood(law.model(VPSDE()), x, trace="hutchinson", probes=5, steps=9).log_prob, exact.log_prob
    )
    assert float(log_likelihood(law.model(VPSDE()), x, trace="hutchinson", probes=4, steps=9).standard_error.min()) > 0


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
        (X, {"steps": 5, "solver": "dopri5"}, "either steps"),
        (X, {"solver": "rk5"}, "unknown solver of the likelihood's path 'rk5'"),
        (X, {"solver": "rk4"}, r"by rk4: .* one forward a step \(ode, .*one \(dopri5, .*adaptive\)"),
        (X, {"solver": "sde"}, "cannot be solved by sde"),
        (X, {"solver": "adaptive-sde"}, "cannot be solved by adaptive-sde"),
        (X, {"solver": SAMPLERS["heun"]}, "by Heun: it needs a deterministic solver of one forward a step"),
        (X, {"solver": "ode", "rtol": 1e-3}, "need one of the adaptive solvers dopri5"),
        (X, {"target_error": 0.0}, "must be positive"),
        (X, {"target_error": 0.1, "rtol": 1e-3}, "adaptive solver has rtol"),
        (X, {"grid": [1.0, 0.5, 1e-5]}, "times must rise"),
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
        value_and_diagonal(lambda y: y.detach(), Y, torch.eye(32, dtype=torch.float64))
