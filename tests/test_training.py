"""Training: the objective's identities, the draws, the average, and a loop that resumes bit for bit."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from catalogue import random_betas
from distributed_train import ToldUNet
from sdediff.analytic import Gaussian
from sdediff.checkpoint import load
from sdediff.config import Config
from sdediff.data import load_dataset, to_model
from sdediff.documents import Named
from sdediff.interrupt import Interrupt
from sdediff.noise import stratified
from sdediff.parametrization import PREDICTIONS
from sdediff.score_model import ScoreModel
from sdediff.sde import DDPM, VESDE, VPSDE, CosineVPSDE, ExponentialVESDE, RectifiedFlow, SubVPSDE
from sdediff.tensors import read_tensors, write_tensors
from sdediff.training import TIME_LAWS, WEIGHTINGS, Objective, TrainingWarning, ema, state, train
from sdediff.training.batches import Batches, held_out_batch
from sdediff.training.record import Record, read_record
from sdediff.training.schedules import rate_factor
from sdediff.training.state import states
from sdediff.training.trainer import _check_distribution
from sdediff.types import DataInfo

PROCESSES = [VPSDE(), CosineVPSDE(), SubVPSDE(), VESDE(), ExponentialVESDE(), RectifiedFlow(), DDPM.linear(100)]
SMOOTH = [sde for sde in PROCESSES if not isinstance(sde, DDPM)]
CONTINUOUS = [law for law in TIME_LAWS if law not in ("instants", "important-instants")]
"""The laws with a density; those on the instants of a chain are in ``test_objectives.py``."""


def name(sde):
    return type(sde).__name__


# ---- objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", CONTINUOUS)
@pytest.mark.parametrize("sde", PROCESSES, ids=name)
def test_a_time_law_states_its_own_density(sde, law):
    """``density = |du / d lambda|``, by central differences of second order."""
    u = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    step = 1e-6
    ahead, behind = (sde.half_log_snr(TIME_LAWS[law](sde, u + s)[0]) for s in (step, -step))
    density = TIME_LAWS[law](sde, u)[1]
    error = (2.0 * step / (ahead - behind).abs() / density - 1.0).abs()
    # A chain's rate jumps at its instants; differences across a jump say nothing.
    assert float(error.median()) < 1e-6
    assert float((error < 1e-4).double().mean()) > 0.9
    if sde in SMOOTH:
        assert float(error.max()) < 1e-4


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sde", SMOOTH, ids=name)
def test_time_laws_do_not_change_the_objective(sde, weighting):
    """The integral of ``W(lambda) f(lambda)`` is the same under every law, for an f that vanishes at the ends."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    values = []
    for law in CONTINUOUS:
        t, density = TIME_LAWS[law](sde, u)
        level = sde.level(t)
        f = torch.exp(-(level.half_log_snr.square()))
        values.append(float((WEIGHTINGS[weighting](sde, level) / density * f).mean()))
    # Midpoint sums err by (spacing of lambda)^2; the coarsest spacing where f lives is below 1e-3.
    assert max(values) / min(values) - 1.0 < 1e-5
    t, density = TIME_LAWS["logsnr"](sde, u)
    wrong = float((WEIGHTINGS[weighting](sde, sde.level(t)) * torch.exp(-sde.half_log_snr(t).square())).mean())
    assert abs(wrong / values[0] - 1.0) > 0.1  # a density that is forgotten is told apart


@pytest.mark.parametrize("sde", PROCESSES, ids=name)
def test_named_weightings_are_the_published_ones(sde):
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    level, weights = Objective(sde, "uniform", "simple").levels(u)
    assert torch.allclose(weights, weights[0].expand(99), rtol=1e-9)  # Ho et al. 2020, eq. 14
    level, weights = Objective(sde, "logsnr", "likelihood").levels(u)
    assert torch.allclose(weights, weights[0].expand(99), rtol=1e-12)  # Song et al. 2021, importance-sampled
    level, weights = Objective(sde, "uniform", "min-snr").levels(u)
    snr = (level.alpha / level.sigma) ** 2
    expected = torch.minimum(snr, torch.full_like(snr, 5.0)) / snr  # Hang et al. 2023, for the noise
    assert torch.allclose(weights / weights[-1], expected / expected[-1], rtol=1e-9)
    level, weights = Objective(sde, "uniform", "velocity").levels(u)
    assert torch.allclose(weights * level.cos**2, (weights * level.cos**2)[0].expand(99), rtol=1e-9)


def test_an_instant_is_weighed_by_the_step_that_ends_there():
    """Of instants alike, equal weight in lambda is the rate ``-N log(1 - beta_i) / (2 sigma_i^2)``, i = 1 .. N."""
    chain = DDPM(random_betas(20))
    objective = Objective(chain, "instants", "likelihood")
    level, weights = objective.levels((torch.arange(20, dtype=torch.float64) + 0.5) / 20)
    rates = -20.0 * torch.log1p(-torch.tensor(chain.betas, dtype=torch.float64))
    assert torch.allclose(chain.diffusion(chain.instants[1:]) ** 2, rates, rtol=1e-12)
    expected = rates / (2.0 * level.sigma**2)
    assert torch.allclose(weights * objective.mean_weight, expected, rtol=1e-9)
    assert not torch.allclose(weights * objective.mean_weight, expected * rates.roll(-1) / rates, rtol=0.1)


@pytest.mark.parametrize("sde", [VPSDE(), DDPM.cosine(1000), RectifiedFlow(), VESDE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", sorted({*PREDICTIONS} - {"sample"}))  # whose error vanishes with the noise
def test_by_default_no_noise_level_has_the_loss_alone(name, sde):
    """Of relative errors of what the network predicts, ``||eps_hat - eps||^2 / (cos gain)^2``, everywhere alike."""

    def largest_share(weighting):
        level, weights = Objective(sde, "uniform", weighting).levels((torch.arange(1000) + 0.5) / 1000)
        gain = PREDICTIONS[name].gain(np.arctan2(level.sin.numpy(), level.cos.numpy()))
        shares = weights * (level.cos * torch.from_numpy(gain)) ** 2
        return float(shares.max() / shares.sum())

    config = Config().updated({"model.prediction": name})
    assert largest_share(config.weighting) < 0.02
    if name in ("epsilon", "score") and isinstance(sde, DDPM | RectifiedFlow):
        assert largest_share("velocity") > 0.1
    assert Config().updated({"model.prediction": name, "training.weighting": "p2"}).weighting == "p2"


def test_a_weighting_by_name_and_by_choice_are_one_run(tmp_path):
    """As those of versions that named it in every run."""
    short = settings(training__weighting="velocity", training__steps=2, training__schedule="constant")
    train(short, tmp_path, progress=False)
    longer = settings(training__steps=4, training__schedule="constant")
    assert train(longer, tmp_path, resume=True, progress=False).steps == 4
    with pytest.raises(ValueError, match=r"started with other settings: training\.weighting"):
        train(longer.updated({"training.weighting": "simple"}), tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("law", CONTINUOUS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_of_the_velocity_have_mean_one(law, weighting):
    """So the loss of the network that knows nothing, ``v_hat = 0``, is about the mean of ``||v||^2``: of order one."""
    u = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    level, weights = Objective(VPSDE(), law, weighting).levels(u)
    assert abs(float((weights * level.cos**2).mean()) - 1.0) < 1e-12
    assert bool((weights > 0.0).all())


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown time law 'late'; choose one of: uniform, logsnr"):
        Objective(VPSDE(), "late")
    with pytest.raises(ValueError, match=r"unknown weighting 'none'; choose one of: simple, likelihood, min-snr"):
        Objective(VPSDE(), "uniform", "none")


class Scaled(nn.Module):
    """A denoiser whose noise half is wrong by a factor."""

    def __init__(self, exact, factor):
        super().__init__()
        self.exact, self.factor = exact, factor

    def forward(self, x, level):
        return PREDICTIONS["epsilon"].split(self.factor * self.exact(x, level).eps, x, level)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_loss_of_the_exact_denoiser_has_its_closed_form(weighting):
    """For N(0, s^2) data the noise has posterior variance ``alpha^2 s^2 / (alpha^2 s^2 + sigma^2)`` an entry.

    False-alarm probability 5e-7 a test (5 standard errors); a noise estimate 20 % too large must be caught.
    """
    sde, variance, n = CosineVPSDE(), 0.3, 40_000
    generator = torch.Generator().manual_seed(0)
    exact = Gaussian(torch.zeros(4), variance * torch.eye(4, dtype=torch.float64)).model(sde)
    objective = Objective(sde, "logsnr", weighting)
    x0 = math.sqrt(variance) * torch.randn(n, 4, generator=generator, dtype=torch.float64)
    eps = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    level, weights = objective.levels(u)
    signal = level.alpha**2 * variance
    difference = objective.loss(exact, x0, u, eps) - weights * signal / (signal + level.sigma**2)
    error = float(difference.std()) / math.sqrt(n)
    assert abs(float(difference.mean())) < 5.0 * error
    wrong = objective.loss(Scaled(exact, 1.2), x0, u, eps) - weights * signal / (signal + level.sigma**2)
    assert abs(float(wrong.mean())) > 5.0 * float(wrong.std()) / math.sqrt(n)


def test_stratified_draws_fill_every_stratum_once():
    for step in range(3):
        u = stratified(0, 64, step, stage=0)
        assert sorted((u * 64).floor().long().tolist()) == list(range(64))
        assert bool(((u >= 0.0) & (u < 1.0)).all())
        assert torch.allclose(u.sort().values.diff(), torch.full((63,), 1.0 / 64, dtype=torch.float64), atol=1e-12)


# ---- average ---------------------------------------------------------------------------------------------------


def test_the_average_is_the_weighted_sum_of_the_past():
    network, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    network.double(), average.double()
    values = [3.0, -1.0, 4.0, 1.0, -5.0]
    expected = float(average.weight.detach())
    for step, value in enumerate(values):
        nn.init.constant_(network.weight, value)
        ema.update(average, network, 0.3, step)
        decay = min(0.3, (1.0 + step) / (10.0 + step))
        expected = decay * expected + (1.0 - decay) * value
    assert math.isclose(float(average.weight.detach()), expected, rel_tol=1e-14)
    assert float(network.weight.detach()) == values[-1]


# ---- batches ---------------------------------------------------------------------------------------------------


def test_every_epoch_sees_every_item_once():
    data = torch.arange(30)[:, None]
    batches = Batches(data, DataInfo((1,), levels=30), 7, seed=1)
    seen = np.concatenate([batches.indices(step) for step in range(30)])  # 210 = 7 epochs
    epochs = seen.reshape(7, 30)
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 7


def test_parts_of_the_processes_make_up_the_batch():
    data, info = load_dataset("digits").train, load_dataset("digits").info
    whole = Batches(data, info, 12, seed=3)(5)
    for world in (2, 3, 4):
        parts = [Batches(data, info, 12, seed=3, rank=rank, world=world)(5) for rank in range(world)]
        for field, expected in enumerate(whole):
            assert torch.equal(torch.cat([part[field] for part in parts]), expected)
    assert not torch.equal(whole.eps, Batches(data, info, 12, seed=3)(6).eps)
    assert not torch.equal(whole.eps, Batches(data, info, 12, seed=4)(5).eps)
    with pytest.raises(ValueError, match="12 cannot be shared evenly by 5"):
        Batches(data, info, 12, seed=3, world=5)


def test_draws_have_the_right_laws():
    """Dequantisation fills the bins evenly and the noise is standard.

    Each of the two Kolmogorov distances exceeds its bound with probability 1e-6; centred levels must be caught.
    """
    data = torch.randint(0, 17, (5000, 4), generator=torch.Generator().manual_seed(0))
    info = DataInfo((4,), levels=17)
    batch = held_out_batch(data, info, seed=0, most=5000)
    within = (batch.x0.double() + 1.0) * 8.0 - data + 0.5
    bound = math.sqrt(0.5 * math.log(2.0 / 1e-6) / within.numel())
    grid = (torch.arange(within.numel(), dtype=torch.float64) + 0.5) / within.numel()
    assert float((within.flatten().sort().values - grid).abs().max()) < bound
    normal = torch.special.ndtr(batch.eps.double().flatten()).sort().values
    assert float((normal - grid).abs().max()) < bound
    assert float((torch.full_like(grid, 0.5) - grid).abs().max()) > bound


# ---- loop ------------------------------------------------------------------------------------------------------


def settings(**changes):
    base = {
        "network.width": 8,
        "training.steps": 12,
        "training.batch_size": 16,
        "training.warmup": 3,
        "training.log_every": 2,
        "training.held_out_every": 4,
        "training.sample_every": 0,
        "training.checkpoint_every": 5,
    }
    return Config().updated({**base, **{key.replace("__", "."): value for key, value in changes.items()}})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 12 steps without a break."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train(settings(), folder, progress=False)


def test_a_run_can_be_loaded_and_read(whole):
    assert (whole.steps, whole.interrupted) == (12, False)
    assert torch.equal(weights(load(whole.run_dir)), weights(whole.model))
    assert Config.load(whole.run_dir / "config.json") == settings()
    assert [line["step"] for line in lines(whole.run_dir) if "loss" in line] == [2, 4, 6, 8, 10, 12]
    held_out = {line["step"]: line["held_out_loss"] for line in lines(whole.run_dir) if "held_out_loss" in line}
    assert set(held_out) == {4, 8, 12}
    assert held_out[12] == whole.held_out_loss
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(whole.run_dir / "tb")).Reload()
    assert [event.step for event in board.Scalars("held_out_loss")] == [4, 8, 12]
    assert math.isclose(board.Scalars("held_out_loss")[-1].value, held_out[12], rel_tol=1e-6)


def test_moments_are_those_of_dequantised_data(whole):
    """The covariance has the variance of the uniform noise, delta^2 / 12, on its diagonal."""
    data = load_dataset("digits")
    x = (data.train.double().flatten(1) / 8.0 - 1.0).T
    expected = torch.cov(x, correction=0) + torch.eye(64, dtype=torch.float64) * 0.125**2 / 12.0
    moments = whole.model.moments
    covariance = moments.basis @ torch.diag(moments.variances) @ moments.basis.T
    assert float((covariance - expected).abs().max()) < 1e-7  # levels become values in float32
    assert float((moments.mean.flatten() - x.mean(dim=1)).abs().max()) < 1e-6


def test_an_interrupted_run_resumes_bit_for_bit(whole, tmp_path):
    """Ctrl-C after step 6, while a picture is drawn; the checkpoint is at step 6, the rest as if nothing had been."""
    drawn = []

    def interrupt(samples, path):
        drawn.append((samples.shape, path.name))
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    config = settings(training__sample_every=3)
    first = train(config, tmp_path / "run", progress=False, on_sample=interrupt)
    assert first.interrupted
    assert first.steps == 7  # the step that was under way is finished
    assert [name for _, name in drawn] == ["step_000003", "step_000006", "step_000007"]
    assert torch.equal(weights(load(tmp_path / "run")), weights(first.model))
    assert not torch.equal(weights(first.model), weights(whole.model))
    second = train(config, tmp_path / "run", resume=True, progress=False)
    assert (second.steps, second.interrupted) == (12, False)
    assert torch.equal(weights(second.model), weights(whole.model))
    assert second.held_out_loss == whole.held_out_loss
    steps = [line["step"] for line in lines(tmp_path / "run") if "held_out_loss" in line]
    assert steps == [4, 7, 8, 12]
    third = train(config, tmp_path / "run", resume=True, progress=False)  # nothing left to do
    assert third.steps == 12
    assert third.held_out_loss == whole.held_out_loss


def test_a_killed_run_resumes_from_its_last_checkpoint(whole, tmp_path):
    """Without warning after step 8: the checkpoint of step 5 is taken up, and later metrics are forgotten."""

    class Killed(BaseException):
        pass

    def kill(samples, path):
        raise Killed

    with pytest.raises(Killed):
        train(settings(training__sample_every=8), tmp_path / "run", progress=False, on_sample=kill)
    assert max(line["step"] for line in lines(tmp_path / "run")) == 8
    again = train(settings(), tmp_path / "run", resume=True, progress=False)
    assert torch.equal(weights(again.model), weights(whole.model))
    assert [line["step"] for line in lines(tmp_path / "run") if "held_out_loss" in line] == [4, 8, 12]


def test_a_run_of_another_stream_of_noise_is_refused(whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole.run_dir, tmp_path / "run")
    monkeypatch.setattr(state, "STREAM", 3)
    with pytest.raises(ValueError, match=r"made with stream 2 of the noise, now it is 3; begin a new run$"):
        train(settings(), folder, resume=True, progress=False)
    tensors, metadata = read_tensors(folder / state.STATE)
    del metadata["stream"]  # a state from before streams had versions
    write_tensors(folder / state.STATE, tensors, metadata)
    with pytest.raises(ValueError, match="made with stream 1"):
        train(settings(), folder, resume=True, progress=False)


def test_the_seed_decides_and_global_generators_are_left_alone(whole, tmp_path):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    again = train(settings(), tmp_path / "again", progress=False)
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert numpy_state == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(weights(again.model), weights(whole.model))
    other = train(settings(training__seed=1), tmp_path / "other", progress=False)
    assert not torch.equal(weights(other.model), weights(whole.model))


def test_runs_are_not_overwritten_or_mixed(whole, tmp_path):
    with pytest.raises(FileExistsError, match="resume goes on with it, force replaces it"):
        train(settings(), whole.run_dir, progress=False)
    with pytest.raises(ValueError, match="exclude each other"):
        train(settings(), whole.run_dir, resume=True, force=True, progress=False)
    with pytest.raises(ValueError, match=r"other settings: network.width, training.batch_size$"):
        train(settings(network__width=16, training__batch_size=8), whole.run_dir, resume=True, progress=False)
    with pytest.raises(ValueError, match=r"has done \d+ steps, more than training.steps = 1$"):
        train(settings(training__steps=1), whole.run_dir, resume=True, progress=False)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(settings(), tmp_path / "none", resume=True, progress=False)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in whole.run_dir.iterdir())
    with pytest.raises(FileNotFoundError, match="no data"):  # force removes nothing before all is known to be well
        train(settings(data__name="no-such-data"), whole.run_dir, force=True, progress=False)
    with pytest.raises(ValueError, match="unknown weighting"):
        train(settings(training__weighting="none"), whole.run_dir, force=True, progress=False)
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in whole.run_dir.iterdir())


def test_force_replaces_a_run_and_damage_is_named(tmp_path):
    config = settings(data__name="moons", training__steps=2)
    train(config, tmp_path, progress=False)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "samples").mkdir(exist_ok=True)
    (tmp_path / "samples" / "step_000001.png").write_text("the run's")
    (tmp_path / "samples" / "ode-seed0.png").write_text("mine")
    again = train(config.updated({"training.seed": 5}), tmp_path, force=True, progress=False)
    assert Config.load(tmp_path / "config.json").training.seed == 5
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["ode-seed0.png"]
    assert [line["step"] for line in lines(tmp_path)] == [2, 2]
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        train(Config.load(again.run_dir / "config.json"), tmp_path, resume=True, progress=False)
    state.unlink()
    with pytest.raises(FileNotFoundError, match=r"state\.safetensors is missing"):
        train(Config.load(again.run_dir / "config.json"), tmp_path, resume=True, progress=False)


def test_a_diverging_run_stops_before_it_is_saved(tmp_path):
    config = settings(data__name="moons", training__learning_rate=1e30, training__clip=1e30, training__warmup=0)
    with pytest.raises(FloatingPointError, match=r"the loss is \w+ at step \d+: try a lower training.learning_rate"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.json").exists()


def test_the_second_interrupt_is_not_held_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:  # noqa: PT012 - the second signal must be the one
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.wanted
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone():
    def work(seen):
        with Interrupt() as interrupt:
            seen.append(interrupt.wanted)

    before, seen = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=work, args=(seen,))
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_record_forgets_what_came_after(tmp_path):
    record = Record(tmp_path, 0)
    for step in (1, 2, 3):
        record.add(step, loss=float(step))
    record.close()
    record = Record(tmp_path, 2)
    record.add(3, loss=30.0)
    record.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_training_finds_the_gaussian(tmp_path):
    """On correlated Gaussian data the trained loss comes near the exact denoiser's, on the very same draws."""
    rng = np.random.default_rng(0)
    mix = np.array([[0.8, 0.0], [0.5, 0.2]])
    points = (rng.standard_normal((4000, 2)) @ mix.T + [0.3, -0.2]).astype(np.float32)
    np.save(tmp_path / "points.npy", points)
    config = settings(
        data__name=str(tmp_path / "points.npy"),
        network__width=32,
        training__steps=400,
        training__batch_size=256,
        training__learning_rate=5e-3,
        training__ema=0.98,
        training__held_out_every=0,
        training__checkpoint_every=0,
    )
    result = train(config, tmp_path / "run", progress=False)
    data = load_dataset(tmp_path / "points.npy")
    mean, root = (
        to_model(torch.tensor([0.3, -0.2]), data.info),
        torch.from_numpy(mix) / torch.tensor(data.info.scale)[:, None],
    )
    exact = Gaussian(mean, root @ root.T).model(result.model.sde)  # in the model's coordinates
    batch = held_out_batch(data.held_out, data.info, 0)
    objective = Objective(result.model.sde, config.training.time_law, config.weighting)

    def excess(model):
        """Mean of W ||eps_model - eps_exact||^2: what is lost beyond the exact denoiser's loss."""
        level, loss_weights = objective.levels(batch.u)
        alpha, sigma = (v.float()[:, None] for v in (level.alpha, level.sigma))
        x_t = alpha * batch.x0 + sigma * batch.eps
        with torch.no_grad():
            gap = (model(x_t, level).eps - exact(x_t, level).eps).square().mean(dim=1)
        return float((loss_weights.to(gap) * gap).mean())

    untrained = ScoreModel(
        lambda x, t: torch.zeros_like(x), result.model.sde, prediction="v_prediction", conditioning="logsnr"
    )
    assert excess(result.model) < 0.05 * excess(untrained)
    # Cauchy-Schwarz: the losses differ by the excess e and a cross term of mean zero, at most 2 sqrt(e loss)
    exact_loss = float(objective.loss(exact, *batch[:3]).mean())
    bound = excess(result.model) + 2.0 * math.sqrt(excess(result.model) * exact_loss)
    assert abs(result.held_out_loss - exact_loss) <= bound


def of_two_processes(config, folder, *options):
    """Train in two gloo processes; return what they printed."""
    file = folder.with_suffix(".json")
    file.write_text(config.to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(Path(__file__).parent / "distributed_train.py"), str(file), str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(folder):
    return [line["loss"] for line in lines(folder) if "loss" in line]


def test_two_processes_train_like_one(tmp_path):
    """Two gloo processes, each with half of every batch and its labels, in two parts, against one with all of it: equal
    up to float32 sums."""
    config = settings(network__classes=10, training__steps=6, training__checkpoint_every=0, training__accumulate=2)
    assert "processes=2 steps=6" in of_two_processes(config, tmp_path / "two")
    own = {"network": ToldUNet, "progress": False}
    one = train(config.updated({"training.accumulate": 1}), tmp_path / "one", **own)
    half = train(config.updated({"training.accumulate": 1, "training.batch_size": 8}), tmp_path / "half", **own)
    two, one, half = (weights(m) for m in (load(tmp_path / "two", network=ToldUNet), one.model, half.model))
    # Adam divides by the gradient's own size, so that a weight whose gradient is all rounding goes anywhere. Those are
    # few: in the mean square the distance is far below that of half the items, which one process alone would see.
    assert float((two - one).square().mean()) < 1e-2 * float((half - one).square().mean())
    assert [line["step"] for line in lines(tmp_path / "two")] == [line["step"] for line in lines(tmp_path / "one")]
    assert np.allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


def test_weights_shared_out_train_like_whole_ones(tmp_path):
    """Two gloo processes, each with a part of every weight, moment and average, against two with whole ones: the same
    files, but for rounding; two go on from a state, and so does one alone."""
    config = settings(network__classes=10, training__steps=6, training__checkpoint_every=4)
    config = config.updated({"training.averages": [0.05, 0.1]})
    shared, folders = config.updated({"training.shard": True}), {name: tmp_path / name for name in ("whole", "shared")}
    of_two_processes(config, folders["whole"], "library")
    assert "processes=2 steps=6" in of_two_processes(shared, folders["shared"], "library")

    def files_agree(*names):
        for name in names:
            whole, found = (read_tensors(folder / name)[0] for folder in folders.values())
            assert {key: value.shape for key, value in whole.items()} == {k: v.shape for k, v in found.items()}
            whole, found = (torch.cat([value.flatten() for value in each.values()]) for each in (whole, found))
            # weights whose gradient is all rounding, as of biases before a norm, go anywhere by Adam, but not far
            assert float((whole - found).norm()) < 1e-3 * float(whole.norm()), name

    snapshots = [f"averages/step_0000000{step}.safetensors" for step in (4, 6)]
    files_agree("state.safetensors", "state.1.safetensors", "model.safetensors", "best/model.safetensors", *snapshots)
    assert np.allclose(losses(folders["shared"]), losses(folders["whole"]), rtol=1e-5)
    for folder in folders.values():
        (folder / "state.1.safetensors").replace(folder / "state.safetensors")
    of_two_processes(shared, folders["shared"], "library", "resume")
    train(shared, folders["whole"], resume=True, progress=False)  # a single process
    files_agree("state.safetensors", "model.safetensors")
    assert np.allclose(losses(folders["shared"]), losses(folders["whole"]), rtol=1e-5)


def test_sharding_of_a_launcher_is_refused():
    """A launcher's own sharding, which nobody gathers, is an error with the cure, not a wrong model."""
    for kind in ("NO", "MULTI_CPU", "MULTI_GPU"):
        _check_distribution(kind)
    with pytest.raises(ValueError, match=r"FSDP of the launcher is not supported.*training\.shard=true"):
        _check_distribution("FSDP")


def test_a_line_of_metrics_holds_the_losses_of_all_steps_since_the_last(tmp_path):
    """Also where a run was killed between two lines, and where a signal ended it."""
    config = settings(
        training__steps=10, training__log_every=5, training__checkpoint_every=2, training__held_out_every=0
    )
    straight = train(config, tmp_path / "straight", progress=False)
    train(config, tmp_path / "run", progress=False, on_metrics=lambda step, _: step == 5)  # which ends it after step 6
    train(config, tmp_path / "run", resume=True, progress=False)
    (tmp_path / "run" / "state.1.safetensors").replace(
        tmp_path / "run" / "state.safetensors"
    )  # of step 8, as if killed
    train(config, tmp_path / "run", resume=True, progress=False)
    wanted = [line["loss"] for line in straight.metrics if "loss" in line]
    found = {line["step"]: line["loss"] for line in lines(tmp_path / "run") if "loss" in line}
    assert [found[5], found[10]] == wanted


def test_damaged_lines_of_the_metrics_block_nothing(tmp_path):
    """A crash may cut the last line, a disk may spoil another: they are left out, and a resumed run drops them."""
    file = tmp_path / "metrics.jsonl"
    good = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    for bad in (
        b"junk",
        b"[1]",
        b'{"loss": 1}',
        b'{"step": "1"}',
        b'{"step": 1, "loss": "x"}',
        b"\xff\x00",
        b"[" * 9999,
    ):
        file.write_bytes(json.dumps(good[0]).encode() + b"\n" + bad + b"\n" + json.dumps(good[1]).encode() + b'\n{"st')
        assert read_record(tmp_path) == good
    Record(tmp_path, 1).close()
    assert lines(tmp_path) == good[:1]


def test_older_checkpoints_and_the_best_model_are_kept(tmp_path):
    """The last k states, with the steps they were written at; ``best`` is the model of the least held-out loss."""
    result = train(settings(training__checkpoint_every=2, training__keep=3), tmp_path / "run", progress=False)
    files = ["state.safetensors", "state.1.safetensors", "state.2.safetensors"]
    assert [path.name for path in states(tmp_path / "run")] == files
    assert [read_tensors(path)[1]["step"] for path in states(tmp_path / "run")] == ["12", "10", "8"]
    held_out = {line["step"]: line["held_out_loss"] for line in result.metrics if "held_out_loss" in line}
    best = min(held_out, key=held_out.__getitem__)
    kept = load(tmp_path / "run" / "best")
    objective = Objective(kept.sde, settings().training.time_law, settings().weighting)
    data = load_dataset("digits")
    with torch.no_grad():
        loss = float(objective.loss(kept, *held_out_batch(data.held_out, data.info, 0)[:3]).mean())
    assert math.isclose(loss, held_out[best], rel_tol=1e-5)
    train(settings(training__keep=1), tmp_path / "run", force=True, progress=False)
    assert [path.name for path in states(tmp_path / "run")] == files[:1]


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, tmp_path, damage):
    """And says so; the end is that of the run without a break. The damaged file is set aside, the good ones stay."""
    folder = tmp_path / "run"
    train(settings(training__steps=10, training__schedule="constant"), folder, progress=False)  # states of 5 and 10
    straight = train(settings(training__schedule="constant"), tmp_path / "straight", progress=False)
    newest, raw = folder / "state.safetensors", (folder / "state.safetensors").read_bytes()
    if damage == "missing":
        newest.unlink()
    else:
        newest.write_bytes({"cut": raw[: len(raw) // 2], "zeros": bytes(len(raw)), "empty": b""}[damage])
    caught = nullcontext() if damage == "missing" else pytest.warns(TrainingWarning, match="after 5 steps$")
    with caught:
        again = train(settings(training__schedule="constant"), folder, resume=True, progress=False)
    assert torch.equal(weights(again.model), weights(straight.model))
    assert (folder / "damaged.safetensors").exists() == (damage != "missing")
    assert [line["step"] for line in lines(folder) if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert [read_tensors(path)[1]["step"] for path in states(folder)] == ["12", "10"]


def test_an_extended_run_says_how_its_rate_changes(tmp_path):
    config = settings(data__name="moons", training__steps=4)
    train(config, tmp_path / "run", progress=False)
    with pytest.warns(TrainingWarning, match="now ends at step 8, not 4: the rate goes on at 0.001 after 4 steps"):
        longer = train(config.updated({"training.steps": 8}), tmp_path / "run", resume=True, progress=False)
    assert longer.steps == 8
    flat = config.updated({"training.schedule": "constant"})
    train(flat, tmp_path / "flat", progress=False)
    again = train(flat.updated({"training.steps": 8}), tmp_path / "flat", resume=True, progress=False)  # without a word
    straight = train(flat.updated({"training.steps": 8}), tmp_path / "straight", progress=False)
    assert torch.equal(weights(again.model), weights(straight.model))


def test_schedules_are_their_formulas():
    for step in (0, 3, 7, 9):
        assert rate_factor("constant", 0, step, 10) == 1.0
        assert math.isclose(rate_factor("linear", 0, step, 10), 1.0 - step / 10)
        assert math.isclose(rate_factor("cosine", 0, step, 10), math.cos(0.05 * math.pi * step) ** 2)
        floored = Named(name="cosine", floor=0.1)
        assert math.isclose(rate_factor(floored, 0, step, 10), 0.1 + 0.9 * math.cos(0.05 * math.pi * step) ** 2)
        assert math.isclose(
            rate_factor(Named(name="inverse-root", start=3), 0, step, 10), min(1, (3 / max(step, 1)) ** 0.5)
        )
        assert math.isclose(rate_factor("constant", 9, step, 10), (step + 1) / 10)
    with pytest.raises(ValueError, match="unknown schedule 'late'; choose one of: cosine, constant"):
        settings(training__schedule="late")


def test_a_loss_that_blows_up_stops_the_run_and_leaves_its_checkpoints(tmp_path):
    """A rate that is far too large: given up at a loss of ten, long before it is infinite; earlier states stand."""
    config = settings(
        data__name="moons", training__learning_rate=3.0, training__clip=1e9, training__warmup=0, training__steps=300,
        training__checkpoint_every=1, training__log_every=1, training__schedule="constant",
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"the loss is [\d.e+]+ at step \d+, where it began at [\d.]+: try a"):
        train(config, tmp_path / "run", progress=False)
    logged = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert max(logged) <= 10.0 * max(1.0, logged[0])
    load(tmp_path / "run")
