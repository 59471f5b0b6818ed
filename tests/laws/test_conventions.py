"""Networks in the conventions of others, written anew in closed form, against the exact denoiser and its density."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sdediff
from catalogue import GAUSSIAN, MIXTURE
from sdediff import DDPM, PREDICTIONS, SAMPLERS, SDE, ExponentialVESDE, RectifiedFlow, ScoreModel
from sdediff.conditioning import AtInstants, ByLabel, ByTime, Conditioning, Interpolated
from sdediff.config import Config, build
from sdediff.networks import MLP
from sdediff.types import DataInfo

MEAN, COVARIANCE = torch.tensor([0.7, -0.4]).double(), torch.tensor([[1.3, 0.5], [0.5, 0.4]]).double()
"""Those of ``GAUSSIAN``."""


def states(sde: SDE, t: float) -> Tensor:
    """Draws of the Gaussian's ``x_t``."""
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sde.perturb(GAUSSIAN.sample(6, seed=2), t, noise)


def same(model: ScoreModel, t: float, exact: sdediff.Denoiser) -> bool:
    """Whether both halves are those of the exact denoiser to rounding."""
    x = states(model.sde, t)
    found, wanted = model.split(x, t), exact.split(x, t)
    return all(torch.allclose(a, b, rtol=1e-7, atol=1e-7) for a, b in zip(found, wanted, strict=True))


# ---- Song's tutorial -------------------------------------------------------------------------------------------------


def marginal_prob_std(t: Tensor, sigma: float) -> Tensor:
    """As the tutorial has it."""
    return torch.sqrt((sigma ** (2 * t) - 1.0) / 2.0 / math.log(sigma))


def tutorial_score(sigma: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The Gaussian's score as a network of the tutorial: ``score_model(x, t)``."""

    def score_model(x: Tensor, t: Tensor) -> Tensor:
        total = COVARIANCE + marginal_prob_std(t.double(), sigma)[:, None, None] ** 2 * torch.eye(2).double()
        return -torch.linalg.solve(total, (x - MEAN)[:, :, None])[:, :, 0]

    return score_model


@pytest.mark.parametrize("sigma", [25.0, 2.0, 300.0])
def test_networks_of_the_ve_tutorial(sigma: float) -> None:
    sde = ExponentialVESDE(sigma)
    t = torch.linspace(1e-3, 1.0, 50, dtype=torch.float64)
    torch.testing.assert_close(sde.sigma(t), marginal_prob_std(t, sigma), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(sde.diffusion(t), sigma**t, rtol=1e-12, atol=0.0)
    model, exact = ScoreModel(tutorial_score(sigma), sde, "score"), GAUSSIAN.model(sde)
    assert all(same(model, t, exact) for t in (1e-2, 0.3, 1.0))
    other = ScoreModel(tutorial_score(1.1 * sigma), sde, "score")
    assert not same(other, 0.3, exact)  # the control
    model.moments = GAUSSIAN.moments  # so that the prior is exact: the tolerance is left
    x = GAUSSIAN.sample(20, seed=1)
    found = sdediff.log_likelihood(model, x, rtol=1e-8).log_prob
    torch.testing.assert_close(found, GAUSSIAN.log_prob(x, sde, sde.t_min), rtol=0.0, atol=1e-5)


# ---- flow matching from noise to data --------------------------------------------------------------------------------


def matched_velocity(x: Tensor, t: Tensor) -> Tensor:
    """``E[data - noise | t data + (1 - t) noise = x]`` of the Gaussian."""
    t, eye = t.double()[:, None, None], torch.eye(2).double()
    total = t**2 * COVARIANCE + (1.0 - t) ** 2 * eye
    beyond = torch.linalg.solve(total, (x - t[:, :, 0] * MEAN)[:, :, None])
    return MEAN + ((t * COVARIANCE - (1.0 - t) * eye) @ beyond)[:, :, 0]


def test_flow_matching_from_noise_to_data() -> None:
    sde = RectifiedFlow()
    model = ScoreModel(matched_velocity, sde, "reversed_flow", conditioning="reversed_time")
    exact = GAUSSIAN.model(sde)
    assert all(same(model, t, exact) for t in (0.01, 0.25, 0.5, 0.9))
    for prediction, conditioning in (("flow", "reversed_time"), ("reversed_flow", "time"), ("flow", "time")):
        wrong = ScoreModel(matched_velocity, sde, prediction, conditioning=conditioning)
        assert not same(wrong, 0.25, exact), (prediction, conditioning)
    # Their own integration, dx = velocity dt from noise at t = 0 to data at t = 1, ends where ours does.
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours = sdediff.solve(model, x, "dopri5", rtol=1e-9, atol=1e-9, t_from=sde.t_max, t_to=0.0).x
    theirs, steps = x, 200
    for i in range(steps):  # Runge-Kutta of order 4
        t, h = torch.full((8,), 1e-4 + i * (1.0 - 1e-4) / steps, dtype=torch.float64), (1.0 - 1e-4) / steps
        k1 = matched_velocity(theirs, t)
        k2 = matched_velocity(theirs + 0.5 * h * k1, t + 0.5 * h)
        k3 = matched_velocity(theirs + 0.5 * h * k2, t + 0.5 * h)
        theirs = theirs + h / 6.0 * (k1 + 2 * k2 + 2 * k3 + matched_velocity(theirs + h * k3, t + h))
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-5)
    data = GAUSSIAN.sample(20, seed=1)
    found = sdediff.log_likelihood(model, data, steps=200).log_prob
    torch.testing.assert_close(found, GAUSSIAN.log_prob(data), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_network_in_both_directions_has_the_same_samples(name: str) -> None:
    """By every solver, whose weights know how the prediction magnifies errors: turning time round changes nothing."""

    def forward(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x.flip(1) + 2.0 * t[:, None]) - x / (0.5 + t[:, None])

    def backward(x: Tensor, t: Tensor) -> Tensor:
        return -forward(x, 1.0 - t)

    sde = RectifiedFlow()
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {} if SAMPLERS[name].adaptive else {"steps": 12}
    ours, theirs = (
        sdediff.solve(model, x, name, t_to=0.0, **options).x
        for model in (
            ScoreModel(forward, sde, "flow"),
            ScoreModel(backward, sde, "reversed_flow", conditioning="reversed_time"),
        )
    )
    torch.testing.assert_close(theirs, ours, rtol=1e-7, atol=1e-7)


def test_reversed_networks_are_saved(tmp_path: Path) -> None:
    settings = {"sde.name": "flow", "model.prediction": "reversed_flow", "model.conditioning": "reversed_time"}
    model = build(Config().updated(settings), DataInfo((2,)))
    sdediff.save(model, tmp_path)
    again = sdediff.load(tmp_path)
    assert (again.prediction, again.conditioning) == (PREDICTIONS["reversed_flow"], "reversed_time")
    assert again.interface == ByTime(scale=-1.0, offset=1.0)


# ---- labels that start elsewhere -------------------------------------------------------------------------------------

CHAIN = DDPM.linear(50)
ALPHA_BAR = torch.cumprod(1.0 - torch.tensor(CHAIN.betas, dtype=torch.float64), 0)
BEFORE = torch.cat([torch.ones(1).double(), ALPHA_BAR])
EXACT = MIXTURE.model(CHAIN)


def told(table: Tensor, per: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """An exact network that predicts epsilon and looks its alpha-bar up by label, in between by the chain's own law."""

    def network(x: Tensor, label: Tensor) -> Tensor:
        place = label.double() * per
        low = (place + 1e-4).floor().clamp(0, len(table) - 2).long()
        log_bar = table.log()[low].lerp(table.log()[low + 1], place - low)
        return EXACT(x, CHAIN.level_at(0.5 * (log_bar - torch.log(-torch.expm1(log_bar))))).eps

    return network


LABELS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Conditioning]] = {
    "from 0": (told(ALPHA_BAR), ByLabel()),
    "from 1": (told(BEFORE), ByLabel(offset=1)),
    "the step before": (told(BEFORE), Interpolated(offset=1)),
    "the step before, at instants": (told(BEFORE), AtInstants(offset=1)),
    "the step after": (told(torch.cat([ALPHA_BAR[1:], ALPHA_BAR[-1:]])), Interpolated(offset=-1)),
    "shares from 1": (told(BEFORE, 50.0), ByTime()),
    "shares from 0": (told(ALPHA_BAR, 50.0), ByLabel(scale=0.02)),
    "thousandths": (told(BEFORE, 0.05), ByTime(scale=1000.0)),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_may_start_anywhere(name: str) -> None:
    """At the instants the exact denoiser, and its samples; one label off, another."""
    network, conditioning = LABELS[name]
    model = ScoreModel(network, CHAIN, conditioning=conditioning)
    x = MIXTURE.sample(5, seed=1)
    for k in (2, 10, 37, 49):
        torch.testing.assert_close(model.epsilon(x, k / 50), EXACT.epsilon(x, k / 50), rtol=1e-4, atol=1e-5)
    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"steps": 10, "grid": "chain", "t_from": 0.98, "t_to": 0.02}
    ours, wanted = (sdediff.solve(each, start, "ddim", **options).x for each in (model, EXACT))
    torch.testing.assert_close(ours, wanted, rtol=0.0, atol=1e-3)
    off = {"shares from 1": ByTime(offset=0.02), "thousandths": ByTime(1000.0, 20.0)}
    wrong = off.get(name, ByLabel(offset=0.5) if name == "from 0" else ByLabel(scale=0.02, offset=0.01))
    other = ScoreModel(network, CHAIN, conditioning=wrong)
    assert float((other.epsilon(x, 0.2) - EXACT.epsilon(x, 0.2)).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "conditioning",
    [ByLabel(scale=0.001, offset=1.0), Interpolated(offset=1), AtInstants(offset=-1), ByTime(999.0)],
)
def test_offsets_are_saved_and_configured(conditioning: Conditioning, tmp_path: Path) -> None:
    model = ScoreModel(MLP((2,), width=8), CHAIN, conditioning=conditioning)
    sdediff.save(model, tmp_path)
    again = sdediff.load(tmp_path)
    assert again.interface == conditioning
    x = MIXTURE.sample(3, seed=1).float()
    assert torch.equal(model.epsilon(x, 0.2), again.epsilon(x, 0.2))


def test_offsets_are_settings() -> None:
    config = Config().updated({"sde.name": "ddpm", "model.conditioning": "label", "model.conditioning.offset": "1"})
    assert build(config, DataInfo((2,))).interface == ByLabel(offset=1.0)


@pytest.mark.parametrize(
    "make", [lambda: ByTime(scale=0.0), lambda: ByLabel(offset=math.nan), lambda: ByTime(math.inf)]
)
def test_what_is_no_label(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="labels need a finite scale, not 0, and offset; came "):
        make()
