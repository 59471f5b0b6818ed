"""Gradients of the likelihood: those of the very number returned, in the memory of one node."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from catalogue import GAUSSIAN, MIXTURE
from sdediff import VPSDE, DataInfo, Moments, NoiseSource, ScoreModel, log_likelihood
from sdediff.likelihood.discrete.dequantization import dequantise
from sdediff.likelihood.flow import divergence, hutchinson, trace

SHAPE = (2, 2, 3, 3)
DIM = 18
X = NoiseSource(1, SHAPE, dtype=torch.float64).normal(0)


class Network(nn.Module):
    """Convolutions, a group norm and attention, in float64: what real networks are made of."""

    def __init__(self, width: int = 4, depth: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.middle = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.last = nn.Conv2d(width, 2, 3, padding=1)
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.double().parameters():
                fan = max(1, parameter[0].numel())
                parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * fan**-0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.norm(self.first(torch.cat([x, t.reshape(-1, 1, 1, 1).expand_as(x[:, :1])], dim=1)))
        for layer in self.middle:
            h = functional.silu(layer(h))
        tokens = h.flatten(2).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape(h.shape)
        out: Tensor = self.last(h + mixed)
        return out


def moments() -> Moments:
    """A covariance over a decade, in a basis of its own."""
    rng = torch.Generator().manual_seed(4)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=rng, dtype=torch.float64))[0]
    return Moments(torch.full(SHAPE[1:], 0.1, dtype=torch.float64), torch.logspace(-1, 0, DIM).double(), basis)


def make(**options: Any) -> ScoreModel:
    return ScoreModel(Network(), VPSDE(), "v_prediction", **options)


def gradients(model: ScoreModel, x: Tensor, **options: Any) -> list[Tensor]:
    """With respect to the data and to all parameters."""
    x = x.clone().requires_grad_()
    total = log_likelihood(model, x, differentiable=True, **options).log_prob.sum()
    return list(torch.autograd.grad(total, [x, *model.parameters()]))


def randn_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    rng = torch.Generator().manual_seed(5)
    return [torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype) for tensor in tensors]


def slope(f: Callable[[float], Tensor], h: float = 1e-3) -> tuple[float, float]:
    """``f'(0)`` by central differences of order 4 and a bound of its error, from steps h and h / 2.

    With D the difference quotient of order 2, ``(4 D(h/2) - D(h)) / 3`` errs at order h^4; the last correction, of
    order h^2, times h^2 is its size, for functions whose scale is 1. Values are rounded at some 1e-15 of their size.
    """
    values = {s: float(f(s)) for s in (-h, -h / 2, h / 2, h)}
    coarse, fine = (values[h] - values[-h]) / (2 * h), (values[h / 2] - values[-h / 2]) / h
    rounding = 1e-13 * max(abs(value) for value in values.values()) / h
    return (4.0 * fine - coarse) / 3.0, 100.0 * h**2 * abs(fine - coarse) + rounding


# ---- what the gradient is ------------------------------------------------------------------------------------


def test_gradient_in_x_of_gaussian_data_is_the_exact_score(sde):
    """``log p`` is exact with the data's moments, and so is its gradient: that of the data blurred by ``t_min``."""
    x = GAUSSIAN.sample(8, seed=1)
    model = GAUSSIAN.model(sde)
    start = sde.t_min if sde.instants is None else float(sde.instants[1])
    found = gradients(model, x, steps=6)[0]
    blur = math.exp(-2.0 * float(sde.half_log_snr(start)))
    precision = torch.linalg.inv(GAUSSIAN.covariance + blur * torch.eye(2, dtype=torch.float64))
    exact = -(x - GAUSSIAN.mean) @ precision
    # scores of order 10, from states rounded at every node and divided by no less than the blur
    assert found == pytest.approx(exact, abs=1e-16 * 100 / min(1.0, math.sqrt(blur)))


CASES = {
    "exact": {"trace": "exact"},
    "one probe": {"trace": "hutchinson", "probes": 1},
    "three probes": {"trace": "hutchinson", "probes": 3},
    "gaussian probes": {"trace": "hutchinson", "noise": "gaussian", "probes": 2},
}


@pytest.mark.parametrize("own", [None, moments()], ids=["plain", "own"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_gradient_is_that_of_finite_differences(options, own):
    model = make(moments=own)
    value = partial(log_likelihood, model, steps=5, **options)
    found = gradients(model, X, steps=5, **options)
    along = randn_like(found)
    along = [direction / direction.norm() for direction in along]
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters]

    def moved(s: float) -> Tensor:
        with torch.no_grad():
            for parameter, here, direction in zip(parameters, start, along[1:], strict=True):
                parameter.copy_(here + s * direction)
        return value(X).log_prob.sum()

    exact, error = slope(lambda s: value(X + s * along[0]).log_prob.sum())
    assert error < 1e-4 * abs(exact)
    assert abs(float((found[0] * along[0]).sum()) - exact) < error
    exact, error = slope(moved)
    assert error < 1e-4 * abs(exact)
    assert abs(float(sum((g * v).sum() for g, v in zip(found[1:], along[1:], strict=True))) - exact) < error


def recorded(
    parameters: object, field: divergence.VectorField, y: Tensor, directions: Tensor, _: object = None
) -> tuple[Tensor, Tensor]:
    """A look that leaves its whole graph, as autograd does if nothing is done about it."""
    leaf = y if y.requires_grad else y.detach().requires_grad_()
    value = field(leaf)
    probes = directions if directions.ndim == 3 else directions.expand(len(y), -1, -1)
    rows = [e.reshape(y.shape) for e in probes.unbind(dim=1)]
    products = [torch.autograd.grad(value, leaf, e, create_graph=True)[0].flatten(1) for e in rows]
    found = torch.stack(products, dim=1)
    along = torch.stack([(found * probes).sum(dim=2), found.square().sum(dim=2)], dim=1)
    return value, found if directions.ndim == 3 else along


def record_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hutchinson, "products_through", recorded)
    monkeypatch.setattr(trace, "diagonal_through", recorded)


@pytest.mark.parametrize("budget", [1, 1 << 16], ids=["one-by-one", "at-once"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_gradient_is_that_of_the_whole_graph_to_rounding(options, budget, monkeypatch):
    model = make()
    monkeypatch.setattr(divergence, "_MAX_COTANGENTS", budget)
    found = gradients(model, X, steps=5, **options)
    record_everything(monkeypatch)
    whole = gradients(model, X, steps=5, **options)
    for g, h in zip(found, whole, strict=True):
        # sums over 6 nodes, 18 directions and 72 states, each rounded at 1e-16
        assert float((g - h).abs().max()) < 1e-12 * float(h.abs().max())


def test_float32_is_float64_rounded():
    exact = gradients(make(), X, steps=5, trace="exact")
    single = gradients(make().float(), X.float(), steps=5, trace="exact")
    for g, h in zip(single, exact, strict=True):
        assert g.dtype == torch.float32
        # 6e-8, in a few hundred operations that follow one another, each magnified by slopes of order 1
        assert float((g - h).norm()) < 300 * 6e-8 * float(h.norm())


def test_items_solved_again_have_the_gradient_of_their_finer_path(monkeypatch):
    """Some of six items are solved twice; each has the gradient of the path whose density it states."""
    x, model = MIXTURE.sample(6, seed=3), MIXTURE.model(VPSDE())
    parts = log_likelihood(model, x, steps=40).error_budget.systematic
    errors = parts["solver"] + parts["quadrature"]
    monkeypatch.setattr(sys.modules["sdediff.likelihood.log_likelihood"], "_DOUBLINGS", {False: 1})
    ordered = errors.sort().values
    widest = int((ordered[1:] / ordered[:-1]).argmax())
    smooth, rough = ordered[widest : widest + 2].tolist()
    assert rough > 1.2 * smooth  # a gap that no rounding closes, and the tolerance in its middle
    tolerance = math.sqrt(smooth * rough)
    module = sys.modules["sdediff.likelihood.log_likelihood"]
    monkeypatch.setattr(module, "_PATH_ERROR", tolerance / (2 * math.log(2.0)))
    again = errors > tolerance
    coarse, fine = (gradients(model, x, steps=steps)[0] for steps in (40, 80))
    found = gradients(model, x)[0]
    expected = torch.where(again[:, None], fine, coarse)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert float((fine - coarse)[again].abs().min()) > 1e-9  # the two are told apart


def test_batches_and_integers():
    """In batches as at once; levels have no gradient, the parameters that of the values they stand for."""
    info = DataInfo(SHAPE[1:], levels=8)
    model = make(data=info)
    whole = gradients(model, X, steps=4, trace="hutchinson")
    parts = gradients(model, X, steps=4, trace="hutchinson", batch_size=1)
    for g, h in zip(whole, parts, strict=True):
        assert float((g - h).abs().max()) < 1e-12 * float(h.abs().max())
    levels = ((X.clamp(-1.0, 1.0) + 1.0) * 3.5).round().to(torch.uint8)
    counted = log_likelihood(model, levels, steps=4, differentiable=True).log_prob.sum()
    values = dequantise(levels, info, NoiseSource(0, SHAPE, dtype=torch.float64), 0)
    expected = gradients(model, values, steps=4)[1:]
    for g, h in zip(torch.autograd.grad(counted, list(model.parameters())), expected, strict=True):
        assert float((g - h).abs().max()) < 1e-12 * float(h.abs().max())


class Shrunk(nn.Module):
    """The exact denoiser of ``N(0, v)`` with one parameter, log v: it predicts the noise."""

    def __init__(self, sde: VPSDE) -> None:
        super().__init__()
        self.sde, self.log_variance = sde, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = self.sde.level(t)
        return (level.sigma / (level.alpha**2 * self.log_variance.exp() + level.sigma**2))[:, None] * x


def test_maximum_likelihood_finds_the_variance():
    """Fisher scoring, ``log v += 2 mean gradient``, converges at order 2 to the v whose density has the data's spread.

    The flow gives ``N(0, sigma_T^2)`` at ``t_max`` the variance ``(v + tau^2) sigma_T^2 / (alpha_T^2 v + sigma_T^2)``
    at the data, tau being the noise of ``t_min``; at the maximum it is the mean square of the data.
    """
    sde = VPSDE()
    model = ScoreModel(Shrunk(sde), sde, "epsilon")
    x = 0.6 * NoiseSource(2, (5, 1), dtype=torch.float64).normal(0)
    (parameter,) = model.parameters()
    for _ in range(6):
        result = log_likelihood(model, x, steps=100, trace="exact", differentiable=True)
        (found,) = torch.autograd.grad(result.log_prob.mean(), [parameter])
        with torch.no_grad():
            parameter += 2.0 * found
    square, alpha, noise = float(x.square().mean()), float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max)) ** 2
    tau = math.exp(-float(sde.half_log_snr(sde.t_min)))
    expected = (square - tau**2) / (1.0 - square * alpha**2 / noise)
    # The solver's error in log p goes with x^2 / v, as log p does: its slope in log v is of its own size. The maximum
    # moves by twice that slope (the Fisher information is 1/2), and the error may be twice the estimate of its size.
    error = float(result.error_budget.systematic["solver"].max())
    assert error < 1e-5
    assert float(parameter.detach().exp()) == pytest.approx(expected, rel=4.0 * error)


# ---- what it keeps, and what it refuses ----------------------------------------------------------------------


def test_nothing_has_a_graph_unless_asked_for():
    model, x = make(), X.clone().requires_grad_()
    plain = log_likelihood(model, x, steps=3, trace="hutchinson")
    found = log_likelihood(model, x, steps=3, trace="hutchinson", differentiable=True)
    with torch.no_grad():
        without = log_likelihood(model, x, steps=3, trace="hutchinson", differentiable=True)
    for result in (plain, without):
        assert torch.equal(result.log_prob, found.log_prob)
        assert not result.log_prob.requires_grad
        assert not result.latent.requires_grad
    assert found.log_prob.requires_grad
    assert found.latent.requires_grad
    assert not any(part.requires_grad for part in [found.standard_error, *found.error_budget.parts.values()])


def kept(model: ScoreModel, steps: int) -> int:
    """Bytes of the distinct tensors that a likelihood's graph holds."""
    held: weakref.WeakSet[Held] = weakref.WeakSet()

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # an output would hold its own graph, and so itself
            held.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda packed: packed.tensor):
        result = log_likelihood(model, X, steps=steps, trace="hutchinson", probes=1, differentiable=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in held}
    assert result.log_prob.requires_grad
    return sum(size for place, size in storages.items() if place not in own)


def test_no_activations_are_kept(monkeypatch):
    """A node keeps its state, its value and its probes, in the network's and in the density's precision.

    A node of this network has 7 layers of 16 times the state's size and more; none of it stays.
    """
    model = ScoreModel(Network(width=32, depth=4), VPSDE(), "v_prediction")
    state = X.numel() * X.element_size()
    each = (kept(model, 24) - kept(model, 12)) / 12
    assert each <= 6 * state
    record_everything(monkeypatch)
    assert (kept(model, 24) - kept(model, 12)) / 12 > 100 * state  # negative control


def test_what_has_no_gradient_is_refused():
    model = make()
    with pytest.raises(ValueError, match="give probes, not a target error"):
        log_likelihood(model, X, differentiable=True, target_error=0.1)
    with pytest.raises(ValueError, match="an adaptive solver"):
        log_likelihood(model, X, differentiable=True, solver="dopri5")
    calls = []

    class Forgetful(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            calls.append(t)
            return torch.sin(x * len(calls))

    x = X.clone().requires_grad_()
    result = log_likelihood(ScoreModel(Forgetful(), VPSDE()), x, steps=3, differentiable=True)
    with pytest.raises(RuntimeError, match="evaluation mode"):
        result.log_prob.sum().backward()
    result = log_likelihood(model, x, steps=3, differentiable=True)
    with torch.no_grad():
        next(model.parameters()).mul_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        result.log_prob.sum().backward()


def test_fields_of_constant_slope_have_gradients():
    """Where J is a constant the divergence adds nothing, and nothing may fail."""
    x = X.clone().requires_grad_()
    model = ScoreModel(lambda x, t: 0.3 * x, VPSDE(), "v_prediction")
    found = [
        torch.autograd.grad(log_likelihood(model, x, steps=3, differentiable=True, **options).log_prob.sum(), x)[0]
        for options in CASES.values()
    ]
    for one in found:
        assert torch.equal(one, found[0])
    assert float(found[0].abs().max()) > 0.1
