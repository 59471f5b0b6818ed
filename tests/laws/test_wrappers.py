"""A wrapper changes what it says and nothing else: the identity wrapper is the identity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdediff
from catalogue import MIXTURE, PROCESSES
from sdediff import PREDICTIONS, SAMPLERS, Clip, DataInfo, Denoiser, Level, ScoreModel, Threshold, Wrapper

SEVEN = ("vp", "cosine", "subvp", "ve", "flow", "ddpm", "ddpm-cosine")


class Identity(Wrapper):
    """Says the same again, in other words: a tensor of its own."""

    def change(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        return x0.clone()


class Exact(nn.Module):
    """The exact denoiser of the mixture in any parametrisation."""

    def __init__(self, process: str, prediction: str) -> None:
        super().__init__()
        self.exact, self.prediction = MIXTURE.model(PROCESSES[process]), PREDICTIONS[prediction]

    def forward(self, x: Tensor, level: Level) -> Tensor:
        return self.prediction.target(self.exact(x, level), level)


def model_of(process: str, prediction: str) -> ScoreModel:
    network = Exact(process, prediction)
    return ScoreModel(network, PROCESSES[process], prediction, conditioning="level", moments=MIXTURE.moments)


def options(name: str) -> dict[str, Any]:
    return {"rtol": 0.1} if SAMPLERS[name].adaptive else {"steps": 6}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", SEVEN)
def test_the_identity_wrapper_is_the_identity(process: str, prediction: str) -> None:
    """For every sampler, to rounding: as much as the network's own rounding, magnified where it predicts the noise."""
    model = model_of(process, prediction)
    x = model.sde.prior_sample((6, 2), moments=MIXTURE.moments, seed=3, dtype=torch.float64)
    for name in SAMPLERS:
        plain, wrapped = (
            sdediff.solve(each, x, name, t_to=0.0, seed=3, **options(name)) for each in (model, Identity(model))
        )
        assert plain.nfe == wrapped.nfe
        scale = max(1.0, float(plain.x.abs().max()))
        assert float((plain.x - wrapped.x).abs().max()) < 1e-8 * scale, name


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_likelihoods_and_bounds_see_no_wrapper(prediction: str) -> None:
    model = model_of("ddpm", prediction)
    x = MIXTURE.sample(4)
    for call in (
        lambda each: sdediff.log_likelihood(each, x, steps=12).log_prob,
        lambda each: sdediff.elbo(each, x, draws=4).total,
        lambda each: sdediff.encode(each, x),
    ):
        torch.testing.assert_close(call(Identity(model)), call(model), rtol=1e-7, atol=1e-7)


def test_a_wrapper_that_forgets_is_noticed() -> None:
    """The control: without what the network predicts, the default solver takes another path."""

    class Forgetful(Identity):
        prediction = PREDICTIONS["v_prediction"]

    model = model_of("vp", "epsilon")
    plain, wrapped = (sdediff.sample(m, (6, 2), steps=6, dtype=torch.float64) for m in (model, Forgetful(model)))
    assert float((plain - wrapped).abs().max()) > 1e-4


def test_wrappers_answer_everything_a_denoiser_is_asked() -> None:
    """Every public name of a denoiser, from the one inside, also when that one is changed later."""
    network = nn.Linear(2, 2).half()
    chain = PROCESSES["ddpm"]
    model = ScoreModel(network, chain, "v_prediction", conditioning="interpolated", data=DataInfo((2,), 5, 0.0, 3.0))
    wrapped = Identity(Clip(model))
    model.moments = MIXTURE.moments
    for name in ("sde", "moments", "data", "prediction", "dtype", "state_dtype", "device"):
        assert getattr(wrapped, name) is getattr(model, name) or getattr(wrapped, name) == getattr(model, name)
    assert wrapped.dtype == torch.float16
    assert wrapped.state_dtype == torch.float32
    level, times = chain.levels([0.1234])[0], torch.linspace(1.0, 0.0, 8, dtype=torch.float64)
    assert wrapped.nfe(level) == model.nfe(level) == 2
    assert torch.equal(wrapped.snap(times), model.snap(times))


def test_a_denoiser_says_how_it_splits() -> None:
    class Silent(Denoiser):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Silent()  # type: ignore[abstract]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrapper", [Clip, Threshold])
def test_ranges_are_those_of_the_data(wrapper: type[Wrapper], dtype: torch.dtype) -> None:
    """In every precision, and for items of more entries than torch's own quantile takes."""
    for low, high, size in ((0.0, 1.0, 50), (-3.0, 5.0, 50), (0.0, 255.0, 17_000_000)):
        if size > 50 and dtype != torch.float32:
            continue
        x = torch.linspace(-1.0, 1.0, size).to(dtype)[None]

        def network(x: Tensor, t: Tensor, middle: float = 0.5 * (low + high), width: float = high - low) -> Tensor:
            return middle + 1.5 * width * x

        model = ScoreModel(network, PROCESSES["vp"], "sample", data=DataInfo((size,), 256, low, high))
        x0 = wrapper(model).denoise(x, 0.5)  # type: ignore[call-arg]
        assert x0.dtype == dtype
        assert float(x0.min()) == low
        assert float(x0.max()) == high
        free = wrapper(ScoreModel(network, PROCESSES["vp"], "sample")).denoise(x, 0.5)  # type: ignore[call-arg]
        assert float(free.abs().max()) == 1.0  # where no data are known


def test_thresholds_are_quantiles() -> None:
    """As torch's own, where that can be had."""
    rng = torch.Generator().manual_seed(0)
    x0 = 3.0 * torch.randn(5, 101, generator=rng, dtype=torch.float64)
    model = ScoreModel(lambda x, t: x0, PROCESSES["vp"], "sample")
    for quantile in (0.3, 0.995, 1.0):
        bound = x0.abs().quantile(quantile, dim=1, keepdim=True).clamp(min=1.0)
        truth = (x0 / bound).clamp(-1.0, 1.0)
        torch.testing.assert_close(Threshold(model, quantile).denoise(x0, 0.5), truth, rtol=1e-12, atol=1e-12)


def test_a_change_sees_state_and_level() -> None:
    seen: list[tuple[Tensor, Level]] = []

    class Watch(Identity):
        def change(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
            seen.append((x, level))
            return x0

    model, x = model_of("vp", "epsilon"), torch.rand(3, 2, dtype=torch.float64)
    Watch(model).denoise(x, 0.3)
    assert seen[0][0] is x
    assert seen[0][1].t == 0.3
