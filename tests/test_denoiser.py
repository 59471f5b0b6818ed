"""Predictions, models and wrappers: every one splits a state exactly, and perfect outputs give the truth back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdediff
from catalogue import MIXTURE, PROCESSES
from sdediff import DDPM, GRIDS, PREDICTIONS, SDE, VPSDE, Clip, Level, ScoreModel, Split, Threshold
from sdediff.conditioning import ByEDM
from sdediff.parametrization import EDM
from sdediff.samplers.ancestral import Ancestral
from sdediff.wrappers import Wrapper

TIMES = (1e-5, 0.01, 0.4, 0.95)


def known_pair(shape: tuple[int, ...] = (3, 2)) -> Split:
    rng = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, *shape, generator=rng, dtype=torch.float64)
    return Split(x0, eps)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_perfect_output_gives_the_pair_back(name: str, sde: SDE) -> None:
    """To rounding divided by the coefficient that a half was recovered through."""
    clean, prediction = known_pair(), PREDICTIONS[name]
    for t in TIMES:
        level = sde.levels([t])[0]
        x = level.alpha * clean.x0 + level.sigma * clean.eps
        split = prediction.split(prediction.target(clean, level), x, level)
        bound = 1e-14 * max(level.scale, 1.0)
        torch.testing.assert_close(split.x0, clean.x0, rtol=0.0, atol=bound / min(level.alpha, 1.0))
        torch.testing.assert_close(split.eps, clean.eps, rtol=0.0, atol=bound / min(level.sigma, 1.0))


@pytest.mark.parametrize("name", PREDICTIONS)
def test_any_output_splits_the_state_exactly(name: str, sde: SDE) -> None:
    """``alpha x0 + sigma eps == x`` whatever the network says, with a time for each sample."""
    x, output = known_pair((4, 1, 2))
    level = sde.level(torch.tensor(TIMES, dtype=torch.float64))
    split = PREDICTIONS[name].split(output, x, level)
    alpha, sigma = (torch.as_tensor(v).reshape(4, 1, 1) for v in (level.alpha, level.sigma))
    torch.testing.assert_close(alpha * split.x0 + sigma * split.eps, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_sign_error_is_caught(name: str) -> None:
    """The control: the negative of a perfect output gives another pair."""
    clean, prediction, level = known_pair(), PREDICTIONS[name], VPSDE().levels([0.4])[0]
    x = level.alpha * clean.x0 + level.sigma * clean.eps
    split = prediction.split(-prediction.target(clean, level), x, level)
    assert float((split.x0 - clean.x0).abs().max()) > 0.1


@pytest.mark.parametrize("name", PREDICTIONS)
def test_all_predictions_make_the_same_model(name: str, sde: SDE) -> None:
    """A network that predicts exactly, in any parametrisation, is the exact denoiser."""
    exact, prediction = MIXTURE.model(sde), PREDICTIONS[name]
    model = ScoreModel(
        lambda x, level: prediction.target(exact(x, level), level), sde, prediction=name, conditioning="level"
    )
    x = known_pair((3, 2)).x0
    for t in (0.01, 0.4, 0.95):
        tolerance = 1e-13 / min(float(sde.alpha(t)), float(sde.sigma(t)), 1.0) ** 2
        for ours, truth in (
            (model.denoise(x, t), exact.denoise(x, t)),
            (model.epsilon(x, t), exact.epsilon(x, t)),
        ):
            torch.testing.assert_close(ours, truth, rtol=0.0, atol=tolerance)
        score = -exact.epsilon(x, t) / sde.sigma(t)
        torch.testing.assert_close(model.score(x, t), score, rtol=1e-10, atol=tolerance / float(sde.sigma(t)))


@pytest.mark.parametrize("t", [0.25, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)])
def test_what_the_network_is_asked(t: float | Tensor, sde: SDE) -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, condition: Tensor) -> Tensor:
        asked.append((x, condition))
        return torch.zeros_like(x)

    x = known_pair((3, 2)).x0
    ScoreModel(network, sde).epsilon(x, t)
    ScoreModel(network, sde, conditioning="logsnr").epsilon(x, t)
    times = torch.as_tensor(t, dtype=torch.float64).expand(3)
    (plain, by_time), (framed, by_log_snr) = asked
    assert torch.equal(plain, x)
    assert torch.equal(by_time, times)
    torch.testing.assert_close(by_log_snr, sde.half_log_snr(times), rtol=1e-15, atol=0.0)
    scale = torch.hypot(sde.alpha(times), sde.sigma(times))
    torch.testing.assert_close(framed, x / scale[:, None], rtol=1e-14, atol=0.0)


def test_state_and_network_keep_their_dtypes() -> None:
    seen: list[torch.dtype] = []

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.float32))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.extend((x.dtype, t.dtype))
            return self.weight * x

    split = ScoreModel(Network(), VPSDE())(known_pair().x0, VPSDE().levels([0.5])[0])
    assert seen == [torch.float32, torch.float32]
    assert {split.x0.dtype, split.eps.dtype} == {torch.float64}


@pytest.mark.parametrize("what", ["network", "model"])
def test_torch_compiles_networks_and_models(what: str) -> None:
    """``compile()`` of either gives the same samples, and compiles once or twice, not once a level."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    class Bend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.5, -1.0], [1.0, 0.3]], dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x @ self.weight) * t[:, None]

    model = ScoreModel(Bend(), VPSDE())
    x = known_pair().x0
    plain = sdediff.solve(model, x, steps=10).x
    assert isinstance(model.network, nn.Module)
    (model.network if what == "network" else model).compile(backend=backend)
    torch.testing.assert_close(sdediff.solve(model, x, steps=10).x, plain, rtol=1e-12, atol=1e-12)
    assert 1 <= len(graphs) <= 2


def test_wrong_outputs_and_names_are_refused() -> None:
    model = ScoreModel(lambda x, t: x[:, :1], VPSDE())
    with pytest.raises(ValueError, match=r"returned \(3, 1\) for a state \(3, 2\)"):
        model.denoise(torch.zeros(3, 2), 0.5)
    with pytest.raises(ValueError, match="unknown prediction 'noise'; choose one of: epsilon"):
        ScoreModel(lambda x, t: x, VPSDE(), prediction="noise")
    with pytest.raises(ValueError, match="unknown conditioning"):
        ScoreModel(lambda x, t: x, VPSDE(), conditioning="beta")
    with pytest.raises(ValueError, match=r"must have shape \(\) or \(3,\)"):
        MIXTURE.model(VPSDE()).denoise(torch.zeros(3, 2), torch.full((2,), 0.5, dtype=torch.float64))


def wrapped(sde: SDE) -> tuple[Wrapper, ...]:
    exact = MIXTURE.model(sde)
    return Clip(exact, -0.5, 0.25), Threshold(exact, 0.5), Clip(Threshold(exact, 0.9), -0.1, 0.1)


@pytest.mark.parametrize("process", PROCESSES)
def test_wrappers_keep_the_state(process: str) -> None:
    """Whatever they make of the clean half, the two halves are still those of the state."""
    sde = PROCESSES[process]
    x = 2.0 * known_pair((6, 2)).x0
    for wrapper in wrapped(sde):
        assert wrapper.sde is sde
        assert wrapper.moments is not None
        for t in (0.01, 0.5, 0.9):
            level = sde.levels([t])[0]
            split = wrapper(x, level)
            torch.testing.assert_close(level.alpha * split.x0 + level.sigma * split.eps, x, rtol=1e-12, atol=1e-12)


def test_clip_is_the_clamped_denoiser() -> None:
    exact, x = MIXTURE.model(VPSDE()), 3.0 * known_pair((6, 2)).x0
    clean = exact.denoise(x, 0.3)
    assert float(clean.abs().max()) > 0.5
    torch.testing.assert_close(Clip(exact, -0.5, 0.25).denoise(x, 0.3), clean.clamp(-0.5, 0.25))


def test_threshold_is_per_sample() -> None:
    """A sample within [-1, 1] is left alone; one beyond is divided by its own quantile, not by the batch's."""

    class Given(nn.Module):
        def forward(self, x: Tensor, level: Level) -> Tensor:
            return torch.tensor([[0.5, -0.9, 0.1, 0.0], [4.0, -2.0, 1.0, 0.0]], dtype=torch.float64)

    model = ScoreModel(Given(), VPSDE(), prediction="sample", conditioning="level")
    x = torch.zeros(2, 4, dtype=torch.float64)
    truth = torch.tensor([[0.5, -0.9, 0.1, 0.0], [1.0, -0.5, 0.25, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(Threshold(model, 1.0).denoise(x, 0.5), truth)
    half = torch.tensor([[0.5, -0.9, 0.1, 0.0], [1.0, -1.0, 1.0 / 1.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(Threshold(model, 0.5).denoise(x, 0.5), half)


def test_impossible_wrappers_are_refused() -> None:
    exact = MIXTURE.model(VPSDE())
    with pytest.raises(ValueError, match="low < high"):
        Clip(exact, 1.0, -1.0)
    with pytest.raises(ValueError, match="quantile"):
        Threshold(exact, 0.0)


@pytest.mark.parametrize("t", [0.0, torch.tensor([0.5, 0.0])])
def test_the_score_without_noise_is_refused(t: float | Tensor) -> None:
    with pytest.raises(ValueError, match="no value at t = 0; ask from t_min = 1e-05 up"):
        MIXTURE.model(VPSDE()).score(known_pair((2, 2)).x0, t)


def integers_alone(
    steps: int, conditioning: str = "interpolated", **options: Any
) -> tuple[ScoreModel, ScoreModel, list[Tensor]]:
    """The exact denoiser of a chain, one that knows integer timesteps alone, and the labels that it was asked for."""
    exact, asked = MIXTURE.model(DDPM.linear(steps)), []

    def network(x: Tensor, label: Tensor) -> Tensor:
        assert label.dtype == torch.int64
        asked.append(label)
        return exact.epsilon(x, (label + 1).double() / steps)

    return exact, ScoreModel(network, exact.sde, conditioning=conditioning, **options), asked


def between(steps: int, conditioning: str = "interpolated") -> float:
    """The largest error of the noise half in the middle of the steps of a chain, from a fifth of it to its end."""
    exact, model, _ = integers_alone(steps, conditioning)
    middles = (torch.arange(steps // 5, steps, dtype=torch.float64) + 0.5) / steps
    x, times = known_pair((6, 2)).x0.repeat(len(middles), 1), middles.repeat_interleave(6)
    return float((model.epsilon(x, times) - exact.epsilon(x, times)).abs().max())


def test_integers_are_exact_at_instants_and_of_second_order_between() -> None:
    exact, model, asked = integers_alone(20)
    x = known_pair((6, 2)).x0
    for i in (1, 7, 20):
        split, truth = model.split(x, i / 20), exact.split(x, i / 20)
        torch.testing.assert_close(split.eps, truth.eps, rtol=0.0, atol=1e-13)
        assert asked[-1].unique().tolist() == [i - 1]
    errors = [between(steps) for steps in (80, 160)]
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert errors[0] < 1e-2


def test_between_instants_the_field_is_continuous() -> None:
    """Across every instant, and below the first, where the noise half is held; the state is split exactly."""
    exact, model, _ = integers_alone(10)
    sde, x = exact.sde, known_pair((6, 2)).x0
    for i in range(1, 10):
        low, here, high = (model.epsilon(x, i / 10 + shift) for shift in (-1e-8, 0.0, 1e-8))
        torch.testing.assert_close(low, here, rtol=0.0, atol=1e-5)
        torch.testing.assert_close(high, here, rtol=0.0, atol=1e-5)
    for t in (0.03, 0.34, 0.77):
        level, split = sde.levels([t])[0], model.split(x, t)
        torch.testing.assert_close(level.alpha * split.x0 + level.sigma * split.eps, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.epsilon(x, 0.03), exact.epsilon(x, 0.1), rtol=1e-12, atol=1e-12)


def test_forwards_of_integers_are_counted() -> None:
    """One at an instant or below the first, two between; a time for each sample gives what each alone gives."""
    _, model, asked = integers_alone(10)
    x = known_pair((4, 2)).x0
    times = torch.tensor([0.03, 0.3, 0.34, 0.77], dtype=torch.float64)
    for t, forwards in ((0.3, 1), (0.03, 1), (0.34, 2), (times[:2], 2), (times[1:2], 1)):
        level, before = model.sde.level(t), len(asked)
        model(x[: len(torch.as_tensor(t).reshape(-1))], level)
        assert model.nfe(level) == len(asked) - before == forwards
    alone = torch.cat([model.epsilon(x[i : i + 1], float(t)) for i, t in enumerate(times)])
    torch.testing.assert_close(model.epsilon(x, times), alone, rtol=1e-13, atol=1e-13)
    solution = sdediff.solve(model, x, "ddim", grid=[1.0, 0.75, 0.5, 0.05, 0.0])
    assert solution.nfe == 1 + 2 + 1 + 1
    assert sdediff.solve(Clip(model), x, "ddim", grid=[1.0, 0.75, 0.5, 0.05, 0.0]).nfe == 5


def test_networks_of_instants_alone_say_so() -> None:
    exact, model, _ = integers_alone(10, "instants")
    x = known_pair((4, 2)).x0
    torch.testing.assert_close(model.epsilon(x, 0.3), exact.epsilon(x, 0.3), rtol=1e-13, atol=1e-13)
    with pytest.raises(ValueError, match=r"knows the 10 instants of its chain alone, not t = 0\.34"):
        model.epsilon(x, 0.34)
    with pytest.raises(ValueError, match="labels and instants count the steps of a chain: they need a DDPM, not VPSDE"):
        ScoreModel(lambda x, t: x, VPSDE(), conditioning="label")


def test_grids_go_to_the_instants_of_such_networks() -> None:
    """One forward a node, and still in order where nodes are closer than instants; the ends are where they were."""
    _, model, _ = integers_alone(1000)
    x = known_pair((4, 2)).x0
    for denoiser in (model, Clip(model)):
        solution = sdediff.solve(denoiser, x, "ode", grid="reference", steps=20, t_to=0.0)
        assert solution.nfe == 20
        places = solution.times * 1000
        inside = places[places > 1.0]
        torch.testing.assert_close(inside, inside.round(), rtol=0.0, atol=1e-9)
        assert len(inside) >= 18
        free = GRIDS["reference"](model.sde, 20, 1.0, 0.0)
        assert float((solution.times - free).abs().max()) <= 0.5 / 1000 + 1e-12
    dense = model.snap(torch.linspace(1.0, 1e-5, 1501, dtype=torch.float64))
    assert bool((dense.diff() < 0.0).all())
    assert (float(dense[0]), float(dense[-1])) == (1.0, 1e-5)
    _, strict, _ = integers_alone(1000, "instants")  # which would refuse any other time
    assert torch.equal(sdediff.solve(Clip(strict), x, "ode", grid="reference", steps=20, t_to=0.0).x, solution.x)


@pytest.mark.parametrize("t", [0.3, torch.tensor([0.1, 0.34, 1.0], dtype=torch.float64)])
def test_labels_are_real_numbers(t: float | Tensor) -> None:
    """``t N - 1``, whole at instants to the last bit, although 3 / 1000 * 1000 is not 3."""
    asked: list[Tensor] = []

    def network(x: Tensor, label: Tensor) -> Tensor:
        asked.append(label)
        return x

    for steps in (10, 1000):
        ScoreModel(network, DDPM.linear(steps), conditioning="label").epsilon(known_pair((3, 2)).x0, t)
        truth = (torch.as_tensor(t, dtype=torch.float64) * steps - 1.0).expand(3)
        torch.testing.assert_close(asked[-1], truth, rtol=1e-14, atol=1e-12)
    below = torch.tensor([0.0, 0.05, 0.1], dtype=torch.float64)  # nothing below label 0 was trained: its noise is held
    x = known_pair((3, 2)).x0
    held = ScoreModel(network, DDPM.linear(10), conditioning="label").epsilon(x, below)
    assert torch.equal(asked[-1], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(held, x)
    instants = torch.arange(1, 1001, dtype=torch.float64) / 1000
    ScoreModel(network, DDPM.linear(1000), conditioning="label").epsilon(known_pair((1000, 2)).x0, instants)
    assert torch.equal(asked[-1], torch.arange(1000, dtype=torch.float64))


def test_between_instants_the_learned_variance_is_a_mean_of_both() -> None:
    """In proportion to the half log-SNR, as the velocity is: nearer to an instant, nearer to its own."""

    def network(x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), (2.0 * label.double() / 99 - 1.0)[:, None].expand_as(x)], dim=1)

    chain, x = DDPM.linear(100), known_pair((3, 2)).x0
    model = ScoreModel(network, chain, conditioning="interpolated", learned_variance=True)
    below, above = (float(chain.half_log_snr(i / 100)) for i in (40, 41))
    for t in (0.401, 0.405, 0.409):
        share = (below - float(chain.half_log_snr(t))) / (below - above)
        fraction = model.split(x, t).fraction
        assert fraction is not None
        torch.testing.assert_close(fraction, torch.full_like(x, (39 + share) / 99), rtol=1e-9, atol=0.0)
    for conditioning in ("interpolated", "instants", "label"):  # below the first instant it is that of the first
        model = ScoreModel(network, chain, conditioning=conditioning, learned_variance=True)
        fraction = model.split(x, 0.004).fraction
        assert fraction is not None
        assert torch.equal(fraction, torch.zeros_like(x))


def test_learned_variance_is_the_second_half_of_the_channels() -> None:
    """From the network to the sampler: the log of a step's noise between its own bounds, however long the step."""
    shape, v = (3, 2, 2), torch.tensor([-1.0, 0.4]).reshape(2, 1)

    def network(x: Tensor, _t: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), v.to(x).expand_as(x)], dim=1)

    sde = DDPM.linear(100)
    model = ScoreModel(network, sde, learned_variance=True)
    x = known_pair(shape).x0
    fraction = model.split(x, 0.5).fraction
    assert fraction is not None
    torch.testing.assert_close(fraction, ((v.double() + 1.0) / 2.0).expand_as(x))
    assert torch.equal(Clip(model).split(x, 0.5).fraction, fraction)  # type: ignore[arg-type]
    ends = [
        sdediff.solve(model, x, Ancestral(variance), grid=[0.5, 0.2]).x
        for variance in ("posterior", "learned", "marginal")
    ]
    mean = sdediff.solve(model, x, "ddim", grid=[0.5, 0.2]).x  # eps = 0: the mean does not see the variance
    low, own, high = ((end - mean).abs().log() for end in ends)
    torch.testing.assert_close(own, low + ((v.double() + 1.0) / 2.0) * (high - low), rtol=1e-9, atol=1e-9)
    assert float((high - low).abs().min()) > 0.1
    with pytest.raises(ValueError, match=r"returned \(3, 2, 2\) for a state \(3, 2, 2\) and its learned variance"):
        ScoreModel(lambda x, t: x, sde, learned_variance=True).epsilon(x, 0.5)
    plain = ScoreModel(lambda x, t: x, sde)
    assert plain.split(x, 0.5).fraction is None
    with pytest.raises(ValueError, match="the model has no learned variance; choose one of: posterior, marginal"):
        sdediff.solve(plain, x, Ancestral("learned"), steps=2)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("t", [0.02, 0.4, 0.97])
def test_edm_is_table_1_of_karras(sde: SDE, sigma_data: float, t: float) -> None:
    """``D = c_skip x + c_out F(c_in x; c_noise)`` for the noise ``s`` of ``x / alpha``, as published."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def network(x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        seen.append((x, told))
        return torch.sin(3.0 * x) + told[:, None]

    model = ScoreModel(network, sde, EDM(sigma_data), conditioning=ByEDM(sigma_data))
    x_t = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, s = x_t / sde.alpha(t), sde.sigma(t) / sde.alpha(t)
    root = (s**2 + sigma_data**2).sqrt()
    told = 0.25 * s.log().expand(5)
    output = torch.sin(3.0 * (x / root)) + told[:, None]
    denoised = sigma_data**2 / root**2 * x + s * sigma_data / root * output
    split = model.split(x_t, t)
    # the network gets its inputs in float32, its dtype; the output is of order one
    torch.testing.assert_close(split.x0, denoised, rtol=1e-5, atol=1e-5 * float(x.abs().max()))
    torch.testing.assert_close(seen[0][0].double(), x / root, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen[0][1].double(), told, rtol=1e-6, atol=1e-6)


def test_the_target_of_edm_has_variance_one_at_every_level() -> None:
    """For data of deviation ``sigma_data``; false-alarm probability 1e-6 a level. With another one it has not."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 100_000, 1, generator=generator, dtype=torch.float64)
    for level in VPSDE().levels([1e-4, 0.1, 0.3, 0.6, 1.0]):
        target = EDM(0.5).target(Split(0.5 * x0, eps), level)
        assert abs(float(target.square().mean()) - 1.0) < 5.0 * (2.0 / 100_000) ** 0.5
    wrong = EDM(0.5).target(Split(x0, eps), VPSDE().levels([1.0])[0])  # all noise, where x0 is the target: too large
    assert float(wrong.square().mean()) > 3.0


def test_sigma_data_is_a_deviation() -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        for kind in (EDM, ByEDM):
            with pytest.raises(ValueError, match="sigma_data is the standard deviation of the data"):
                kind(wrong)
