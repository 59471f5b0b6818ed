r"""Encoding there and back: how far the data come back, and how far the latents are from the exact flow's.

Every way of encoding is given the same number of forwards, there and back together, on the digits mixture (or another
of ``problems.py``, with its exact model), t from 1e-3 to 1, float64 and float32. In a solve that is undone by iteration
the forwards of the iterations count. Latent error: RMS against DOP853 at 1e-10. Published schemes get the best for
their latents of four grids; sdediff's own solvers the grid they have by default.

    ddim, ode           N steps up, N steps down, each an ordinary solve
    adaptive            the adaptive default, at the tolerance that costs about as much
    implicit ddim       DDIM down; up, each of its steps undone by m fixed-point iterations (Pan et al. 2023)
    sweeps              Adams-Bashforth 4 down; up, all of its steps undone together by m sweeps over the nodes (Picard)
    edict               two coupled copies of DDIM, mixed by 0.93 (Wallace et al. 2023)
    belm                two states, O-BELM (Wang et al. 2024); with equal steps, leapfrog
    reversible heun     two states (Kidger et al. 2021)
    coupled euler, heun two states (McCallum & Foster 2024), from base methods of order 1 and 2, coupling 0.999
    reversible          sdediff's own: five states, order 4, damped

Expected, digits mixture (latent error; round trip float64, float32), at 20, 50 and 100 forwards:

    ddim                         1.7e-1   7.2e-2   3.7e-2    1e-1
    ode                          2.0e-2   3.3e-3   7.0e-4    2e-1 to 3e-2
    adaptive (38, 58, 88)        1.5e-1   5.6e-4   3.0e-5    4e-2 to 1e-4
    implicit ddim, 4             7.6e-1   8.3e-2   3.1e-2    5e-1 to 6e-2: long steps do not contract
    sweeps, 1                    9.9e-2   4.1e-2   2.1e-2    3e-2
    edict                        3.3      1.7      7.4e-1    1e-9; lost in float32: its copies part
    belm                         3.8e-1   1.1e-1   3.2e-2    1e-15, 1e-7; unstable on growing steps
    reversible heun              5.2e-2   7.4e-3   1.8e-3    1e-15, 1e-7
    coupled euler                1.3e-1   6.6e-2   3.7e-2    1e-15, 3e-7
    reversible                   2.3e-2   2.8e-3   1.7e-4    5e-14, 1e-5

Cost: 3 minutes on 1 core.

    python -m experiments.encoding [--problem digits-mixture] [--samples 256] [--out runs/encoding.png]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from torch import Tensor

import sdediff
from experiments.peers.measure import Problem, load
from experiments.problems import PROBLEMS
from experiments.reversible_schemes import SCHEMES, Field, Scheme
from sdediff.dynamics import to_x, to_y
from sdediff.samplers.reversible import Reversible, ReversibleBackward, ReversibleForward

FORWARDS = (20, 40, 50, 100, 200)
SCHEME_GRIDS = ("reference", "quadratic", "time", "logsnr")
TOLERANCES = (3e-1, 1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
Trip = tuple[int, Tensor, Tensor]
"""Forwards there and back, latents, data that came back."""


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def ordinary(problem: Problem, x: Tensor, solver: str, **options: float) -> Trip:
    up = sdediff.solve(problem.model, x, solver, t_from=problem.t_to, t_to=1.0, **options)
    down = sdediff.solve(problem.model, up.x, solver, t_from=1.0, t_to=problem.t_to, **options)
    return up.nfe + down.nfe, up.x, down.x


def reversible(problem: Problem, x: Tensor, steps: int) -> Trip:
    method = Reversible()
    up = sdediff.solve(problem.model, x, ReversibleForward(method), t_from=problem.t_to, t_to=1.0, steps=steps)
    grid = up.times.flip(0)
    down = sdediff.solve(problem.model, up.x, ReversibleBackward(method), t_from=1.0, t_to=problem.t_to, grid=grid)
    return up.nfe + down.nfe, up.x[:: method.states], down.x


def published(problem: Problem, x: Tensor, scheme: Scheme, forwards: int) -> Trip:
    return min((scheme_on(problem, x, scheme, forwards, grid) for grid in SCHEME_GRIDS), key=partial(miss, problem))


def miss(problem: Problem, trip: Trip) -> float:
    error = rms(trip[1] - problem.x)
    return error if math.isfinite(error) else math.inf


def scheme_on(problem: Problem, x: Tensor, scheme: Scheme, forwards: int, grid: str) -> Trip:
    times = sdediff.GRIDS[grid](problem.model.sde, scheme.steps(forwards), problem.t_to, 1.0)
    field = Field(problem.model, times)
    states = scheme.up(field, to_y(x, field.levels[0]))
    back = scheme.down(field, states)
    return field.frame.nfe, to_x(states[0], field.levels[-1]), to_x(back, field.levels[0])


def ways(problem: Problem) -> dict[str, list[Callable[[Tensor], Trip]]]:
    """Every way at every budget, as a function of the data."""
    table: dict[str, list[Callable[[Tensor], Trip]]] = {
        name: [partial(ordinary, problem, solver=name, steps=n // 2) for n in FORWARDS] for name in ("ddim", "ode")
    }
    table["adaptive"] = [partial(ordinary, problem, solver="ode", rtol=tolerance) for tolerance in TOLERANCES]
    for name, scheme in SCHEMES.items():
        paid = [n for n in FORWARDS if scheme.steps(n) > 1]
        table[name] = [partial(published, problem, scheme=scheme, forwards=n) for n in paid]
    table["reversible"] = [partial(reversible, problem, steps=n // 2) for n in FORWARDS]
    return table


Row = tuple[int, float, float, float]
"""Forwards, latent error, round trip in float64, in float32."""


def measure(problem: Problem) -> dict[str, list[Row]]:
    """Prints as it goes."""
    found: dict[str, list[Row]] = {}
    print(f"{problem.name}, {len(problem.x)} items; round trips relative\n")
    print(f"{'':28s} forwards   latent  round trip   float32")
    x = problem.reference
    for name, runs in ways(problem).items():
        for run in runs:
            try:
                forwards, latents, back = run(x)
                single = run(x.float())[2]
            except FloatingPointError:
                continue
            row = (forwards, rms(latents - problem.x), rms(back - x) / rms(x), rms(single.double() - x) / rms(x))
            found.setdefault(name, []).append(row)
            print(f"{name:28s} {row[0]:8d}  {row[1]:.1e}     {row[2]:.0e}     {row[3]:.0e}", flush=True)
    return found


def draw(found: dict[str, list[Row]], file: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharex=True, constrained_layout=True)
    for i, (name, rows) in enumerate(found.items()):
        own: dict[str, Any] = {"color": "black", "linewidth": 2.5} if name == "reversible" else {"color": f"C{i % 10}"}
        own["linestyle"] = "--" if i >= 10 and name != "reversible" else "-"
        for axis, column in zip(axes, (1, 2), strict=True):
            axis.loglog([row[0] for row in rows], [row[column] for row in rows], marker="o", label=name, **own)
    axes[0].set(title="error of the latents", xlabel="forwards, there and back", ylabel="RMS", ylim=(1e-6, 10.0))
    axes[1].set(title="round trip, float64", xlabel="forwards, there and back", ylim=(1e-16, 10.0))
    axes[1].legend(fontsize=7)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=list(PROBLEMS), default="digits-mixture")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "sdediff-peers", help="of references"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/encoding.png"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(measure(load(options.problem, options.samples, options.cache)), options.out)


if __name__ == "__main__":
    main()
