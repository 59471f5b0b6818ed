"""What holds for every sampler of the table on every process, apart from its order."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sdediff
from catalogue import GAUSSIAN, MIXTURE, PROCESSES
from sdediff import DDPM, GRIDS, SAMPLERS, SDE, Level, NoiseSource, ScoreModel, Solution
from sdediff.integrators import torchdiffeq, torchsde
from sdediff.samplers import ADAPTIVE, Sampler
from sdediff.samplers.ancestral import Ancestral
from sdediff.samplers.ddim import DDIM
from sdediff.samplers.euler_maruyama import EulerMaruyama
from sdediff.samplers.external import AdaptiveODE, FixedODE, ReverseSDE
from sdediff.samplers.multistep import Multistep
from sdediff.samplers.predictor_corrector import PredictorCorrector

FIXED = {name: sampler for name, sampler in SAMPLERS.items() if not sampler.adaptive}
LOCKSTEP = ("dopri5",)
STOCHASTIC = {name: sampler for name, sampler in FIXED.items() if sampler.stochastic}


class Watched(ScoreModel):
    """An exact model that remembers what it was asked."""

    def __init__(self, sde: SDE, dtype: torch.dtype = torch.float64) -> None:
        exact = MIXTURE.model(sde)
        super().__init__(self._answer, sde, prediction="v_prediction", conditioning="level", moments=exact.moments)
        self.exact, self.levels = exact, list[Level]()

    def _answer(self, x: Tensor, level: Level) -> Tensor:
        self.levels.append(level)
        return self.exact.network(x, level)


def run(
    sampler: Sampler,
    model: ScoreModel,
    steps: int,
    *,
    t_to: float = 0.0,
    count: int = 4,
    first: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    path: bool = False,
) -> Solution:
    """A solve on the sampler's own grid, from the prior."""
    noise = NoiseSource(seed, (count, 2), first=first, dtype=dtype)
    x = model.sde.prior_sample((count, 2), moments=model.moments, noise=noise)
    times = GRIDS[sampler.grid](model.sde, steps, model.sde.t_max, t_to)
    return sampler.sample(model, model.sde, x, times, noise, path=path)


def test_the_defaults_of_their_kinds_are_there() -> None:
    assert {"ode", "sde", "ancestral", *ADAPTIVE.values()} <= set(SAMPLERS)
    assert not SAMPLERS["ode"].stochastic
    assert SAMPLERS["sde"].stochastic
    assert SAMPLERS["ancestral"].stochastic
    assert all(sampler.grid in GRIDS for sampler in SAMPLERS.values())


@pytest.mark.parametrize("name", FIXED)
def test_few_steps_and_the_count_of_forwards(name: str, sde: SDE) -> None:
    """Few steps work down to the data and short of them; ``nfe`` is what the network was asked, and what is declared.
    One step of a method that does not land on the data is the posterior mean."""
    sampler = FIXED[name]
    for steps, t_to in product((1, 2, 3, 7), (0.0, 1e-3)):
        model = Watched(sde)
        solution = run(sampler, model, steps, t_to=t_to)
        assert solution.nfe == len(model.levels)
        assert solution.nfe == sampler.nfe(steps, clean=t_to == 0.0)
        if steps == 1 and t_to == 0.0 and not sampler.ends_clean:  # type: ignore[attr-defined]
            x = sde.prior_sample((4, 2), moments=model.moments, dtype=torch.float64)
            torch.testing.assert_close(solution.x, MIXTURE.model(sde).denoise(x, sde.t_max), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", torchsde.SDE_METHODS)
def test_torchsde_methods_cost_and_order(method: str) -> None:
    sampler = ReverseSDE(method)
    assert run(sampler, MIXTURE.model(PROCESSES["vp"]), 3).nfe == sampler.nfe(3)
    assert sampler.order == torchsde.SDE_METHODS[method]


@pytest.mark.parametrize("method", torchdiffeq.FIXED_METHODS)
def test_torchdiffeq_methods_cost_and_order(method: str) -> None:
    sampler = FixedODE(method)
    assert run(sampler, MIXTURE.model(PROCESSES["vp"]), 3).nfe == sampler.nfe(3)
    assert sampler.order == torchdiffeq.FIXED_METHODS[method]


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_question_outside_the_interval(name: str, sde: SDE) -> None:
    """Levels that the network sees lie between the ends, and never at the data, where nothing is left to predict."""
    for t_to in (0.0, 1e-3):
        model = Watched(sde)
        run(SAMPLERS[name], model, 5, t_to=t_to)
        times = torch.cat([torch.as_tensor(level.t, dtype=torch.float64).reshape(-1) for level in model.levels])
        low = max(t_to, sde.t_min if SAMPLERS[name].grid != "chain" else 0.0)
        assert bool((times <= sde.t_max * (1.0 + 1e-9)).all())
        assert bool((times >= low * (1.0 - 1e-9)).all())
        assert bool((times > 0.0).all())


def test_adaptive_methods_count_their_forwards(sde: SDE) -> None:
    for name, sampler in SAMPLERS.items():
        if sampler.adaptive:
            model = Watched(sde)
            assert run(sampler, model, 1).nfe == len(model.levels), name
            assert sampler.nfe(1) is None, name


def test_adaptive_methods_end_with_one_denoising_forward(sde: SDE) -> None:
    for name, sampler in SAMPLERS.items():
        if sampler.adaptive:
            model = MIXTURE.model(sde)
            near, data = (run(sampler, model, 1, t_to=t_to) for t_to in (sde.t_min, 0.0))
            assert data.nfe == near.nfe + 1, name
            torch.testing.assert_close(data.x, model.denoise(near.x, sde.t_min), rtol=1e-12, atol=1e-12, msg=name)
            assert not torch.equal(data.x, near.x), name


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_k_of_a_batch_is_sample_k_alone(name: str, global_generators_untouched: None) -> None:
    """Equal to rounding (matrix products differ in the last place with the batch); what takes one adaptive step for the
    whole batch, to the tolerance only."""
    sampler, model = SAMPLERS[name], MIXTURE.model(PROCESSES["vp"])
    tolerance = 1e-3 if name in LOCKSTEP else 1e-12
    batch = run(sampler, model, 6, count=64, seed=3).x
    for k in (0, 17, 63):
        alone = run(sampler, model, 6, count=1, first=k, seed=3).x
        torch.testing.assert_close(alone[0], batch[k], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_other_seeds_give_other_samples(name: str) -> None:
    model, sampler = MIXTURE.model(PROCESSES["vp"]), STOCHASTIC[name]
    x = torch.zeros(4, 2, dtype=torch.float64)
    times = GRIDS[sampler.grid](model.sde, 6, 1.0, 0.0)
    ends = [sampler.sample(model, model.sde, x, times, NoiseSource(s, (4, 2), dtype=torch.float64)).x for s in (0, 1)]
    assert float((ends[0] - ends[1]).abs().min()) > 0.0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    solution = run(SAMPLERS[name], MIXTURE.model(PROCESSES["ve"]), 4, dtype=dtype, path=True)
    assert solution.path is not None
    assert {solution.x.dtype, solution.path.dtype} == {dtype}
    assert solution.times.dtype == torch.float64


@pytest.mark.parametrize("name", FIXED)
def test_single_precision_follows_double(name: str, sde: SDE) -> None:
    """On the same start and noise; 1e-3 is 8,000 roundings of float32, of states of up to 100 that cancel. A form in
    x / alpha magnifies those of the start by 1 / cos, 20,000 on the cosine chain: a rounding in each of four terms."""

    class Single(NoiseSource):
        def normal(self, step: int, stage: int = 0) -> Tensor:
            return super().normal(step, stage).to(self.out)

    ends = []
    for out in (torch.float32, torch.float64):
        noise = Single(0, (8, 2))
        noise.out = out  # type: ignore[attr-defined]
        model = GAUSSIAN.model(sde)
        x = sde.prior_sample((8, 2), moments=model.moments, noise=noise)
        times = GRIDS[FIXED[name].grid](sde, 8, sde.t_max, 0.0)
        ends.append(FIXED[name].sample(model, sde, x, times, noise).x.double())
    tolerance = max(1e-3, 4.0 * torch.finfo(torch.float32).eps / sde.levels([sde.t_max])[0].cos)
    torch.testing.assert_close(*ends, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_no_noise_at_the_last_step(name: str, sde: SDE) -> None:
    """The last step to the data denoises: two noise sources that differ there alone give one result, and with fixed
    noise elsewhere it is the clean half of the last state (where the data's own Gaussian is not known)."""
    sampler, steps = STOCHASTIC[name], 4

    class Tampered(NoiseSource):
        def normal(self, step: int, stage: int = 0) -> Tensor:
            return super().normal(step, stage) + (100.0 if step == self.step else 0.0)

    model = MIXTURE.model(sde)
    x = sde.prior_sample((3, 2), moments=model.moments, dtype=torch.float64)
    times = GRIDS[sampler.grid](sde, steps, sde.t_max, 0.0)
    model.moments = None

    def end(step: int) -> Solution:
        noise = Tampered(0, (3, 2), dtype=torch.float64)
        noise.step = step  # type: ignore[attr-defined]
        return sampler.sample(model, sde, x, times, noise, path=True)

    plain, last, one_before = end(-2), end(steps - 1), end(steps - 2)
    assert torch.equal(plain.x, last.x)
    assert not torch.equal(plain.x, one_before.x)
    assert plain.path is not None
    torch.testing.assert_close(plain.x, model.denoise(plain.path[-2], float(times[-2])), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FIXED)
def test_path_and_times(name: str) -> None:
    """The path starts with the start, ends with the end, and each state is what a solve to its node alone returns."""
    sampler, model = FIXED[name], MIXTURE.model(PROCESSES["vp"])
    times = GRIDS[sampler.grid](model.sde, 5, 1.0, 1e-3)
    x = model.sde.prior_sample((2, 2), dtype=torch.float64)
    noise = NoiseSource(0, (2, 2), dtype=torch.float64)
    solution = sampler.sample(model, model.sde, x, times, noise, path=True)
    assert torch.equal(solution.times, times)
    assert solution.path is not None
    assert torch.equal(solution.path[0], x)
    assert torch.equal(solution.path[-1], solution.x)
    part = sampler.sample(model, model.sde, x, times[:4], noise).x
    torch.testing.assert_close(solution.path[3], part, rtol=1e-12, atol=1e-12)


def test_progress_is_reported() -> None:
    model = MIXTURE.model(PROCESSES["vp"])
    x, noise = torch.zeros(1, 2, dtype=torch.float64), NoiseSource(0, (1, 2), dtype=torch.float64)
    for name, sampler in FIXED.items():
        seen: list[tuple[int, int]] = []
        times = GRIDS[sampler.grid](model.sde, 3, 1.0, 0.0)
        sampler.sample(model, model.sde, x, times, noise, progress=lambda i, n, seen=seen: seen.append((i, n)))  # type: ignore[misc]
        assert seen == [(1, 3), (2, 3), (3, 3)], name


def test_images_are_solved_like_points() -> None:
    """Any shape: the same numbers come out of ``(B, 1, 2, 1)`` as of ``(B, 2)``."""
    image = type(MIXTURE)(MIXTURE.means, 0.2, MIXTURE.weights, shape=(1, 2, 1)).model(PROCESSES["vp"])
    flat = type(MIXTURE)(MIXTURE.means, 0.2, MIXTURE.weights).model(PROCESSES["vp"])
    for name, sampler in SAMPLERS.items():
        times = GRIDS[sampler.grid](image.sde, 4, 1.0, 0.0)
        ends = []
        for model, shape in ((image, (3, 1, 2, 1)), (flat, (3, 2))):
            noise = NoiseSource(0, shape, dtype=torch.float64)
            x = model.sde.prior_sample(shape, noise=noise)
            ends.append(sampler.sample(model, model.sde, x, times, noise).x.reshape(3, 2))
        torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12, msg=name)


def test_langevin_steps_are_per_sample() -> None:
    """A sample's move is its own: what the rest of the batch holds, even far away, changes nothing."""
    model = MIXTURE.model(PROCESSES["vp"])
    times = torch.tensor([0.5, 0.3], dtype=torch.float64)
    noise = NoiseSource(0, (3, 2), dtype=torch.float64)
    x = model.sde.prior_sample((3, 2), dtype=torch.float64)
    far = torch.cat([x[:1], 50.0 * x[1:]])
    ends = [PredictorCorrector(0.4, 2).sample(model, model.sde, start, times, noise).x for start in (x, far)]
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-12, atol=1e-12)
    assert float((ends[0][1:] - ends[1][1:]).abs().min()) > 0.1


@pytest.mark.parametrize("name", [name for name, sampler in FIXED.items() if not sampler.stochastic])
def test_deterministic_methods_go_both_ways(name: str) -> None:
    """Down and up again in 400 forwards: the distance falls with the method's order, and is below its first power."""
    model = MIXTURE.model(PROCESSES["vp"])
    x = model.sde.prior_sample((6, 2), moments=model.moments, dtype=torch.float64)
    noise = NoiseSource(0, (6, 2), dtype=torch.float64)

    def loop(steps: int) -> float:
        down = GRIDS["reference"](model.sde, steps, 1.0, 0.01)
        there = FIXED[name].sample(model, model.sde, x, down, noise).x
        back = FIXED[name].sample(model, model.sde, there, down.flip(0), noise).x
        return float((back - x).abs().max())

    assert loop(200) < 0.6 * loop(100)


@pytest.mark.parametrize("name", [name for name, s in FIXED.items() if not s.ends_clean])  # type: ignore[attr-defined]
def test_methods_that_cannot_start_on_the_data_say_so(name: str) -> None:
    model = MIXTURE.model(PROCESSES["vp"])
    x, noise = torch.zeros(1, 2, dtype=torch.float64), NoiseSource(0, (1, 2), dtype=torch.float64)
    with pytest.raises(ValueError, match="cannot start at t = 0"):
        FIXED[name].sample(model, model.sde, x, torch.tensor([0.0, 0.5], dtype=torch.float64), noise)


@pytest.mark.parametrize("process", ["vp", "ve"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_the_network_was_shown_and_said_stays_as_it_was(name: str, process: str) -> None:
    """Solvers add in place to tensors of their own alone: not to the start, nor to a state that the network was given,
    nor to what it returned, and the path's states are not written over."""
    kept: list[tuple[Tensor, Tensor]] = []

    class Keeping(Watched):
        def _answer(self, x: Tensor, level: Level) -> Tensor:
            output = super()._answer(x, level)
            kept.extend((tensor, tensor.clone()) for tensor in (x, output))
            return output

    sde = PROCESSES[process]
    model, noise = Keeping(sde), NoiseSource(0, (4, 2), dtype=torch.float64)
    x = sde.prior_sample((4, 2), moments=model.moments, noise=noise)
    kept.append((x, x.clone()))
    sampler = SAMPLERS[name]
    times = GRIDS[sampler.grid](sde, 7, sde.t_max, 0.0)
    solution = sampler.sample(model, sde, x, times, noise, path=True)
    assert len(kept) > 2 * 6
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)
    again = run(sampler, Watched(sde), 7, path=True)
    assert solution.path is not None
    assert again.path is not None
    assert torch.equal(solution.path, again.path)


@pytest.mark.parametrize("name", [name for name, sampler in FIXED.items() if not sampler.stochastic])
def test_gradients_flow_through_the_solve(name: str) -> None:
    """The derivative by the start, against differences: in-place sums take nothing from autograd."""
    model = MIXTURE.model(PROCESSES["vp"])
    times = GRIDS[FIXED[name].grid](model.sde, 6, 1.0, 0.01)
    noise = NoiseSource(0, (2, 2), dtype=torch.float64)
    x = model.sde.prior_sample((2, 2), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: FIXED[name].sample(model, model.sde, x, times, noise).x, (x,))


class Reads(TorchDispatchMode):
    """Counts numbers read out of float32 tensors, each of which would wait for an accelerator; levels are float64."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.float32:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FIXED)
def test_the_host_does_not_wait_for_the_state(name: str) -> None:
    """Between the first forward and the last nothing is read out of the state; torchdiffeq and torchsde do read."""
    seen: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(reads.count)
        return 0.5 * x

    with Reads() as reads:
        run(FIXED[name], ScoreModel(network, PROCESSES["ve"]), 6, dtype=torch.float32)
    assert (seen[-1] > seen[0]) == isinstance(FIXED[name], FixedODE | ReverseSDE)


def test_solves_that_blow_up_say_so() -> None:
    model = ScoreModel(lambda x, t: torch.full_like(x, float("nan")), PROCESSES["vp"])
    with pytest.raises(FloatingPointError, match="did not stay finite"):
        run(SAMPLERS["ddim"], model, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ancestral("both"),
        lambda: DDIM(eta=1.1),
        lambda: DDIM(eta=-0.1),
        lambda: EulerMaruyama(eta=2.0),
        lambda: PredictorCorrector(snr=0.0),
        lambda: PredictorCorrector(corrections=-1),
        lambda: Multistep(memory=0),
        lambda: Multistep(memory=7),
        lambda: Multistep(rule="nope"),
        lambda: AdaptiveODE("rk4"),
        lambda: AdaptiveODE(rtol=0.0),
        lambda: FixedODE("dopri5"),
        lambda: ReverseSDE("srk", eta=3.0),
        lambda: ReverseSDE("runge"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Sampler]) -> None:
    with pytest.raises(ValueError, match=r"must|choose one of"):
        make()


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_the_published_step(eta: float) -> None:
    """Song, Meng & Ermon (2021), eq. 12 and 16, in the alpha-bar of a chain."""
    chain, seed = DDPM.linear(100), 3
    model, x = MIXTURE.model(chain), MIXTURE.sample(5, seed=1)
    bar_t, bar_s = (float(chain.alpha(t)) ** 2 for t in (0.6, 0.2))
    std = eta * math.sqrt((1.0 - bar_s) / (1.0 - bar_t)) * math.sqrt(1.0 - bar_t / bar_s)
    x0, eps = model.split(x, 0.6)
    z = sdediff.NoiseSource(seed, x.shape, dtype=torch.float64).normal(0)
    wanted = math.sqrt(bar_s) * x0 + math.sqrt(1.0 - bar_s - std**2) * eps + std * z
    found = sdediff.solve(model, x, DDIM(eta), grid=[0.6, 0.2], seed=seed).x
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
