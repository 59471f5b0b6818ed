"""Precision, compilation and layout of a network: in every verb, under differentiation, and never of the state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import sdediff
from sdediff import VPSDE, Clip, DataInfo, Execution, Given, ScoreModel
from sdediff.cli import main
from sdediff.evaluation import identity
from sdediff.execution import tf32_products
from sdediff.networks import MLP, UNet

SHAPE = (3, 4, 4)
INFO = DataInfo(SHAPE, levels=16)
BF16 = Execution(autocast="bf16")


class Watched(nn.Module):
    """A network that notes the conditions of its forwards."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.precisions: set[torch.dtype | None] = set()
        self.tf32: list[bool] = []
        self.strides: set[tuple[int, ...]] = set()

    def forward(self, x: Tensor, conditioning: Tensor, *more: Tensor) -> Tensor:
        self.precisions.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        self.tf32.append(torch.backends.cudnn.allow_tf32)
        self.strides.add(x.stride())
        result: Tensor = self.inner(x, conditioning)
        return result


def unet(seed: int = 0) -> UNet:
    """A small attention U-Net whose every weight counts."""
    network = UNet(SHAPE, width=8, multipliers=(1, 2))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1) * 0.2
    return network.eval()


def model_of(network: nn.Module) -> ScoreModel:
    return ScoreModel(network, VPSDE(), "v_prediction", conditioning="logsnr", data=INFO)


def state(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


LEVELS = torch.arange(96).reshape(2, *SHAPE) % 16

VERBS: dict[str, Callable[..., Any]] = {
    "solve": lambda model, **how: sdediff.solve(model, state(), steps=3, **how).x,
    "sample": lambda model, **how: sdediff.sample(model, (2, *SHAPE), steps=3, **how),
    "sample-log-prob": lambda model, **how: sdediff.sample(model, (2, *SHAPE), steps=3, return_log_prob=True, **how)[1],
    "encode": lambda model, **how: sdediff.encode(model, state(), steps=3, **how),
    "decode": lambda model, **how: sdediff.decode(model, state(), steps=3, **how),
    "interpolate": lambda model, **how: sdediff.interpolate(model, state(), state(seed=2), 3, steps=3, **how),
    "log_likelihood": lambda model, **how: sdediff.log_likelihood(model, LEVELS, steps=3, **how).log_prob,
    "bits_per_dim": lambda model, **how: sdediff.bits_per_dim(model, LEVELS, steps=3, **how).bits_per_dim,
    "elbo": lambda model, **how: sdediff.elbo(model, LEVELS, steps=4, **how).total,
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_every_verb_runs_the_network_as_it_is_told(verb):
    """In bfloat16, whose rounding is 2^-9: the result changes, by no more than a few of those a layer."""
    network = Watched(unet())
    plain = verb(model_of(network))
    assert network.precisions == {None}
    network.precisions.clear()
    fast = verb(model_of(network), execution=BF16)
    assert network.precisions == {torch.bfloat16}
    assert fast.dtype == plain.dtype
    assert 1e-7 < relative(fast, plain) < 0.05
    network.precisions.clear()
    assert torch.equal(verb(model_of(network).with_execution(BF16)), fast)
    assert network.precisions == {torch.bfloat16}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_the_layout_changes_nothing_but_rounding(verb):
    network = Watched(unet())
    plain = verb(model_of(network))
    network.strides.clear()
    laid = verb(model_of(network), execution=Execution(channels_last=True))
    assert {strides[1] for strides in network.strides} == {1}
    assert relative(laid, plain) < 1e-4
    assert network.inner.entry.weight.stride()[1] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype(dtype):
    model = model_of(unet()).with_execution(BF16)
    assert sdediff.solve(model, state().to(dtype), steps=3).x.dtype == dtype
    assert model.split(state().to(dtype), 0.5).eps.dtype == dtype


def test_the_default_is_the_network_as_it_stands():
    model = model_of(unet())
    assert model.with_execution(None) is model
    assert model.with_execution(Execution()) is model
    assert torch.equal(
        model.with_execution(BF16).with_execution(Execution()).denoise(state(), 0.5), model.denoise(state(), 0.5)
    )


def test_parameters_are_shared_and_learn():
    """A loop of one's own trains the model of an execution; the same parameters are those of the model it came from."""
    model = model_of(unet())
    fast = model.with_execution(Execution(autocast="bf16", channels_last=True))
    assert list(fast.parameters()) == list(model.parameters())
    fast.denoise(state(), 0.5).square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_gradients_of_a_likelihood_under_autocast():
    """Differentiated twice in bfloat16: within a few per cent of those in single precision, on the whole."""
    x = state(2).double()

    def gradient(execution: Execution | None) -> Tensor:
        leaf, model = x.clone().requires_grad_(), model_of(unet())
        sdediff.log_likelihood(
            model, leaf, steps=4, differentiable=True, data=None, execution=execution
        ).log_prob.sum().backward()
        return torch.cat(
            [leaf.grad.flatten()] + [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        )

    plain, fast, compiled = gradient(None), gradient(BF16), gradient(Execution(compile=True))
    assert 1e-5 < relative(fast, plain) < 0.1
    assert torch.equal(compiled, plain)  # uncompiled there


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch 2.6 and later can run them as written")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at that of every input
@pytest.mark.parametrize("form", ["module", "function"])
def test_gradients_of_a_likelihood_of_a_network_that_its_owner_compiled(form):
    """Which has no second derivative: where one is needed it runs as it was written."""
    network = MLP((2,), width=8, blocks=1)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(network, backend="aot_eager")
    own = compiled if form == "module" else lambda x, t: compiled(x, t)
    gradients = []
    for each in (network, own):
        leaf = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
        model = ScoreModel(each, VPSDE(), "v_prediction", conditioning="logsnr")
        sdediff.log_likelihood(model, leaf, steps=3, differentiable=True).log_prob.sum().backward()
        gradients.append(leaf.grad)
    torch._dynamo.reset()
    assert float(gradients[0].norm()) > 0.1
    assert relative(gradients[1], gradients[0]) < 1e-4


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """The number of graphs compiled so far, by a backend that takes no minutes."""
    made: list[int] = []
    backend = getattr(request, "param", "eager")

    def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        made.append(1)
        found: Callable[..., Any] = torch._dynamo.lookup_backend(backend)(graph, inputs)
        return found

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    yield made
    torch._dynamo.reset()


COMPILED = Execution(compile=True)


def test_batches_of_all_sizes_are_compiled_once(graphs):
    model = model_of(unet())
    fast = model.with_execution(COMPILED)
    with torch.no_grad():
        for count in (4, 2, 7, 3):
            assert relative(fast.denoise(state(count), 0.5), model.denoise(state(count), 0.5)) < 1e-5
            assert len(graphs) == 1
        for t in (0.1, 0.7):
            fast.rows(slice(0, 2)).denoise(state(2), t)
    sdediff.sample(model, (5, *SHAPE), steps=3, execution=COMPILED)
    assert len(graphs) == 1


def test_copies_compile_their_own_network(graphs):
    fast = model_of(unet()).with_execution(COMPILED)
    with torch.no_grad():
        before = fast.denoise(state(), 0.5)
        other = copy.deepcopy(fast)
        for parameter in other.parameters():
            parameter.mul_(0.5)
        assert relative(other.denoise(state(), 0.5), before) > 1e-2
        assert torch.equal(fast.denoise(state(), 0.5), before)
        fast.network = other.network
        assert torch.equal(fast.denoise(state(), 0.5), other.denoise(state(), 0.5))


@pytest.mark.parametrize("graphs", ["aot_eager"], indirect=True)
def test_products_with_a_compiled_network(graphs):
    """Several products with one Jacobian, which a compiled network would give one of only."""
    model = model_of(unet())
    plain = sdediff.log_likelihood(model, LEVELS, steps=2, probes=2).log_prob
    fast = sdediff.log_likelihood(model, LEVELS, steps=2, probes=2, execution=COMPILED).log_prob
    assert graphs
    assert relative(fast, plain) < 1e-6


class Convolutions(nn.Module):
    """A network that is compiled in seconds."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        hidden = self.norm(nn.functional.silu(self.first(x)))
        last: Tensor = self.last(hidden * conditioning.sigmoid()[:, None, None, None])
        return last


FASTEST = Execution(autocast="bf16", compile=True, channels_last=True)


@pytest.mark.parametrize("graphs", ["aot_eager"], indirect=True)
def test_everything_fast_at_once_is_the_plain_result_rounded(graphs):
    """bfloat16, channels last and compiled: within a few roundings of 2^-9 a layer, as uncompiled; two graphs in all,
    one without gradients and one with, however many items the batches have."""
    model = model_of(Convolutions())
    for count in (2, 3, 5):
        levels = torch.arange(count * 48).reshape(count, *SHAPE) % 16
        for verb in (
            lambda how, count=count: sdediff.sample(model, (count, *SHAPE), steps=3, execution=how),
            lambda how, levels=levels: sdediff.elbo(model, levels, steps=4, execution=how).total,
            lambda how, levels=levels: sdediff.log_likelihood(model, levels, steps=3, probes=2, execution=how).log_prob,
        ):
            plain, fast, eager = (verb(how) for how in (Execution(), FASTEST, replace(FASTEST, compile=False)))
            assert fast.dtype == plain.dtype
            assert 1e-7 < relative(fast, plain) < 0.05
            assert relative(fast, eager) < 0.05
        assert len(graphs) == 2


def test_network_and_split_are_compiled_together_once():
    """By torch's own ``model.compile()``: for one size of a batch, any other, and whatever the levels are."""
    made: list[int] = []

    def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        made.append(1)
        return graph

    torch._dynamo.reset()
    model = model_of(Convolutions())
    plain = sdediff.sample(model, (3, *SHAPE), steps=6)
    model.compile(backend=counted)
    for count in (3, 4, 5):
        assert relative(sdediff.sample(model, (count, *SHAPE), steps=6)[:3], plain) < 1e-5
    before = len(made)
    assert before <= 3
    sdediff.sample(model, (7, *SHAPE), steps=20)
    assert len(made) == before
    torch._dynamo.reset()


def test_evaluation_mode_is_that_of_the_compiled_network(graphs):
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    torch.nn.init.eye_(network[0].weight)
    model = ScoreModel(lambda x, t: network(x), VPSDE(), "sample")
    network.train()
    one, two = (sdediff.sample(model, (4, 2), steps=3, seed=0, execution=COMPILED) for _ in range(2))
    assert torch.equal(one, two)
    assert network.training


def test_wrappers_and_conditions_run_as_the_model_inside():
    network = Watched(unet())
    model = Clip(Given(model_of(network), torch.zeros(1))).with_execution(BF16)
    assert model.execution == BF16
    x = model.rows([0, 1]).denoise(state(2), 0.5)
    assert network.precisions == {torch.bfloat16}
    assert x.dtype == torch.float32
    sdediff.solve(model, state(), steps=2, execution=Execution())
    assert network.precisions == {torch.bfloat16, None}


def test_functions_are_tested_uncompiled_and_in_their_precision(graphs):
    """A function's rows are held against each other at its first part of a batch."""
    network = Watched(unet())
    model = ScoreModel(lambda x, t: network(x, t), VPSDE(), "v_prediction", conditioning="logsnr", data=INFO)
    part = model.rows(slice(0, 2)).with_execution(Execution(autocast="bf16", compile=True))
    part.denoise(state(2), 0.5)
    assert network.precisions == {torch.bfloat16}
    assert not graphs


def test_likelihoods_forbid_tf32_unless_asked():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    network = Watched(unet())
    model = model_of(network)

    def seen(verb: str, **how: Any) -> set[bool]:
        network.tf32.clear()
        VERBS[verb](model, **how)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
        return set(network.tf32)

    for verb in ("log_likelihood", "bits_per_dim", "elbo", "sample-log-prob"):
        assert seen(verb) == {False}
        assert seen(verb, execution=Execution(tf32=True)) == {True}
    assert seen("sample") == {before[0]}
    for wanted in (True, False):
        assert seen("sample", execution=Execution(tf32=wanted)) == {wanted}


def test_the_gradient_of_a_likelihood_multiplies_as_the_likelihood_did():
    network = Watched(unet())
    for wanted in (True, False):
        how = Execution(tf32=wanted)
        found = sdediff.log_likelihood(model_of(network), state(2), steps=2, differentiable=True, execution=how)
        network.tf32.clear()
        found.log_prob.sum().backward()
        assert set(network.tf32) == {wanted}


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has one switch alone")
def test_switches_of_either_form_are_put_back():
    conv, rnn = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = conv.fp32_precision, rnn.fp32_precision
    try:
        conv.fp32_precision = "ieee"  # the parts differ: torch's old switch cannot be read
        with tf32_products(False):
            assert not torch.backends.cudnn.allow_tf32
        assert (conv.fp32_precision, rnn.fp32_precision) == ("ieee", before[1])
    finally:
        conv.fp32_precision, rnn.fp32_precision = before


def test_refusals():
    with pytest.raises(ValueError, match="unknown autocast 'fp8'; choose one of: bf16, fp16"):
        Execution(autocast="fp8")
    exact = sdediff.analytic.Gaussian([0.0], 1.0).model(VPSDE())
    with pytest.raises(ValueError, match="conditioning 'level'"):
        exact.with_execution(COMPILED)

    class Oracle(sdediff.Denoiser):
        def forward(self, x: Tensor, level: sdediff.Level) -> sdediff.Split:
            return sdediff.Split(x, x)

    with pytest.raises(ValueError, match="Oracle has no network"):
        Oracle().with_execution(BF16)
    assert isinstance(Oracle().with_execution(None), Oracle)


def test_models_say_how_they_run():
    model = model_of(unet())
    assert "bf16, no TF32" in repr(model.with_execution(Execution(autocast="bf16", tf32=False)))
    assert str(Execution(compile=True, channels_last=True, tf32=True)) == "compiled, channels last, TF32"
    assert str(Execution()) == ""
    assert identity(model, state()) != identity(model.with_execution(BF16), state())
    assert identity(model, state()) == identity(model.with_execution(Execution()), state())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sdediff.save(
        ScoreModel(MLP((2,)), VPSDE(), "v_prediction", conditioning="logsnr", data=DataInfo((2,))), tmp_path / "run"
    )
    return tmp_path / "run"


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "-n", "3", "--steps", "2"],
        ["compare", "--count", "3", "--forwards", "2", "--solver", "ode", "--tolerance", "1e-2", "--rtol", "1e-1"],
        ["tune", "--steps", "2", "--trajectories", "4", "--held-out", "2", "--iterations", "1"],
    ],
    ids=lambda command: command[0],
)
def test_commands_take_the_precision(run, command, monkeypatch):
    seen = set()
    forward = MLP.forward

    def watched(self: MLP, x: Tensor, conditioning: Tensor) -> Tensor:
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return forward(self, x, conditioning)

    monkeypatch.setattr(MLP, "forward", watched)
    result = CliRunner().invoke(main, [*command, "--run", str(run), "--autocast", "bf16", "--device", "cpu"])
    assert result.exit_code in (0, 1), result.output  # 1: no solver was kept
    assert seen == {torch.bfloat16}


def test_commands_refuse_an_unknown_precision(run):
    result = CliRunner().invoke(main, ["sample", "--run", str(run), "--autocast", "fp8"])
    assert result.exit_code == 2
    assert "unknown precision 'fp8'" in result.output
