"""Networks of others: found behind functions, run in evaluation mode, left as they were, answered exactly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdediff
from catalogue import MIXTURE, PROCESSES
from sdediff import DDPM, SAMPLERS, ScoreModel
from sdediff.foreign import modules_of

CHAIN = DDPM.linear(1000)


class Net(nn.Module):
    """A network with everything that has a mode."""

    def __init__(self, drop: float = 0.3) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.enter, self.norm, self.leave = nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.drop = nn.Dropout(drop)
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=rng)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        told = torch.cat([x, t[:, None].to(x)], dim=1)
        result: Tensor = self.leave(self.drop(torch.tanh(self.norm(self.enter(told)))))
        return result

    def call(self, x: Tensor, t: Tensor) -> Tensor:
        return self(x, t)  # type: ignore[no-any-return]


class Holder:
    """An object that holds a network among other things."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.teacher = net, nn.Linear(1, 1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t)  # type: ignore[no-any-return]

    def ask(self, x: Tensor, t: Tensor) -> Tensor:
        return self._twice(x, t)

    def _twice(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t)  # type: ignore[no-any-return]


def with_default(net: nn.Module) -> Callable[..., Tensor]:
    def ask(x: Tensor, t: Tensor, net: nn.Module = net) -> Tensor:
        return net(x, t)  # type: ignore[no-any-return]

    return ask


def guided(net: nn.Module, scale: float, x: Tensor, t: Tensor) -> Tensor:
    return scale * net(x, t)


def deep(net: nn.Module) -> Callable[..., Tensor]:
    nets = [net]

    def inner(x: Tensor, t: Tensor) -> Tensor:
        return nets[0](x, t)  # type: ignore[no-any-return]

    return lambda x, t: inner(x, t)


GLOBAL = Net()


def by_name(x: Tensor, t: Tensor) -> Tensor:
    return GLOBAL(x, t)  # type: ignore[no-any-return]


FORMS: dict[str, Callable[[Net], Callable[..., Tensor]]] = {
    "lambda": lambda net: lambda x, t: net(x, t),
    "partial": lambda net: functools.partial(guided, net, 1.0),
    "method of the module": lambda net: net.call,
    "method of a holder": lambda net: Holder(net).ask,
    "callable object": lambda net: Holder(net),
    "attribute of a captured object": lambda net: (lambda holder: lambda x, t: holder.net(x, t))(Holder(net)),
    "default argument": with_default,
    "function in a function": deep,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_function_around_a_module_is_the_model_of_that_module(form: str, dtype: torch.dtype) -> None:
    """Parameters, gradients, dtype, device, mode and samples."""
    net = Net().to(dtype)
    plain, model = ScoreModel(net, CHAIN), ScoreModel(FORMS[form](net), CHAIN)
    assert modules_of(FORMS[form](net)) == [net]
    assert [id(p) for p in model.parameters()] == [id(p) for p in plain.parameters()]
    assert model.dtype == plain.dtype == dtype
    samples = [sdediff.sample(each, (5, 2), steps=4) for each in (plain, model)]
    assert samples[0].dtype == dtype
    assert torch.equal(*samples)
    x, gradients = torch.rand(3, 2, dtype=dtype), []
    for each in (plain, model):
        net.zero_grad(set_to_none=True)
        sdediff.log_likelihood(each, x, steps=4, differentiable=True).log_prob.sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(gradients[0]) == 6
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    model.eval()
    assert not net.training
    assert model.to(torch.float64).dtype == net.enter.weight.dtype == torch.float64


def test_what_is_found_and_what_is_not() -> None:
    assert modules_of(by_name) == [GLOBAL]
    assert modules_of(lambda x, t: x) == []
    assert modules_of(lambda x, t: torch.nn.functional.silu(x)) == []
    net, secret = Net(), {"net": {"inside": Net()}}
    hidden = ScoreModel(lambda x, t: secret["net"]["inside"](x, t), CHAIN)
    with pytest.raises(ValueError, match=r"nothing to differentiate.*module=network"):
        sdediff.log_likelihood(hidden, torch.rand(3, 2), steps=4, differentiable=True)
    with pytest.raises(ValueError, match="nothing to differentiate"):
        sdediff.sample(hidden, (3, 2), steps=2, differentiable=True)
    told = ScoreModel(lambda x, t: secret["net"]["inside"](x, t), CHAIN, module=secret["net"]["inside"])
    assert len(list(told.parameters())) == len(list(net.parameters()))
    assert sdediff.sample(told, (3, 2), steps=2, differentiable=True).requires_grad


class MappedOutput(dict[str, Any]):
    """What they return in fact: a dictionary whose entries are attributes, too."""

    @property
    def sample(self) -> Any:
        return self["sample"]


class Output:
    """What diffusers' networks return."""

    def __init__(self, sample: Any) -> None:
        self.sample = sample


def test_what_networks_return() -> None:
    net = Net()
    truth = sdediff.sample(ScoreModel(net, CHAIN), (3, 2), steps=2)
    for make in (Output, lambda y: MappedOutput(sample=y)):
        model = ScoreModel(lambda x, t, make=make: make(net(x, t)), CHAIN)
        assert torch.equal(sdediff.sample(model, (3, 2), steps=2), truth)
    for output, words in (
        (lambda y: (y,), r"returned tuple, not a tensor: wrap it, for example lambda x, t: network\(x, t\)\[0\]"),
        (lambda y: {"sample": y}, r'returned dict.*\["sample"\]'),
        (lambda y: None, "returned NoneType, not a tensor: return the prediction"),
        (lambda y: y.numpy(), "returned ndarray"),
        (lambda y: Output(None), "returned Output"),
    ):
        model = ScoreModel(lambda x, t, output=output: output(net(x, t).detach()), CHAIN)
        with pytest.raises(ValueError, match=words):
            sdediff.sample(model, (3, 2), steps=2)


VERBS: dict[str, Callable[..., Any]] = {
    "sample": lambda m, x, **o: sdediff.sample(m, (4, 2), steps=3, **o),
    "solve": lambda m, x, **o: sdediff.solve(m, x, steps=3, **o).x,
    "encode": lambda m, x, **o: sdediff.encode(m, x, steps=6, **o),
    "decode": lambda m, x, **o: sdediff.decode(m, x, "reversible", steps=6, **o),
    "interpolate": lambda m, x, **o: sdediff.interpolate(m, x, x.flip(0), 3, steps=6, **o),
    "log_likelihood": lambda m, x, **o: sdediff.log_likelihood(m, x, steps=4, **o).log_prob,
    "gradient": lambda m, x, **o: torch.autograd.grad(
        sdediff.log_likelihood(m, x.requires_grad_(), steps=4, differentiable=True, **o).log_prob.sum(), x
    )[0],
    "density of samples": lambda m, x, **o: sdediff.sample(m, (4, 2), steps=4, return_log_prob=True, **o)[1],
    "bits_per_dim": lambda m, x, **o: sdediff.bits_per_dim(m, (x > 0).long(), levels=2, steps=40, **o).bits_per_dim,
    "elbo": lambda m, x, **o: sdediff.elbo(m, x, draws=4, **o).total,
    "compare": lambda m, x: torch.tensor(
        [row.rms for row in sdediff.compare(m, (4, 2), ("ode",), forwards=(3,), tolerance=1e-3).rows]
    ),
    "pilot": lambda m, x: sdediff.tuning.pilot(m, trajectories=2, held_out=2).learned.clean,
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_evaluate_and_put_the_mode_back(verb: str) -> None:
    """A network left in training mode gives what it gives in evaluation mode; mode and statistics stay as they were."""
    rng = torch.Generator().manual_seed(1)
    x, data, results = torch.randn(4, 2, generator=rng), sdediff.DataInfo((2,)), []
    for training in (True, False):
        net = Net().train(training)
        net.drop.train(True)  # a part whose mode is its own
        before = {name: value.clone() for name, value in net.state_dict().items()}
        modes = [part.training for part in net.modules()]
        results.append(VERBS[verb](ScoreModel(net, CHAIN, data=data), x.clone()).detach())
        assert [part.training for part in net.modules()] == modes
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]), name
    assert torch.equal(*results)


def test_modes_are_put_back_after_a_failure_and_kept_for_those_who_want_dropout() -> None:
    net = Net().train()
    with pytest.raises(ValueError, match="returned"):
        sdediff.sample(ScoreModel(lambda x, t: net(x, t)[:1], CHAIN), (3, 2), steps=2)
    assert net.training
    model = ScoreModel(net, CHAIN)
    again = [sdediff.sample(model, (64, 2), steps=3, keep_mode=keep) for keep in (True, True, False, False)]
    assert not torch.equal(again[0], again[1])
    assert torch.equal(again[2], again[3])
    with pytest.raises(ValueError, match="keep_mode"):
        sdediff.log_likelihood(model, torch.rand(2, 2), differentiable=True, keep_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("conditioning", ["time", "label", "logsnr", "instants", "interpolated"])
def test_what_half_precision_networks_are_told_is_exact(conditioning: str, dtype: torch.dtype) -> None:
    """Timestep 750 is 752 in bfloat16: times, labels and log-SNR come in single precision at least."""
    told: list[Tensor] = []

    class Listen(nn.Linear):
        def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
            assert t is not None
            told.append(t)
            return super().forward(x)

    model = ScoreModel(Listen(2, 2).to(dtype), CHAIN, conditioning=conditioning)
    for step in (1, 3, 751, 999):
        for time in (step / 1000, torch.full((3,), step / 1000, dtype=torch.float64)):
            model.epsilon(torch.zeros(3, 2), time)
            level = CHAIN.levels([step / 1000])[0]
            truth = {"time": step / 1000, "logsnr": level.half_log_snr}.get(conditioning, step - 1)
            torch.testing.assert_close(told[-1].double(), torch.full((3,), float(truth)).double(), rtol=1e-7, atol=0.0)
    samples = sdediff.sample(model, (3, 2), steps=2)
    assert samples.dtype == torch.float32


def test_gradients_of_sampling() -> None:
    """To the state where it asks for them, to the parameters on request, and right: against a difference quotient."""
    factor = nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.factor * x

    model, z = ScoreModel(Scaled(), PROCESSES["vp"]), torch.rand(4, 2, dtype=torch.float64)
    assert not sdediff.solve(model, z, steps=3).x.requires_grad
    assert sdediff.solve(model, z.clone().requires_grad_(), steps=3).x.requires_grad
    for call in (
        lambda: sdediff.solve(model, z, steps=3, differentiable=True).x.sum(),
        lambda: sdediff.sample(model, (4, 2), steps=3, differentiable=True).sum(),
        lambda: sdediff.encode(model, z, steps=3, differentiable=True).sum(),
    ):
        (slope,) = torch.autograd.grad(call(), factor)
        ends = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                factor += shift
                ends.append(float(call()))
                factor -= shift
        assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_memory_of_likelihoods_is_bounded() -> None:
    """Items are solved in microbatches: a row is the same whatever their size, and the paths' size does not grow."""
    from sdediff.likelihood.log_likelihood import microbatch

    for nodes in (11, 101):
        for dim in (2, 784, 3072):
            size = microbatch(nodes, dim, torch.device("cpu"))
            assert size == 8 or size * nodes * dim * 110 <= 1e8
            assert (size + 1) * nodes * dim * 110 > 1e8
    few, many = (microbatch(nodes, 784, torch.device("cpu")) for nodes in (11, 101))
    assert math.isclose(few / many, 101 / 11, rel_tol=0.05)
    x = MIXTURE.sample(9)
    whole, parts = (sdediff.log_likelihood(MIXTURE.model(CHAIN), x, steps=6, batch_size=b).log_prob for b in (None, 2))
    torch.testing.assert_close(whole, parts, rtol=1e-10, atol=1e-10)


def test_every_sampler_asks_for_nothing_that_a_denoiser_does_not_declare() -> None:
    """A denoiser of the least kind serves them all."""
    exact = MIXTURE.model(PROCESSES["vp"])

    class Least(sdediff.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde, self.moments, self.data = PROCESSES["vp"], None, None

        def forward(self, x: Tensor, level: sdediff.Level) -> sdediff.Split:
            split: sdediff.Split = exact(x, level)
            return split

    for name, sampler in SAMPLERS.items():
        options: dict[str, Any] = {"rtol": 0.1} if sampler.adaptive else {"steps": 5}
        assert bool(torch.isfinite(sdediff.sample(Least(), (3, 2), name, **options)).all())


DETACHED: dict[str, Callable[[Tensor], Tensor]] = {
    "under no_grad": torch.no_grad()(torch.tanh),
    "in inference mode": torch.inference_mode()(torch.tanh),
    "outside torch": lambda x: torch.from_numpy(np.tanh(x.detach().numpy())),
    "free of shift and scale": lambda x: nn.functional.layer_norm(x.detach(), x.shape[1:]),
}
DIFFERENTIATED: dict[str, Callable[[ScoreModel, Tensor], Any]] = {
    "log_likelihood": lambda m, x: sdediff.log_likelihood(m, x, steps=4),
    "random probes": lambda m, x: sdediff.log_likelihood(m, x, steps=4, trace="hutchinson", probes=1),
    "adaptive": lambda m, x: sdediff.log_likelihood(m, x, rtol=1e-2),
    "bits_per_dim": lambda m, x: sdediff.bits_per_dim(m, (x > 0).long(), levels=2, steps=40),
    "density of samples": lambda m, x: sdediff.sample(m, x.shape, steps=4, return_log_prob=True, dtype=x.dtype),
    "gradient of samples": lambda m, x: sdediff.solve(m, x.clone().requires_grad_(), steps=3),
}


@pytest.mark.parametrize("verb", DIFFERENTIATED)
@pytest.mark.parametrize("kind", DETACHED)
def test_networks_without_a_gradient_are_refused_where_one_is_needed(kind: str, verb: str) -> None:
    """What is left of their Jacobian, the state's own part, is no divergence; samples need none."""
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = ScoreModel(lambda x, t: DETACHED[kind](x), CHAIN)
    with pytest.raises(ValueError, match=r"depends on the state but has no gradient: it is detached.*no_grad"):
        DIFFERENTIATED[verb](model, x)
    assert sdediff.sample(model, (3, 6), steps=3).shape == (3, 6)
    DIFFERENTIATED[verb](ScoreModel(lambda x, t: torch.tanh(x), CHAIN), x)


def test_a_constant_network_needs_no_gradient() -> None:
    """Its likelihood is that of the same network with a gradient of 0."""
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for prediction in ("epsilon", "sample", "score"):
        without, known = (
            sdediff.log_likelihood(ScoreModel(network, CHAIN, prediction), x, steps=4).log_prob
            for network in (lambda x, t: torch.full_like(x, 0.5), lambda x, t: 0.5 + 0.0 * x)
        )
        assert torch.equal(without, known)
