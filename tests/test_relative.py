"""The default solver: exact on Gaussian data, blind to rotations, and a polynomial method where steps are short."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from catalogue import MIXTURE, PROCESSES
from sdediff import GRIDS, VPSDE, NoiseSource, ScoreModel, solve
from sdediff.analytic import Gaussian, GaussianMixture
from sdediff.gaussian import Moments
from sdediff.parametrization import PREDICTIONS, Epsilon
from sdediff.samplers import relative
from sdediff.samplers.clocks import angle_of, log_level
from sdediff.samplers.interpolation import cardinals, lagrange
from sdediff.samplers.multistep import Multistep
from sdediff.samplers.relative import Relative, memory_of_steps
from sdediff.types import Level

CORRELATED = Gaussian((0.4, -1.0, 0.2), torch.tensor([[1.0, 0.6, 0.1], [0.6, 0.5, 0.2], [0.1, 0.2, 0.3]]))
WIDE = (1.55, 1.4, 1.0, 0.5, 0.1)
SHORT = (0.50, 0.51, 0.525, 0.54, 0.56)


def starts(data: GaussianMixture, process: str, count: int = 16) -> torch.Tensor:
    sde = PROCESSES[process]
    normals = NoiseSource(5, (count, *data.shape), dtype=torch.float64).normal(0)
    return data.moments.sample(normals, sde.levels([sde.t_max])[0])


def carried(data: Gaussian, x: torch.Tensor, process: str, t_to: float) -> torch.Tensor:
    """Where the exact flow takes ``x`` on Gaussian data: along rays of the marginals, in units of their deviations."""
    sde, moments = PROCESSES[process], data.moments
    start, end = sde.levels([sde.t_max, t_to])
    spread = [(moments.variances * level.alpha**2 + level.sigma**2).sqrt() for level in (start, end)]
    centred = (x - start.alpha * moments.mean) @ moments.basis
    return centred / spread[0] * spread[1] @ moments.basis.T + end.alpha * moments.mean


@pytest.mark.parametrize("t_to", [0.0, 0.02])
@pytest.mark.parametrize("process", PROCESSES)
def test_gaussian_data_take_one_step_of_any_length(process: str, t_to: float) -> None:
    x = starts(CORRELATED, process)
    model, truth = CORRELATED.model(PROCESSES[process]), carried(CORRELATED, x, process, t_to)
    assert (solve(model, x, Relative(), steps=1, t_to=t_to).x - truth).abs().max() < 1e-11 * x.abs().max()


def test_only_with_the_right_moments() -> None:
    x = starts(CORRELATED, "vp")
    model, truth = CORRELATED.model(PROCESSES["vp"]), carried(CORRELATED, x, "vp", 0.0)
    model.moments = None
    assert (solve(model, x, Relative(), steps=1, t_to=0.0).x - truth).abs().max() > 1e-2


def test_standard_moments_change_nothing() -> None:
    """With mean 0 and covariance I the coordinates are the frame itself."""
    x, model = starts(MIXTURE, "vp"), MIXTURE.model(PROCESSES["vp"])
    ends = []
    for moments in (None, Moments(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))):
        model.moments = moments
        ends.append(solve(model, x, Relative(), steps=9, t_to=1e-3).x)
    assert (ends[0] - ends[1]).abs().max() < 1e-12


def test_commutes_with_rotations_and_shifts() -> None:
    """A solver in the data's own axes does not see the coordinates they come in; per-coordinate moments do."""
    turn, shift = (
        torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0],
        0.7,
    )
    means = torch.tensor([[1.0, 0.0, 0.3], [-0.5, 0.8, 0.0]], dtype=torch.float64)
    inner = torch.diag(torch.tensor([0.5, 0.1, 0.02], dtype=torch.float64)).expand(2, 3, 3)
    one, other = GaussianMixture(means, inner), GaussianMixture(means @ turn.T + shift, turn @ inner @ turn.T)
    sde = VPSDE()
    alpha = float(sde.alpha(1.0))
    x = starts(one, "vp")
    models = [data.model(sde) for data in (one, other)]
    ends = [
        solve(m, z, Relative(), steps=6, t_to=0.0).x
        for m, z in zip(models, (x, x @ turn.T + alpha * shift), strict=True)
    ]
    assert (ends[0] @ turn.T + shift - ends[1]).abs().max() < 1e-11
    for model in models:
        own = model.moments
        model.moments = Moments(own.mean, torch.diag(own.basis @ torch.diag(own.variances) @ own.basis.T))
    ends = [
        solve(m, z, Relative(), steps=6, t_to=0.0).x
        for m, z in zip(models, (x, x @ turn.T + alpha * shift), strict=True)
    ]
    assert (ends[0] @ turn.T + shift - ends[1]).abs().max() > 1e-4


@pytest.mark.parametrize("nodes", [WIDE, SHORT, WIDE[:1], (0.3, 0.0)])
def test_cardinal_functions_interpolate_and_reproduce_constants(nodes: tuple[float, ...]) -> None:
    known, between = np.array(nodes), np.linspace(0.0, 1.5, 7)
    assert np.abs(cardinals(known, known) - np.eye(len(known))).max() < 1e-6  # conditioned no worse than 1e10
    # a constant has a variance of 10, what else there is one of about 3 at the far end
    assert np.abs(cardinals(known, between).sum(axis=0) - 1.0).max() < 0.3


def test_the_kernel_turns_into_the_polynomial() -> None:
    """They agree on short steps, so that nothing jumps where one is left for the other, and not at all on long ones."""

    def apart(width: float) -> float:
        known, at = 0.5 + width * np.arange(3.0), np.array([0.5 - width])
        return float(np.abs(cardinals(known, at) - lagrange(known, at)).max())

    assert apart(0.005) == 0.0 < apart(0.01) < 0.01
    assert apart(0.3) > 0.5


def test_noise_in_the_network_is_not_blown_up() -> None:
    """Near pure noise the angles of the nodes all but coincide; a polynomial's weights are in the hundreds there."""

    def largest(method: Relative | Multistep) -> float:
        noisy = MIXTURE.model(PROCESSES["cosine"])
        exact, calls = noisy.forward, iter(range(100))
        x = starts(MIXTURE, "cosine")
        clean = solve(noisy, x, method, steps=15).x
        noisy.forward = lambda y, level: type(s := exact(y, level))(s.x0 + 1e-6 * (-1) ** next(calls), s.eps)
        return float((solve(noisy, x, method, steps=15).x - clean).abs().median()) / 1e-6

    assert largest(Relative()) < 10.0
    assert largest(Multistep("velocity", "angle", 5)) > 50.0


class Blind(Epsilon):
    """Epsilon, of which the solver is not told that its errors are magnified."""

    def gain(self, angle: np.ndarray) -> np.ndarray:
        return np.ones_like(angle)


@pytest.mark.parametrize("process", ["vp", "cosine", "ddpm"])
def test_errors_of_an_epsilon_network_are_integrated_as_such(process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that errs by 3 % in epsilon sends the clean half anywhere near pure noise; the flow of the network
    itself is harmless, and has to be followed on ten steps."""
    sde, exact = PROCESSES[process], MIXTURE.model(PROCESSES[process])
    wrong = torch.tensor([0.03, -0.02], dtype=torch.float64)

    def network(x: torch.Tensor, level: Level) -> torch.Tensor:
        return exact(x, level).eps + wrong * math.cos(level.half_log_snr)

    x = starts(MIXTURE, process)
    errors = []
    for prediction in (Epsilon(), Blind()):
        if isinstance(prediction, Blind):  # nor takes a share of the error for one of the noise half in any case
            monkeypatch.setattr(relative, "_NOISE_SHARE", 0.0)
        model = ScoreModel(network, sde, prediction, conditioning="level")
        truth = solve(model, x, "dopri5", rtol=1e-7, atol=1e-7, t_to=1e-2).x
        found = solve(model, x, Relative(correct_from=None), steps=10, t_to=1e-2).x
        errors.append(float((found - truth).square().mean().sqrt()))
    assert errors[0] < 0.04
    assert errors[1] > 3.0 * errors[0]


@pytest.mark.parametrize("name", PREDICTIONS)
def test_gain_is_the_share_of_the_output_in_the_velocity(name: str) -> None:
    """Found from the halves; the score's output is in units of 1 / sigma, one of the rest of 1."""
    prediction = PREDICTIONS[name]
    for level in VPSDE().levels([0.9, 0.5, 0.05]):
        (_, clean), (_, noise) = prediction.halves(level)
        share = abs(level.cos * noise - level.sin * clean) / (level.sigma if name == "score" else 1.0)
        assert float(prediction.gain(np.array([level.angle]))[0]) == pytest.approx(share, rel=1e-12)
    assert prediction.steady == (name in ("v_prediction", "flow", "reversed_flow", "edm"))


def test_log_level_and_its_inverse() -> None:
    angles = np.array([0.0, 1e-4, 0.3, 1.2, 1.57, 0.5 * np.pi])
    back, _ = angle_of(log_level(angles))
    assert np.abs(back - angles).max() < 1e-12
    h, levels = 1e-6, np.linspace(-4.0, 4.0, 9)
    difference = (angle_of(levels + h)[0] - angle_of(levels - h)[0]) / (2.0 * h)
    assert np.abs(difference - angle_of(levels)[1]).max() < 1e-8


def test_a_plain_function_has_no_moments() -> None:
    """Any callable is a denoiser; moments are looked for, not asked for."""
    sde, exact = VPSDE(), MIXTURE.model(VPSDE())
    model = ScoreModel(exact.network, sde, "v_prediction", conditioning="level")
    assert model.moments is None
    x = starts(MIXTURE, "vp")
    assert (solve(model, x, "ode", steps=40).x - solve(exact, x, "ode", steps=40).x).abs().max() < 1e-3


@pytest.mark.parametrize("memory", [1, 7])
def test_memory_is_checked(memory: int) -> None:
    with pytest.raises(ValueError, match=f"memory must be 2 to 6, not {memory}"):
        Relative(memory)


def misses(model: ScoreModel, x: torch.Tensor, truth: torch.Tensor, solver: str, steps: int) -> tuple[float, float]:
    """The median distance from the truth, and the share of samples that are further than 0.02 from it."""
    distance = (solve(model, x, solver, steps=steps, t_to=0.0).x - truth).norm(dim=1)
    return float(distance.median()), float((distance > 0.02).double().mean())


@pytest.mark.parametrize(("count", "dim"), [(20, 2), (8, 3)])
def test_concentrated_data_are_met(count: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On separate points of deviation 0.001 the default is no worse than the best of the others, but for what the last
    step to a deviation of 0.001 leaves to chance; with all values in the last steps it would be many times worse."""
    points = np.random.default_rng(5).uniform(-1.0, 1.0, (count, dim))
    model = GaussianMixture(points, 1e-6).model(VPSDE())
    x = model.sde.prior_sample((200, dim), seed=3, dtype=torch.float64)
    truth = solve(model, x, "adaptive", rtol=1e-8, atol=1e-8, t_to=0.0).x
    for steps in (10, 20, 40):
        ours = misses(model, x, truth, "ode", steps)
        others = [misses(model, x, truth, solver, steps) for solver in ("ab4", "dpm++2m", "unipc3")]
        assert ours[0] < 1.3 * min(median for median, _ in others)
        assert ours[1] <= min(share for _, share in others) + 0.01
    monkeypatch.setattr(relative, "memory_of_steps", lambda angles, memory, correct: [memory] * (len(angles) - 1))
    relative._relative_updates.cache_clear()
    assert misses(model, x, truth, "ode", 20)[0] > 5.0 * misses(model, x, truth, "dpm++2m", 20)[0]
    relative._relative_updates.cache_clear()


def test_the_last_steps_to_the_data_use_few_values_where_few_will_do() -> None:
    """Not on the way up, nor where a solve ends in noise; the more steps, the smaller what may be left."""
    levels = VPSDE().levels(GRIDS["reference"](VPSDE(), 20, 1.0, 0.0))
    angles = [level.angle for level in levels]
    assert memory_of_steps(angles, 5, False) == [5] * 19 + [1]
    assert memory_of_steps(angles[::-1], 5, False) == [5] * 20
    assert memory_of_steps(angles[:15], 5, False) == [5] * 14
    found = {
        steps: memory_of_steps([level.angle for level in VPSDE().levels(times)], 4, True)
        for steps, times in ((n, GRIDS["reference"](VPSDE(), n, 1.0, 0.0)) for n in (40, 640))
    }
    assert found[40][:34] == [4] * 34
    assert found[40][-1] == 2
    assert found[640][-1] == 3


def test_the_order_holds_down_to_the_data() -> None:
    """Few values in the last steps leave errors that fall as fast as the others."""
    model, x = MIXTURE.model(PROCESSES["flow"]), starts(MIXTURE, "flow")
    truth = solve(model, x, "ode", steps=1200, t_to=0.0).x
    errors = [float((solve(model, x, "ode", steps=n, t_to=0.0).x - truth).square().mean().sqrt()) for n in (160, 640)]
    assert math.log(errors[0] / errors[1]) / math.log(4.0) > 4.7
