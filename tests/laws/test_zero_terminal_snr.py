"""Chains without signal at their end: the published rescaling, and solves from and to the singular end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sdediff
from catalogue import MIXTURE
from sdediff import DDPM, PREDICTIONS, SAMPLERS, NoiseSource, RectifiedFlow, ScoreModel
from sdediff.types import Level

CHAIN = DDPM.linear(1000).zero_terminal_snr()
EXACT = MIXTURE.model(CHAIN)
START = NoiseSource(4, (16, 2), dtype=torch.float64).normal(NoiseSource.START)


def published(betas: Tensor) -> Tensor:
    """Lin et al. (2024), algorithm 1."""
    roots = (1.0 - betas).cumprod(0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    bar = ((roots - last) * first / (first - last)) ** 2
    return 1.0 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


@pytest.mark.parametrize(
    "chain", [DDPM.linear(1000), DDPM.cosine(300), DDPM([0.1, 0.2])], ids=["linear", "cosine", "2"]
)
def test_betas_are_those_of_the_paper(chain: DDPM) -> None:
    theirs = published(torch.tensor(chain.betas, dtype=torch.float64))
    ours = torch.tensor(chain.zero_terminal_snr().betas, dtype=torch.float64)
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-9, atol=1e-12)
    assert float(theirs[-1]) == 1.0
    assert chain.zero_terminal_snr() == DDPM(torch.cat([ours[:-1], torch.ones(1)]))
    assert float(chain.zero_terminal_snr().alpha(1.0)) == pytest.approx(1e-7, rel=1e-3)
    assert float(chain.alpha(1.0)) > 1e-5  # the control


def test_a_chain_of_one_step_has_no_end() -> None:
    with pytest.raises(ValueError, match="a chain of 1 step cannot keep its first alpha and end at 0"):
        DDPM([0.5]).zero_terminal_snr()


def network_of(prediction: str, dtype: torch.dtype = torch.float32) -> ScoreModel:
    """The exact denoiser as a network, of single precision."""
    kind = PREDICTIONS[prediction]

    def network(x: Tensor, level: Level) -> Tensor:
        return kind.target(EXACT(x.double(), level), level).to(dtype)

    return ScoreModel(network, CHAIN, prediction, conditioning="level", moments=EXACT.moments)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_singular_end_costs_no_digits(name: str, prediction: str) -> None:
    """Started where alpha is 1e-7, a network in float32 gives the samples of float64 to its rounding, draw by draw."""
    steps = {} if SAMPLERS[name].adaptive else {"steps": 40}
    found = sdediff.solve(network_of(prediction), START, name, t_to=0.0, **steps).x
    wanted = sdediff.solve(network_of(prediction, torch.float64), START, name, t_to=0.0, **steps).x
    assert float((found - wanted).abs().max()) < 1e-3 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_solves_from_the_singular_end_converge(prediction: str) -> None:
    truth = sdediff.solve(EXACT, START, "dopri5", rtol=1e-10, atol=1e-10, t_to=0.0).x
    model = network_of(prediction)
    for name in ("ode", "ddim", "dpm++2m", "unipc3", "heun"):
        few, many = (
            float((sdediff.solve(model, START.float(), name, t_to=0.0, steps=n).x - truth).square().mean().sqrt())
            for n in (15, 60)
        )
        assert many < 0.4 * few, name
    z = sdediff.encode(model, MIXTURE.sample(8, seed=1).float())
    assert float((sdediff.decode(model, z) - MIXTURE.sample(8, seed=1)).abs().max()) < 1e-3
    x = MIXTURE.sample(8, seed=1)
    found = sdediff.log_likelihood(model, x.float(), rtol=1e-6).log_prob
    torch.testing.assert_close(
        found, MIXTURE.log_prob(x, CHAIN, 1e-3) + 2.0 * CHAIN.log_alpha(1e-3), rtol=0.0, atol=1e-2
    )


VERBS: dict[str, Callable[[ScoreModel], object]] = {
    "sample": lambda m: sdediff.sample(m, (2, 2)),
    "solve": lambda m: sdediff.solve(m, START, "ddim", steps=5),
    "adaptive": lambda m: sdediff.solve(m, START, "dopri5"),
    "clipped": lambda m: sdediff.sample(sdediff.Clip(m), (2, 2), "ancestral"),
    "encode": lambda m: sdediff.encode(m, START),
    "log_likelihood": lambda m: sdediff.log_likelihood(m, START),
    "return_log_prob": lambda m: sdediff.sample(m, (2, 2), return_log_prob=True),
    "a flow's end": lambda m: sdediff.solve(
        ScoreModel(m.network, RectifiedFlow(), m.prediction), START, "ddim", t_from=1.0, steps=5
    ),
}


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
@pytest.mark.parametrize("verb", VERBS)
def test_what_says_nothing_there_is_refused(verb: str, prediction: str) -> None:
    model = ScoreModel(lambda x, t: x, CHAIN, prediction)
    words = rf"no signal is left at t = 1 \(alpha / sigma = .*\), where a network of {prediction} says nothing"
    with pytest.raises(ValueError, match=words) as caught:
        VERBS[verb](model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
def test_it_is_not_refused_below(prediction: str) -> None:
    """Nor at the end of chains whose signal is small but there."""
    model = network_of(prediction)
    below = sdediff.solve(model, START.float(), t_from=0.999, t_to=0.0, steps=20).x
    wanted = sdediff.solve(EXACT, START, t_from=0.999, t_to=0.0, steps=20).x
    assert float((below - wanted).square().mean().sqrt()) < 0.05
    sdediff.log_likelihood(model, START[:2].float(), t_to=0.999, steps=3)
    for chain in (DDPM.cosine(1000), DDPM.linear(10), DDPM([0.9, 0.99])):
        assert chain.t_signal == 1.0
        sdediff.sample(ScoreModel(lambda x, t: 0.0 * x, chain, prediction), (2, 2), "ddim", steps=2)
