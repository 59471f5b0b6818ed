"""A split gives any combination of its halves from the two tensors it is made of; sums leave their terms alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sdediff import PREDICTIONS, SDE, VPSDE, Level, Split
from sdediff.numerics import all_finite, combine, scaled

DOUBLE = torch.float64
COMBINATIONS = ((1.0, 0.0), (0.0, 1.0), (-0.3, 0.8), (2.0, 2.0))


def tensors(count: int, shape: tuple[int, ...] = (4, 3), dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    rng = torch.Generator().manual_seed(2)
    return list(torch.randn(count, *shape, generator=rng, dtype=DOUBLE).to(dtype))


def test_a_pair_is_a_pair() -> None:
    x0, eps = tensors(2)
    split = Split(x0, eps)
    first, second = split
    assert first is split.x0 is x0
    assert second is split.eps is eps
    assert Split(eps=eps, x0=x0).x0 is x0


@pytest.mark.parametrize("name", PREDICTIONS)
def test_combinations_are_those_of_the_halves(name: str, sde: SDE) -> None:
    """For one level of the batch and for one of each sample, to rounding; a combination with a wrong sign is not."""
    x, output = tensors(2)
    each = sde.level(torch.tensor([0.01, 0.3, 0.6, 0.95], dtype=DOUBLE))
    for level in (*sde.levels([0.01, 0.5, 0.95]), each):
        split = PREDICTIONS[name].split(output, x, level)
        size = max(float(split.x0.abs().max()), float(split.eps.abs().max()))
        for clean, noise in COMBINATIONS:
            truth = clean * split.x0 + noise * split.eps
            torch.testing.assert_close(split.mix(clean, noise), truth, rtol=0.0, atol=1e-14 * size)
            tensor, factor = split.direction(clean, noise)
            torch.testing.assert_close(tensor * factor, truth, rtol=0.0, atol=1e-14 * size)
        wrong = split.mix(0.3, 0.8) - (-0.3 * split.x0 + 0.8 * split.eps)
        assert float(wrong.abs().max()) > 1e-3 * float(split.x0.abs().max())


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_target_is_split_into_the_halves_it_is_of(name: str, sde: SDE) -> None:
    """What a perfect network returns gives the known pair back, on every process, to the digits that are left."""
    pair = Split(*tensors(2))
    for level in sde.levels([0.1, 0.5, 0.9]):
        x = level.perturb(pair.x0, pair.eps)
        again = PREDICTIONS[name].split(PREDICTIONS[name].target(pair, level), x, level)
        torch.testing.assert_close(again.eps, pair.eps, rtol=0.0, atol=1e-9)
        torch.testing.assert_close(again.x0, pair.x0, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_gain_is_the_factor_of_the_output_in_the_velocity(name: str, sde: SDE) -> None:
    """``v = cos eps - sin x0``, whose factor of the output is its size against one of that of the noise, the score's
    being 1 / sigma."""
    prediction, zero = PREDICTIONS[name], torch.zeros(1, 1, dtype=DOUBLE)
    for level in sde.levels([0.01, 0.3, 0.95]):
        v = prediction.split(zero + 1.0, zero, level).mix(-level.sin, level.cos)
        unit = 1.0 / level.sigma if name == "score" else 1.0
        gain = float(prediction.gain(np.array([level.angle]))[0])
        assert abs(float(v)) * unit == pytest.approx(gain, rel=1e-9)


def test_factors_may_be_of_each_sample() -> None:
    x0, eps = tensors(2)
    clean, noise = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    came = Split(x0, eps).mix(clean, noise)
    torch.testing.assert_close(came, clean[:, None] * x0 + noise[:, None] * eps, rtol=1e-15, atol=1e-15)


OWN = {"epsilon": (0.0, 1.0), "sample": (1.0, 0.0), "flow": (-1.0, 1.0)}


@pytest.mark.parametrize("name", ["epsilon", "sample", "v_prediction", "score"])
def test_what_the_network_said_costs_nothing(name: str, sde: SDE) -> None:
    """The combination that a network predicts is its output, untouched but for a factor."""
    x, output = tensors(2)
    for level in sde.levels([0.01, 0.5, 0.95]):
        wanted = {**OWN, "v_prediction": (-level.sin, level.cos), "score": (0.0, 1.0)}[name]
        assert PREDICTIONS[name].split(output, x, level).direction(*wanted)[0] is output


def test_a_half_without_a_value_does_not_spoil_the_other() -> None:
    """On the data themselves the noise half is 0 / 0, and the clean half is the output."""
    clean = VPSDE().levels([0.0])[0]
    x, output = tensors(2)
    split = PREDICTIONS["sample"].split(output, x, clean)
    assert split.x0 is output
    assert not bool(torch.isfinite(split.eps).any())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_halves_keep_their_digits_in_single_precision(prediction: str) -> None:
    """With the network's output rounded to float32, each half is as exact as one division allows: a few roundings
    over the coefficient that it was recovered through. A half recovered from the other loses as much again."""
    process = VPSDE()
    x0, eps = tensors(2, (64, 16))
    for level in process.levels([1e-5, 1e-3, 0.1, 0.9, 1.0]):
        x = (level.alpha * x0 + level.sigma * eps).float()
        output = PREDICTIONS[prediction].target(Split(x0, eps), level).float()
        split = PREDICTIONS[prediction].split(output, x, level)
        rounding = 8.0 * 6e-8 * 4.0  # eight roundings of numbers up to four
        assert float((split.x0 - x0).abs().max()) < rounding / level.alpha
        assert float((split.eps - eps).abs().max()) < rounding / level.sigma


# ---- sums ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "factors", [(1.0, 0.5, -2.0), (0.3, 1.0, 0.0), (0.0, 0.7, 1.0), (0.0, 0.0, 1.0), (0.0,), (1.0,)]
)
def test_sums_leave_their_terms_alone(factors: tuple[float, ...]) -> None:
    terms = tensors(len(factors))
    before = [term.clone() for term in terms]
    came = combine(list(zip(factors, terms, strict=True)))
    truth = sum((f * t for f, t in zip(factors, before, strict=True)), torch.zeros_like(came))
    torch.testing.assert_close(came, truth, rtol=1e-15, atol=1e-15)
    came.fill_(7.0)
    assert all(torch.equal(term, copy) for term, copy in zip(terms, before, strict=True))


def test_gradients_flow_through_sums() -> None:
    a, b, c = (t.requires_grad_() for t in tensors(3))
    for keep in (1.0, 0.7):
        assert torch.autograd.gradcheck(
            lambda *t, k=keep: combine([(k, t[0]), (0.2, t[1].tanh()), (3.0, t[2])]), (a, b, c)
        )


def test_a_term_that_counts_for_nothing_may_be_infinite() -> None:
    (a,) = tensors(1)
    assert torch.equal(combine([(0.0, a / 0.0), (2.0, a)]), 2.0 * a)


def test_scaling_by_one_is_no_work() -> None:
    (a,) = tensors(1)
    assert scaled(a, 1.0) is a
    assert scaled(a, 1.0 - 2.0**-53) is a  # hypot(alpha, sigma) of a variance-preserving process
    assert torch.equal(scaled(a, 1.0 + 1e-12), (1.0 + 1e-12) * a)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_entry_is_found(bad: float) -> None:
    x = torch.full((1000, 3), 3e38)  # the sum overflows, which is not the state's fault
    assert all_finite(x)
    assert all_finite(torch.zeros(2, 3))
    x[123, 1] = bad
    assert not all_finite(x)
    y = torch.zeros(1000, 3)
    y[0, 0], y[999, 2] = bad, -bad
    assert not all_finite(y)


def test_levels_of_a_batch_and_of_one_agree() -> None:
    """A level of floats, of ``()`` tensors and of ``(B,)`` tensors split alike."""
    process = VPSDE()
    x, output = tensors(2)
    floats = process.levels([0.4])[0]
    for level in (process.level(0.4), Level(*(torch.full((4,), f, dtype=DOUBLE) for f in floats))):
        for name, prediction in PREDICTIONS.items():
            for one, other in zip(prediction.split(output, x, level), prediction.split(output, x, floats), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13, msg=name)
