"""Objectives on analytic problems: what they minimise, their laws on a chain's instants, the bound as a loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import sdediff
from sdediff import DDPM, VPSDE, CosineVPSDE, DataInfo, Denoiser, Level, Split
from sdediff.analytic import Gaussian
from sdediff.cli import main
from sdediff.config import Config, build
from sdediff.documents import Named
from sdediff.training import OBJECTIVES, TIME_LAWS, WEIGHTINGS, Objective, train
from sdediff.training.objective import learns_variance
from sdediff.training.time_laws import lambda_speed

ON_INSTANTS = ("instants", "important-instants")
CHAIN = DDPM(torch.linspace(0.01, 0.4, 12))
"""A chain that keeps signal to its end: no term outweighs the others, and every control has power."""
VARIANCE = 0.3
DIM = 4


class Scaled(Denoiser):
    """The exact denoiser of normal data, its noise half times a factor, and a place of its variance."""

    def __init__(self, sde: sdediff.SDE, factor: Tensor | float = 1.0, fraction: Tensor | None = None) -> None:
        super().__init__()
        covariance = VARIANCE * torch.eye(DIM, dtype=torch.float64)
        self.exact = Gaussian(torch.zeros(DIM, dtype=torch.float64), covariance).model(sde)
        self.sde, self.moments, self.data, self.factor, self.fraction = sde, None, None, factor, fraction

    def forward(self, x: Tensor, level: Level) -> Split:
        split = sdediff.PREDICTIONS["epsilon"].split(self.factor * self.exact(x, level).eps, x, level)
        if self.fraction is not None:
            split.fraction = self.fraction.expand(x.shape)
        return split


def draws(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Data, uniforms one a stratum, and noise."""
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, count, DIM, generator=generator, dtype=torch.float64)
    return VARIANCE**0.5 * x0, (torch.arange(count, dtype=torch.float64) + 0.5) / count, eps


def slopes(objective: Objective, at: float, count: int = 20_000, **fraction: Any) -> tuple[float, float]:
    """The mean derivative of the loss in the factor of the noise half, and its standard error."""
    x0, u, eps = draws(count)
    factor = torch.full((count, 1), at, dtype=torch.float64, requires_grad=True)
    objective.loss(Scaled(objective.sde, factor, **fraction), x0, u, eps).sum().backward()
    assert factor.grad is not None
    return float(factor.grad.mean()), float(factor.grad.std()) / math.sqrt(count)


# ---- minimisers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", TIME_LAWS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_exact_denoiser_is_stationary(law: str, weighting: str) -> None:
    """Within 5 standard errors (false alarms 6e-7 each); one a fifth too large is pulled back."""
    objective = Objective(CHAIN, law, weighting)
    slope, error = slopes(objective, 1.0)
    assert abs(slope) < 5.0 * error
    slope, error = slopes(objective, 1.2)
    assert slope > 5.0 * error


@pytest.mark.parametrize("law", ON_INSTANTS)
def test_the_exact_denoiser_is_stationary_for_the_bound(law: str) -> None:
    fraction = torch.tensor(0.4, dtype=torch.float64)
    objective = Objective(CHAIN, law, objective="bound")
    slope, error = slopes(objective, 1.0, fraction=fraction)
    assert abs(slope) < 5.0 * error
    slope, error = slopes(objective, 1.2, fraction=fraction)
    assert slope > 5.0 * error


@pytest.mark.parametrize("objective", ["hybrid", "bound"])
def test_the_learned_variance_is_that_of_the_reverse_step(objective: str) -> None:
    """For normal data the reverse step is normal, its variance the bridge's times ``1 + expm1(2 h) Var[eps | x]``.

    Its place is stationary at every instant, within 5 standard errors (false alarms 6e-7 each); a tenth away it is not.
    """
    levels = CHAIN.levels(CHAIN.instants[1:])
    places = torch.zeros(len(levels), dtype=torch.float64)
    for i in range(1, len(levels)):
        s, t = levels[i - 1], levels[i]
        error = t.cos**2 * VARIANCE / (t.cos**2 * VARIANCE + t.sin**2)
        places[i] = math.log1p(math.expm1(2.0 * (s.half_log_snr - t.half_log_snr)) * error) / (
            2.0 * math.log(t.sin / s.sin)
        )
    assert bool(((places[1:] > 0.0) & (places[1:] < 1.0)).all())
    x0, u, eps = draws(60_000)
    found = Objective(CHAIN, "instants", "simple", objective)
    index = (found.levels(u)[0].t * len(levels)).round().long() - 1
    for shift in (0.0, 0.1):
        place = (places[index] + shift)[:, None].requires_grad_()
        found.loss(Scaled(CHAIN, fraction=place), x0, u, eps).sum().backward()
        assert place.grad is not None
        for i in range(1, len(levels)):
            own = place.grad[index == i]
            off = float(own.mean()) / (float(own.std()) / math.sqrt(len(own)))
            assert (abs(off) < 5.0) == (shift == 0.0), (i, off)


# ---- the bound -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ON_INSTANTS)
@pytest.mark.parametrize("chain", [CHAIN, DDPM.linear(5), DDPM.linear(1)], ids=["signal-left", "linear", "one-step"])
def test_the_loss_is_the_bound_that_is_reported(law: str, chain: DDPM) -> None:
    """Bits a dimension without the prior term; 5 standard errors. A model that errs, with a variance between."""
    model = Scaled(chain, 1.1, torch.tensor([0.2, 0.9, 0.5, 0.0], dtype=torch.float64))
    x0, u, eps = draws(40_000)
    losses = Objective(chain, law, objective="bound").loss(model, x0, u, eps)
    reported = sdediff.elbo(model, x0[:4000], variance="learned", seed=1)
    bits = (reported.diffusion.sum(dim=0) + reported.reconstruction) / (DIM * math.log(2.0))
    error = math.hypot(float(losses.std()) / 200.0, float(bits.std()) / math.sqrt(4000.0))
    assert abs(float(losses.mean() - bits.mean())) < 5.0 * error
    fixed = sdediff.elbo(model, x0[:4000], variance="posterior", seed=1)  # the control: another variance
    other = (fixed.diffusion.sum(dim=0) + fixed.reconstruction) / (DIM * math.log(2.0))
    assert chain.steps == 1 or abs(float(losses.mean() - other.mean())) > 5.0 * error


@pytest.mark.parametrize("law", ["logsnr", "velocity", "uniform"])
def test_maximum_likelihood_is_the_continuous_bound(law: str) -> None:
    """ScoreFlow's objective and i-DODE's: nats of the integral over lambda, whatever the law; 5 standard errors."""
    sde = VPSDE()
    model = Scaled(sde, 1.1)
    x0, u, eps = draws(40_000)
    objective = Objective(sde, law, "likelihood")
    nats = DIM * objective.mean_weight * objective.loss(model, x0, u, eps)
    reported = sdediff.elbo(model, x0[:4000], steps=math.inf, times=[sde.t_min, sde.t_max], seed=1).diffusion.sum(dim=0)
    error = math.hypot(float(nats.std()) / 200.0, float(reported.std()) / math.sqrt(4000.0))
    assert abs(float(nats.mean() - reported.mean())) < 5.0 * error
    other = Objective(sde, law, "simple")  # the control: another weighting
    assert abs(float((DIM * other.mean_weight * other.loss(model, x0, u, eps)).mean() - reported.mean())) > 5.0 * error


def test_important_instants_make_the_bound_less_noisy() -> None:
    """By a chain's many small terms and few large ones; the mean stays."""
    chain = DDPM.cosine(200)
    model = Scaled(chain, fraction=torch.tensor(0.3, dtype=torch.float64))
    x0, _, eps = draws(20_000)
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    plain, better = (Objective(chain, law, objective="bound").loss(model, x0, u, eps) for law in ON_INSTANTS)
    assert float(better.std()) < 0.5 * float(plain.std())


def test_the_hybrid_is_the_sum_and_its_bound_leaves_the_mean_alone() -> None:
    x0, u, eps = draws(500)
    for through_mean in (False, True):
        factor = torch.full((500, 1), 1.1, dtype=torch.float64, requires_grad=True)
        place = torch.full((500, 1), 0.4, dtype=torch.float64, requires_grad=True)
        model = Scaled(CHAIN, factor, place)
        named = Named(name="hybrid", bound=0.01, through_mean=through_mean)
        hybrid = Objective(CHAIN, "instants", "simple", named).loss(model, x0, u, eps)
        simple = Objective(CHAIN, "instants", "simple").loss(model, x0, u, eps)
        bound = Objective(CHAIN, "instants", "simple", "bound").loss(model, x0, u, eps)
        # L_simple is the plain mean square, as published; what is left is a common factor
        common = float((simple[0] / (model(*_state(x0, u, eps)).eps - eps)[0].square().mean()).detach())
        torch.testing.assert_close(hybrid, simple + 0.01 * common * bound, rtol=1e-9, atol=1e-12)
        mean, variance = torch.autograd.grad(hybrid.sum(), (factor, place), retain_graph=True)
        (alone,) = torch.autograd.grad(simple.sum(), factor, retain_graph=True)
        assert torch.allclose(mean, alone, rtol=1e-9) != through_mean
        assert bool((variance != 0.0).all())


def _state(x0: Tensor, u: Tensor, eps: Tensor) -> tuple[Tensor, Level]:
    level = Objective(CHAIN, "instants", "simple").levels(u)[0]
    return level.perturb(x0, eps), level


# ---- laws and weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ON_INSTANTS)
def test_laws_on_instants_state_their_probabilities(law: str) -> None:
    """Shares of a fine grid of uniforms, to its spacing; they sum to one."""
    count = 200_000
    t, density = TIME_LAWS[law](CHAIN, (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    stated = density * lambda_speed(CHAIN, t) / CHAIN.steps
    total = 0.0
    for instant in CHAIN.instants[1:]:
        here = t == instant
        share = float(here.double().mean())
        total += float(stated[here][0])
        assert abs(share - float(stated[here][0])) < 2.0 / count
        assert law != "instants" or abs(share - 1.0 / CHAIN.steps) < 2.0 / count
    assert total == pytest.approx(1.0, abs=1e-12)


def test_the_discrete_loss_is_algorithm_1() -> None:
    """Every instant alike, and the plain mean square error of the noise."""
    level, weights = Objective(CHAIN, "instants", "simple").levels(draws(1000)[1])
    assert torch.allclose(weights, weights[0].expand(1000), rtol=1e-12)
    assert sorted(set(level.t.tolist())) == CHAIN.instants[1:].tolist()


def test_weights_by_their_formulas() -> None:
    u = draws(200)[1]
    sde, edm = CosineVPSDE(), {"mean": 1.0, "std": 0.9}
    level, weights = Objective(sde, "uniform", Named(name="p2", k=2.0, gamma=0.5)).levels(u)
    expected = (2.0 + (level.alpha / level.sigma) ** 2) ** -0.5  # Choi et al. 2022, of the noise, equally in t
    assert torch.allclose(weights / weights[0], expected / expected[0], rtol=1e-9)
    law, weighting = Named(name="logsnr-normal", **edm), Named(name="edm", sigma_data=0.4, **edm)
    level, weights = Objective(sde, law, weighting).levels(u)
    s = level.sigma / level.alpha
    c_out = s * 0.4 / (s**2 + 0.4**2).sqrt()
    of_output = weights * (c_out / s) ** 2  # x0 errs by c_out times the output's error, the noise by that over s
    assert torch.allclose(of_output / of_output[0], torch.ones_like(u), rtol=1e-9)
    level, weights = Objective(sde, "velocity", "likelihood").levels(u)
    assert torch.allclose(weights * level.cos**2, torch.ones_like(u), rtol=1e-9)  # i-DODE: ||v_hat - v||^2 alone


def test_the_law_of_the_velocity_lowers_the_noise_of_maximum_likelihood() -> None:
    """The same integral; draws uniform in lambda or in t spread more."""
    x0, _, eps = draws(20_000)
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    model, spread = Scaled(VPSDE()), {}
    for law in ("velocity", "logsnr", "uniform"):
        objective = Objective(VPSDE(), law, "likelihood")
        losses = objective.loss(model, x0, u, eps) * objective.mean_weight
        spread[law] = float(losses.std()) / float(losses.mean())
    assert spread["velocity"] < 0.9 * spread["logsnr"]
    assert spread["velocity"] < 0.9 * spread["uniform"]


# ---- what is refused -------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_one_line() -> None:
    for law in ON_INSTANTS:
        with pytest.raises(ValueError, match="instants count the steps of a chain: they need a DDPM, not VPSDE"):
            Objective(VPSDE(), law)
    for objective in ("hybrid", "bound"):
        with pytest.raises(ValueError, match="they need a DDPM, not VPSDE"):
            Objective(VPSDE(), "uniform", "simple", objective)
        with pytest.raises(ValueError, match=r"time_law must be instants or important-instants, not uniform"):
            Objective(CHAIN, "uniform", "simple", objective)
        x0, u, eps = draws(8)
        with pytest.raises(ValueError, match="no learned variance"):
            Objective(CHAIN, "instants", "simple", objective).loss(Scaled(CHAIN), x0, u, eps)
    with pytest.raises(ValueError, match="unknown objective 'zz'; choose one of: denoising, hybrid, bound"):
        Objective(CHAIN, "instants", "simple", "zz")
    for wrong in ({"bound": -1.0}, {"denoising": 0.0, "bound": 0.0}, {"bound": math.nan}, {"bound": math.inf}):
        with pytest.raises(ValueError, match=r"at least 0 and not both 0|finite"):
            Objective(CHAIN, "instants", "simple", Named(name="hybrid", **wrong))
    assert [learns_variance(name) for name in OBJECTIVES] == [False, True, True]


# ---- runs ------------------------------------------------------------------------------------------------------

IMPROVED = {
    "sde.name": "ddpm-cosine", "sde.steps": "8", "model.prediction": "epsilon", "training.objective": "hybrid",
    "training.time_law": "instants", "training.weighting": "simple", "network.width": "32",
    "training.checkpoint_every": "0", "training.sample_every": "0",
}  # fmt: skip


def test_the_network_is_built_for_the_objective() -> None:
    config = Config().updated({**IMPROVED, "training.objective.bound": "0.01"})
    assert Config.of(json.loads(config.to_json())) == config
    for info in (DataInfo((2,)), DataInfo((1, 4, 4), 5)):
        model = build(config, info)
        assert model.learned_variance
        fraction = model.split(torch.zeros(3, *info.shape), 1.0).fraction
        assert fraction is not None
        assert fraction.shape == (3, *info.shape)
    with pytest.raises(ValueError, match=r"training\.objective\.bound"):
        Config().updated({**IMPROVED, "training.objective.bound": "much"})


def test_dropout_and_the_hybrid_resume_to_the_bit(tmp_path: Path) -> None:
    """Stopped without warning after the checkpoint of step 4, and gone on with; without dropout it is another run."""

    class StoppedError(Exception):
        pass

    def stop(samples: Tensor, path: Path) -> None:
        raise StoppedError

    changes = {"data.name": "moons", "training.steps": "8", "training.checkpoint_every": "4", "network.dropout": "0.3"}
    config = Config().updated({**IMPROVED, **changes})
    whole = train(config, tmp_path / "whole", progress=False)
    stopping = config.updated({"training.sample_every": "4"})
    with pytest.raises(StoppedError):
        train(stopping, tmp_path / "run", progress=False, on_sample=stop)
    again = train(config, tmp_path / "run", resume=True, progress=False)
    plain = train(config.updated({"network.dropout": "0"}), tmp_path / "plain", progress=False)
    one, two, other = (torch.nn.utils.parameters_to_vector(r.model.parameters()) for r in (whole, again, plain))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_an_improved_chain_is_sampled_and_scored(tmp_path: Path) -> None:
    """A run of the hybrid loss on normal data: its own variance bounds better than either fixed one."""
    rng, data, run = np.random.default_rng(0), tmp_path / "x.npy", str(tmp_path / "run")
    np.save(data, (0.3 * rng.standard_normal((500, 2))).astype(np.float32))
    settings = [f"--set={key}={value}" for key, value in {**IMPROVED, "data.standardise": "false"}.items()]
    arguments = ["train", "--data", str(data), "--run", run, "--steps", "300", "--device", "cpu", *settings]
    for each in (
        arguments,
        ["sample", "--run", run, "--solver", "ancestral-learned", "-n", "16", "--device", "cpu"],
        ["likelihood", str(data), "--run", run, "--elbo", "--variance", "learned", "--device", "cpu"],
    ):
        result = CliRunner().invoke(main, each)
        assert result.exit_code == 0, (each, result.output)
    model = sdediff.load(run)
    assert model.learned_variance
    x = torch.from_numpy(np.load(data))
    bounds = {
        name: float(sdediff.elbo(model, x, variance=name, seed=0).total.mean())
        for name in ("learned", "posterior", "marginal")
    }
    assert bounds["learned"] < min(bounds["posterior"], bounds["marginal"]), bounds
