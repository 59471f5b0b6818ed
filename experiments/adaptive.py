"""Forwards for a given error: the adaptive solver against dopri5, each at the tolerance that gives it.

On the three exact-score problems (variance preserving, 256 starts of N(0, I), end t = 1e-3, float64) every solver is
run over tolerances from 10 to 1e-8; the error is the RMS distance to the exact flow's end. dopri5 (torchdiffeq) is
bounded to the interval, controls the worst sample, and runs in three clocks: the angle (our entry ``"dopri5"``),
lambda and t; at every error it is given the best of the three, and any luck (the lower envelope). The fixed-step
``"ode"`` is there for orientation. A table, and one figure, ``adaptive.png``.

    python experiments/adaptive.py --out runs/adaptive

Expected: 0.36 to 0.6 times dopri5's forwards at errors from 1e-1 to 1e-5 (0.63 on the ring at 1e-1), 0.51 in geometric
mean; the error 0.2 to 1 times the tolerance from 1e-1 down, but for samples of the nearly singular problem that end in
another mode at tolerances above 1e-3. Cost: ten minutes on a core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
import torch
import torchdiffeq
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import sdediff
from experiments.peers.measure import Problem, load
from sdediff.dynamics import Frame, drift
from sdediff.types import Level

mpl.use("Agg")
from matplotlib import pyplot as plt

Run = Callable[[Problem, float], tuple[Tensor, int]]
Points = list[tuple[float, int, float]]
TARGETS = 10.0 ** -np.arange(1.0, 5.01, 0.5)
TOLERANCES = 10.0 ** -np.arange(-1.0, 8.01, 0.5)
STEPS = (5, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96)


def named(name: str, problem: Problem, tolerance: float) -> tuple[Tensor, int]:
    solution = sdediff.solve(problem.model, problem.x, name, t_to=problem.t_to, rtol=tolerance)
    return solution.x, solution.nfe


def fixed(problem: Problem, steps: float) -> tuple[Tensor, int]:
    solution = sdediff.solve(problem.model, problem.x, "ode", t_to=problem.t_to, steps=int(steps))
    return solution.x, solution.nfe


def by_lambda(frame: Frame, level: Level, y: Tensor) -> Tensor:
    return drift(y, frame(y, level), level, 0.0)


def by_time(frame: Frame, level: Level, y: Tensor) -> Tensor:
    """``- dx / dt`` as in the textbook: ``f x + g^2 eps / (2 sigma)``."""
    sde, t = frame.sde, level.t
    return -(sde.drift(y, t) + 0.5 * sde.diffusion(t) ** 2 / level.sigma * frame(y, level).eps)


def dopri5(clock: str, problem: Problem, tolerance: float) -> tuple[Tensor, int]:
    """In a clock of ours that rises while we denoise; the field is asked within the interval alone."""
    sde, frame = problem.model.sde, Frame(problem.model, problem.model.sde)
    start, end = sde.levels([sde.t_max, problem.t_to])
    fields = {"lambda": by_lambda, "t": by_time}
    low, high = (start.half_log_snr, end.half_log_snr) if clock == "lambda" else (-start.t, -end.t)

    def field(w: Tensor, y: Tensor) -> Tensor:
        inside = min(max(float(w), low), high)
        level = frame.at_half_log_snr(inside) if clock == "lambda" else sde.levels([-inside])[0]
        return fields[clock](frame, level, y)

    times = torch.tensor([low, high], dtype=torch.float64)
    options = {"norm": lambda e: e.square().mean(dim=1).sqrt().max(), "step_t": times[-1:], "dtype": torch.float64}
    path = torchdiffeq.odeint(field, problem.x, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options)
    return path[-1], frame.nfe


def measure(run: Run, problem: Problem, settings: tuple[float, ...]) -> Points:
    """Setting, forwards and error of every run."""
    found: Points = []
    for setting in settings:
        with torch.no_grad():
            x, forwards = run(problem, setting)
        found.append((setting, forwards, float((x - problem.reference).square().mean().sqrt())))
        if found[-1][2] < 0.3 * TARGETS[-1]:
            break
    return found


def forwards_at(points: Points, target: float) -> float:
    """Forwards at which the error is reached: log-log interpolation on the lower envelope."""
    best: list[tuple[float, float]] = []
    for _, forwards, error in sorted(points, key=lambda point: point[1:]):
        if not best or error < best[-1][1]:
            best.append((forwards, error))
    forwards, errors = np.log(np.array(best)).T
    if np.log(target) < errors[-1]:
        return float("nan")
    return float(np.exp(np.interp(-np.log(target), -errors, forwards)))


def report(name: str, found: dict[str, Points]) -> list[float]:
    """Print a problem's tables; the ratios at the targets."""
    print(f"\n{name}\n{'tolerance':>10} {'forwards':>9} {'error':>9} {'error/tolerance':>16}")
    for tolerance, forwards, error in found["adaptive"]:
        print(f"{tolerance:10.1e} {forwards:9} {error:9.1e} {error / tolerance:16.2f}")
    columns = [key for key in found if key != "adaptive"]
    print(f"{'error':>10} {'adaptive':>9} " + " ".join(f"{key:>14}" for key in columns) + f" {'ratio':>7}")
    ratios = []
    for target in TARGETS:
        ours, *theirs = (forwards_at(found[key], target) for key in ("adaptive", *columns))
        ratios.append(ours / np.nanmin([n for key, n in zip(columns, theirs, strict=True) if key != "ode"]))
        print(f"{target:10.1e} {ours:9.1f} " + " ".join(f"{n:14.1f}" for n in theirs) + f" {ratios[-1]:7.2f}")
    return ratios


@click.command()
@click.option("--samples", default=256, show_default=True, help="Starts.")
@click.option("--cache", type=Path, default=Path("runs/peers"), show_default=True, help="Folder of the references.")
@click.option("--out", type=Path, default=Path("runs/adaptive"), show_default=True, help="Folder of the figure.")
def main(samples: int, cache: Path, out: Path) -> None:
    runs: dict[str, Run] = {
        "adaptive": partial(named, "adaptive"),
        "dopri5 angle": partial(named, "dopri5"),
        "dopri5 lambda": partial(dopri5, "lambda"),
        "dopri5 t": partial(dopri5, "t"),
        "ode": fixed,
    }
    names, ratios = ("digits-mixture", "smoothed-digits", "ring"), list[float]()
    figure, axes = plt.subplots(1, len(names), figsize=(12, 4), sharey=True, layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        problem = load(name, samples, cache)
        found = {key: measure(run, problem, STEPS if key == "ode" else tuple(TOLERANCES)) for key, run in runs.items()}
        ratios += report(name, found)
        for key, points in found.items():
            _, forwards, errors = zip(*points, strict=True)
            axis.loglog(forwards, errors, marker=".", label=key)
        axis.set(title=name, xlabel="forwards")
    axes[0].set(ylabel="RMS error")
    axes[0].legend()
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "adaptive.png", dpi=120)
    mean = np.exp(np.nanmean(np.log(ratios)))
    print(f"\nratio to the best dopri5: geometric mean {mean:.2f}, largest {np.nanmax(ratios):.2f}")


if __name__ == "__main__":
    main()
