"""What a step costs beside its network: its arithmetic, over a plain ``a * x + b * eps`` of two tensors.

The network returns a tensor made beforehand, so all the time between two of its forwards is the solver's. Every solver
of ``SAMPLERS`` with steps of one cost is measured so, and some of diffusers, k-diffusion and azula where they are
installed; the yardstick is timed after every solve, so that whatever else the machine does hits all alike. Columns:
microseconds a forward (best and median), their ratios to the yardstick's, and microseconds a solve spends once, before
its first and after its last forward (the coefficients of a grid are computed once a process, which is not in it: 30 to
60 a step). Peers get a network that predicts what they want, and torch's generator for noise; sdediff's solvers get one
that predicts epsilon, which costs those that hold another quantity a pass over the state; ``--prediction`` gives
another. With ``--memory`` the tensors of the state's size are counted that a solve of 1,000 steps holds, at the 20th
forward and at the last.

    OMP_NUM_THREADS=1 python -m experiments.arithmetic --memory

Expected ratios (best) on one core of an EPYC with 1 MB of L2 cache, yardstick 71 us: ddim 1.0, deis2 1.2, ab2 1.4,
deis3 1.5, dpm++2m 1.7, dpm++3m 2.0, ab4 2.0, "ode" 2.9 (with ``--prediction v_prediction`` ab4 1.55);
k-diffusion dpmpp_2m 5.9; azula 6 to 14; diffusers DDIM 3.1, DPM-Solver++ 6 and 12, UniPC 20 and 38. A step of ab4 reads
five tensors and writes two; the same as one compiled kernel takes 1.75. Stochastic: sde-dpm++2m 12.4, of which 8.9 are
its normals (torch's own take 9.4); peers 19 to 37. The number of tensors held does not grow, but for torchsde's. Cost:
two minutes.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable
from functools import partial

import click
import numpy as np
import torch
from torch import Tensor

import sdediff
from sdediff.dynamics import Frame

PEERS = {
    "experiments.peers.kdiffusion_peers": ("k-diffusion dpmpp_2m", "k-diffusion lms 4"),
    "experiments.peers.azula_peers": ("azula DDIM", "azula zAB 4", "azula vAB 4", "azula xEAB 4"),
    "experiments.peers.diffusers_peers": (
        "diffusers DDIM",
        "diffusers DPMSolverMultistep dpmsolver++ 2 midpoint False sigma_min",
        "diffusers DPMSolverMultistep dpmsolver++ 3 midpoint False sigma_min",
        "diffusers UniPCMultistep 2 bh2 True False",
        "diffusers UniPCMultistep 3 bh2 True False",
    ),
    "experiments.peers.stochastic_peers": (
        "k-diffusion euler_ancestral",
        "k-diffusion dpmpp_2m_sde midpoint",
        "k-diffusion dpmpp_3m_sde",
        "diffusers SASolver 2 1",
    ),
}
STEPS = 30
SKIPPED = 6  # forwards before every memory is full

now = time.perf_counter


class Clock:
    """A network that costs nothing and notes when it was asked."""

    def __init__(self, output: Tensor) -> None:
        self.output, self.asked = output, list[float]()

    def __call__(self, x: Tensor, _conditioning: Tensor) -> Tensor:
        self.asked.append(now())
        return self.output


class Halves(sdediff.Denoiser):
    """The same as a denoiser, both halves ready."""

    def __init__(self, clock: Clock, sde: sdediff.SDE) -> None:
        super().__init__()
        self.clock, self.sde, self.moments, self.data = clock, sde, None, None

    def forward(self, x: Tensor, level: sdediff.Level) -> sdediff.Split:
        """Say when it was asked."""
        return sdediff.Split(self.clock(x, x), self.clock.output)


class Alive(Clock):
    """A network that counts the tensors of the state's size that came into being since it was first asked."""

    def __call__(self, x: Tensor, conditioning: Tensor) -> Tensor:
        forward = len(self.asked) + 1
        if forward in (1, 20, 1000):
            gc.collect()
            count = sum(type(item) is Tensor and item.numel() >= x.numel() for item in gc.get_objects())
            if forward == 1:
                self.before = count
            else:
                print(f"{count - self.before:4}", end=" " if forward == 20 else "\n")
        return super().__call__(x, conditioning)


def ours(x: Tensor, prediction: str) -> dict[str, Callable[[Clock], object]]:
    """Every solver of the table but the adaptive ones, which have no step of one cost."""

    def run(name: str, clock: Clock) -> object:
        return sdediff.solve(sdediff.ScoreModel(clock, sdediff.VPSDE(), prediction), x, name, steps=STEPS)

    return {name: partial(run, name) for name, sampler in sdediff.SAMPLERS.items() if not sampler.adaptive}


def theirs(x: Tensor) -> dict[str, Callable[[Clock], object]]:
    """The peers that are installed."""
    sde = sdediff.VPSDE()
    levels = sde.levels(sdediff.GRIDS["reference"](sde, STEPS, sde.t_max, 1e-3))
    draw, made = partial(torch.randn, x.shape), dict[str, Callable[[Clock], object]]()

    def run(solve: Callable[..., Tensor], extra: tuple[Callable[[], Tensor], ...], clock: Clock) -> object:
        return solve(Frame(Halves(clock, sde), sde), x, levels, *extra)

    for module, names in PEERS.items():
        try:
            peers = {peer.name: peer for peer in importlib.import_module(module).peers()}
        except ImportError as error:
            print(f"left out: {module.rpartition('.')[2]} ({error})")
            continue
        extra = (draw,) if "stochastic" in module else ()
        made |= {name: partial(run, peers[name].solve, extra) for name in names}
    return made


def yardstick(x: Tensor, eps: Tensor, times: list[float]) -> None:
    for _ in range(20):
        start = now()
        y = 0.9 * x + 0.3 * eps
        times.append(now() - start)
        del y


@click.command()
@click.option("--batch", default=64, show_default=True, help="States of 3 x 32 x 32.")
@click.option("--repeats", default=8, show_default=True)
@click.option("--prediction", default="epsilon", show_default=True, type=click.Choice(list(sdediff.PREDICTIONS)))
@click.option("--threads", default=1, show_default=True)
@click.option("--memory", is_flag=True, help="Count the tensors alive in a long solve.")
def main(batch: int, repeats: int, prediction: str, threads: int, memory: bool) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x, eps, output = (torch.randn(batch, 3, 32, 32, generator=generator) for _ in range(3))
    solvers = ours(x, prediction) | theirs(x)
    steps: dict[str, list[float]] = {name: [] for name in solvers}
    once: dict[str, list[float]] = {name: [] for name in solvers}
    base: list[float] = []
    with torch.no_grad():
        for name, solve in list(solvers.items()) * repeats:
            clock, start = Clock(output), now()
            try:
                solve(clock)
            except (FloatingPointError, ValueError, RuntimeError) as error:  # a field made of one tensor leads nowhere
                print(f"{name}: {error}") if not steps[name] else None
            end = now()
            steps[name] += np.diff(clock.asked)[SKIPPED:].tolist()
            once[name].append((clock.asked[0] - start) + (end - clock.asked[-1]))
            yardstick(x, eps, base)
    best, median = 1e6 * np.quantile(base, 0.1), 1e6 * np.median(base)
    print(f"a * x + b * eps: best {best:.0f} us, median {median:.0f} us; best is the lowest tenth throughout")
    print(f"{'solver':68} {'best':>7} {'median':>7} {'ratio':>7} {'ratio':>7} {'once':>7}")
    for name in solvers:
        if steps[name]:
            low, middle = 1e6 * np.quantile(steps[name], 0.1), 1e6 * np.median(steps[name])
            ratios = f"{low / best:7.2f} {middle / median:7.2f}"
            print(f"{name:68} {low:7.0f} {middle:7.0f} {ratios} {1e6 * min(once[name]):7.0f}")
    if memory:
        small = x[:2]
        for name, sampler in sdediff.SAMPLERS.items():
            if not sampler.adaptive:
                print(f"{name:20} tensors more at forward 20 and 1,000:", end=" ")
                model = sdediff.ScoreModel(Alive(output[:2]), sdediff.VPSDE(), prediction)
                sdediff.solve(model, small, name, steps=1000)


if __name__ == "__main__":
    main()
