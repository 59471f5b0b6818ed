"""The discrete DDPM chain and its continuous limit, measured: one figure of errors against the number of steps N.

Left, the chain itself tends to the linear-beta VP-SDE. Middle, ancestral sampling of the chain ends in the law in which
the reverse SDE ends: mean and covariance on Gaussian data, and the density of a two-mode mixture on a line. Right, what
hangs on single paths, and the bound: ancestral and Euler-Maruyama on the same noise, DDIM against the probability-flow
ODE, and the bound on -log p against the truth. Every line should have slope 1 (the legend gives the fits).

There is no Monte-Carlo error in laws and bound: on Gaussian data a sampler is an affine map, read off its ``sample``
with unit vectors, and the bound's terms are quadratic, so that sign patterns average to the expectation; on the line
the density is carried by the kernel of each step.

    python experiments/ddpm_limit.py              # writes docs/pictures/ddpm_limit.png and prints the slopes

Expected: all slopes within 0.9 to 1.1. Cost: about a minute on one core.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import sdediff
from sdediff.gaussian import GaussianErrors
from sdediff.likelihood.bound.chain import BoundBatch, ChainSteps, chain_terms, reverse_variance
from sdediff.likelihood.discrete.decoder import density_decoder

GAUSSIAN = sdediff.analytic.Gaussian((0.7, -0.4), torch.tensor([[1.3, 0.5], [0.5, 0.4]], dtype=torch.float64))
LINE = sdediff.analytic.GaussianMixture(((-1.0,), (0.8,)), (0.09, 0.16), (0.4, 0.6))
LIMIT = sdediff.VPSDE()
DENSITY_TIME = 1.0 / 32.0


class Curve(NamedTuple):
    """Errors at several numbers of steps."""

    label: str
    sizes: list[int]
    errors: list[float]

    @property
    def slope(self) -> float:
        """The order, fitted to the three finest points."""
        return -float(np.polyfit(np.log(self.sizes[-3:]), np.log(self.errors[-3:]), 1)[0])


class GivenNoise:
    """A noise source that returns the given normals, one a step."""

    def __init__(self, draws: list[Tensor]) -> None:
        self.draws = draws

    def normal(self, step: int, stage: int = 0) -> Tensor:
        return self.draws[step]


# ---- the chain -----------------------------------------------------------------------------------------------


def chain_curves() -> list[Curve]:
    """Relative distance of the linear chain's quantities from the SDE's."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    quantities: dict[str, Callable[[sdediff.SDE, int], float]] = {
        r"$\log\bar\alpha(1)$": lambda sde, _: 2.0 * float(sde.log_alpha(1.0)),
        r"posterior variance $\tilde\beta(1/2)$": lambda sde, n: (
            float(sde.bridge(one, zero, 0.5, 0.5 - 1.0 / n)[1]) ** 2
        ),
        "prior term $L_T$": lambda sde, _: -0.5 * math.log1p(-(float(sde.alpha(1.0)) ** 2)),
    }
    sizes = [2**k for k in range(6, 13)]
    return [
        Curve(label, sizes, [abs(value(sdediff.DDPM.linear(n), n) / value(LIMIT, n) - 1.0) for n in sizes])
        for label, value in quantities.items()
    ]


# ---- ancestral sampling --------------------------------------------------------------------------------------


def covariance_error(solver: str, steps: int) -> float:
    """Distance of the covariance of x_0 from the data's when the chain is run through from its exact start."""
    chain = sdediff.DDPM.linear(steps)
    alpha, sigma = chain.alpha(1.0), chain.sigma(1.0)
    eye = torch.eye(2, dtype=torch.float64)
    rows = 3 + 2 * steps  # zero, two unit starts, and two unit normals for each step
    x = torch.zeros(rows, 2, dtype=torch.float64)
    x[1:3] = eye
    draws = []
    for step in range(steps):
        z = torch.zeros(rows, 2, dtype=torch.float64)
        z[3 + 2 * step : 5 + 2 * step] = eye
        draws.append(z)
    sampler, model = sdediff.SAMPLERS[solver], GAUSSIAN.model(chain)
    end = sampler.sample(model, chain, x, chain.instants.flip(0), GivenNoise(draws)).x
    response = end[1:] - end[0]
    start = alpha**2 * GAUSSIAN.covariance + sigma**2 * eye
    covariance = response[:2].T @ start @ response[:2] + response[2:].T @ response[2:]
    return float((covariance - GAUSSIAN.covariance).norm())


def density_error(solver: str, steps: int) -> float:
    """Total variation between the chain's density at ``DENSITY_TIME`` and the limit's."""
    chain = sdediff.DDPM.linear(steps)
    sampler, model = sdediff.SAMPLERS[solver], LINE.model(chain)
    times = chain.instants[round(DENSITY_TIME * steps) :].flip(0)
    x = torch.linspace(-5.0, 5.0, 401, dtype=torch.float64)[:, None]
    width = float(x[1] - x[0])
    density = LINE.log_prob(x, chain, 1.0).exp()
    for i in range(len(times) - 1):
        still, moved = (
            sampler.sample(model, chain, x, times[i : i + 2], GivenNoise([torch.full_like(x, z)])).x for z in (0.0, 1.0)
        )
        std = float((moved - still).mean())
        density = (
            torch.exp(-0.5 * ((x - still.T) / std).square()) @ density * (width / (std * math.sqrt(2.0 * math.pi)))
        )
    return 0.5 * width * float((density - LINE.log_prob(x, LIMIT, DENSITY_TIME).exp()).abs().sum())


def ancestral_curves() -> list[Curve]:
    lengths, shorter = [32, 64, 128, 256, 512], [32, 64, 128, 256]
    return [
        Curve("covariance, posterior variance", lengths, [covariance_error("ancestral", n) for n in lengths]),
        Curve("covariance, marginal variance", lengths, [covariance_error("ancestral-marginal", n) for n in lengths]),
        Curve("mixture density, posterior", shorter, [density_error("ancestral", n) for n in shorter]),
        Curve("mixture density, marginal", shorter, [density_error("ancestral-marginal", n) for n in shorter]),
    ]


# ---- paths and the bound -------------------------------------------------------------------------------------


def path_curves() -> list[Curve]:
    """RMS distances between ends on common starts (and common noise), on equal steps in log-SNR."""
    model = GAUSSIAN.model(LIMIT)
    x = LIMIT.prior_sample((100, 2), moments=model.moments, dtype=torch.float64)
    sizes = [32, 64, 128, 256, 512]

    def ends(solver: str) -> list[Tensor]:
        return [sdediff.solve(model, x, solver, t_to=1e-3, grid="logsnr", steps=n, seed=1).x for n in sizes]

    flow = sdediff.solve(model, x, "ode", t_to=1e-3, rtol=1e-10).x
    pairs = zip(ends("ancestral"), ends("euler-maruyama"), strict=True)
    return [
        Curve("ancestral $-$ Euler-Maruyama, same noise", sizes, [rms(one - other) for one, other in pairs]),
        Curve("DDIM $-$ probability-flow ODE", sizes, [rms(end - flow) for end in ends("ddim")]),
    ]


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def bound_curve() -> Curve:
    """Gap of the expected bound (marginal variance) to the entropy of Gaussian data, nats."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    x0 = GAUSSIAN.mean + signs[:, :2] @ torch.linalg.cholesky(GAUSSIAN.covariance).T  # with the moments of the data
    entropy = 0.5 * float(torch.logdet(2.0 * math.pi * math.e * GAUSSIAN.covariance))
    sizes, errors = [32, 64, 128, 256, 512], []
    for n in sizes:
        chain = sdediff.DDPM.linear(n)
        levels = chain.levels(chain.instants[1:])
        items = BoundBatch(x0, GivenNoise([signs[:, 2:]] * n), density_decoder(x0), GaussianErrors.none(x0))
        diffusion, reconstruction = chain_terms(
            GAUSSIAN.model(chain), items, ChainSteps(levels, reverse_variance("marginal")), 0
        )
        total = GAUSSIAN.moments.kl(x0, levels[-1]) + diffusion.sum(dim=0) + reconstruction
        errors.append(float(total.mean()) - entropy)
    return Curve("bound $-$ truth, nats", sizes, errors)


# ---- the figure ----------------------------------------------------------------------------------------------


def draw(axes: Axes, title: str, ylabel: str, curves: list[Curve]) -> None:
    for curve, marker in zip(curves, "osD^", strict=False):
        label = f"{curve.label}: {curve.slope:.2f}"
        axes.plot(curve.sizes, curve.errors, marker=marker, markersize=4, linewidth=1.3, label=label)
    sizes = np.array([curves[0].sizes[0], max(max(curve.sizes) for curve in curves)], dtype=float)
    low = min(
        error * size / sizes[0] for curve in curves for size, error in zip(curve.sizes, curve.errors, strict=True)
    )
    axes.plot(sizes, 0.45 * low * sizes[0] / sizes, "k:", linewidth=1.0, label="slope 1")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_yscale("log")
    axes.set(title=title, xlabel="steps N", ylabel=ylabel)
    axes.grid(True, which="major", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower left", title="order in 1/N", title_fontsize=8, alignment="left")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom * (bottom / top) ** 0.45, top)  # room for the legend


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/pictures/ddpm_limit.png"), show_default=True)
def main(out: Path) -> None:
    """Measure the convergences, print the slopes and draw the figure."""
    panels = [
        ("The chain tends to the VP-SDE", "relative error", chain_curves()),
        ("Ancestral sampling tends to the reverse SDE", "error of the law of the result", ancestral_curves()),
        ("Paths and the bound", "RMS distance (bound: nats)", [*path_curves(), bound_curve()]),
    ]
    for title, _, curves in panels:
        print(title)
        for curve in curves:
            print(f"  {curve.label:45} {curve.slope:5.2f}   " + " ".join(f"{error:.1e}" for error in curve.errors))
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, 3), panels, strict=True):
        draw(axes, *panel)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
