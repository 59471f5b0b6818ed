"""Where to draw the noise levels of the continuous-time bound, and what noise it leaves: one item's error, measured.

Four ways to place M levels (independent; one a stratum; two a stratum, which is what the library does, for its
difference tells the error; a lattice with one random rotation), laws of the levels (uniform in the process's time or in
log-SNR, the library's own, and one in proportion to the measured error of a pilot run, the best a law can do), with and
without the control variate. Problem: the 64-D digits mixture with its exact score, or a run trained on the digits; for
that also the bound itself, by the noise at which it ends and the decoder.

    python experiments/elbo_times.py                     # the mixture
    python experiments/elbo_times.py --run runs/digits --items 8 --copies 32

Expected on the mixture at M = 32, bits/dim: 1.35 for independent levels uniform in log-SNR, 0.34 stratified, 0.06 with
the library's law and control, where a pilot's law gives 0.05. How strata are drawn matters little. On a trained run
1.6, 0.34, 0.12 and 0.10; its bound is least where the noise is 0.4 bins wide (1.79 bits/dim; 7.2 from t_min), and the
decoder by levels is the sharper one below a quarter of a bin. Cost: half a minute on one core, two for the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import click
import torch
from problems import digits, digits_mixture
from torch import Tensor

import sdediff
from sdediff.data.levels import bin_width, to_levels
from sdediff.gaussian import GaussianErrors, Moments
from sdediff.likelihood.bound.stratified import CELLS, LAWS, LevelDistribution
from sdediff.numerics import expand, sum_features

Design = Callable[[int, int, torch.Generator], Tensor]
"""``(M, n, generator)`` to uniforms ``(M, n)``."""


def _uniform(draws: int, count: int, rng: torch.Generator) -> Tensor:
    return torch.rand(draws, count, generator=rng, dtype=torch.float64)


def _index(draws: int) -> Tensor:
    return torch.arange(draws, dtype=torch.float64)[:, None]


DESIGNS: dict[str, Design] = {
    "independent": _uniform,
    "stratified": lambda m, n, rng: (_index(m) + _uniform(m, n, rng)) / m,
    "pairs": lambda m, n, rng: (_index(m).div(2, rounding_mode="floor") + _uniform(m, n, rng)) * 2.0 / m,
    "lattice": lambda m, n, rng: (_index(m) / m + _uniform(1, n, rng)) % 1.0,
}


def in_time(model: sdediff.ScoreModel, edges: Tensor) -> Tensor:
    """The law that is uniform in the process's own time."""
    return model.sde.time(edges).diff()


class Problem:
    """A model, items, and the integrand at any level.

    Args:
        model: the denoiser.
        x0: items, ``(B, *shape)``.
        control: errors to set off.
    """

    def __init__(self, model: sdediff.ScoreModel, x0: Tensor, control: GaussianErrors, seed: int) -> None:
        self.model, self.x0, self.control = model, x0, control
        self.rng = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def values(self, half_log_snr: Tensor) -> Tensor:
        """The integrand with fresh noise at one level an item, ``(B,)``, less what is known of it."""
        level = self.model.sde.level_at(half_log_snr)
        eps = torch.randn(self.x0.shape, generator=self.rng, dtype=self.x0.dtype)
        state = expand(level.alpha, self.x0) * self.x0 + expand(level.sigma, self.x0) * eps
        error = sum_features((self.model(state, level).eps - eps).double().square())
        return error - self.control.squared_error(eps, half_log_snr)


def pilot(problem: Problem, edges: Tensor, points: int = 48) -> Tensor:
    """Masses in proportion to the root mean square of the integrand, interpolated from some levels."""
    at = torch.linspace(float(edges[0]), float(edges[-1]), points, dtype=torch.float64)
    rms = torch.stack([problem.values(lam.expand(len(problem.x0))).square().mean().sqrt() for lam in at])
    position = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS * (points - 1)
    left = position.floor().long()
    return rms[left] + (position - left) * (rms[left + 1] - rms[left])


def spread(problem: Problem, places: LevelDistribution, design: Design, draws: int, items: int) -> float:
    """Root mean square over items of the standard deviation of one item's estimate, nats."""
    copies = len(problem.x0) // items
    u = design(draws, len(problem.x0), torch.Generator().manual_seed(7))
    pairs = zip(places.half_log_snr(u), places.density(u), strict=True)
    total = torch.stack([problem.values(lam) / density for lam, density in pairs])
    return float(total.mean(dim=0).reshape(copies, items).var(dim=0).mean().sqrt())


def load(run: str | None, items: int) -> tuple[sdediff.ScoreModel, Tensor]:
    """A model and items in its units."""
    if run is None:
        mixture = digits_mixture()
        return mixture.model(sdediff.VPSDE()), mixture.sample(items, seed=3)
    model = sdediff.load(run)
    chosen = torch.from_numpy(digits()[:items]).float()
    return model, chosen.reshape(items, *model.data.shape)


def ends(model: sdediff.ScoreModel, x0: Tensor, draws: int) -> None:
    """The bound on integers by the noise at which it ends, in bins, and the decoder; the item's error in brackets."""
    width, bits = bin_width(model.data), 1.0 / (math.log(2.0) * x0[0].numel())
    click.echo("bits/dim by the first noise in bins (standard error over items)")
    for noise in (0.02, 0.1, 0.2, 0.4, 0.6, 0.8):
        times = [float(model.sde.time(-math.log(noise * width))), model.sde.t_max]
        line = f"{noise:5.2f}"
        for decoder in ("discretised", "levels"):
            options = {"steps": math.inf, "times": times, "decoder": decoder, "draws": draws}
            result = sdediff.elbo(model, to_levels(x0, model.data), **options)
            line += f"   {decoder} {result.mean * bits:.3f} ({result.mean_standard_error * bits:.3f})"
        click.echo(line)


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--run", default=None, help="A trained run on the digits; the mixture without.")
@click.option("--draws", default=32, help="Levels an item.")
@click.option("--items", default=16)
@click.option("--copies", default=64, help="Estimates of each item.")
def main(run: str | None, draws: int, items: int, copies: int) -> None:
    torch.set_num_threads(1)
    model, few = load(run, items)
    sde, x0 = model.sde, few.repeat(copies, *(1,) * (few.ndim - 1))
    moments = Moments.unit(few.shape[1:]) if model.moments is None else model.moments
    first, last = (float(sde.half_log_snr(t)) for t in (sde.t_min, sde.t_max))
    edges = torch.linspace(first, last, CELLS + 1, dtype=torch.float64)
    bits = 1.0 / (math.log(2.0) * few[0].numel())
    click.echo(f"standard deviation of one item's bound, bits/dim, {draws} levels an item")
    click.echo(f"{'control':9s} {'law':8s}" + "".join(f"{name:>13s}" for name in DESIGNS))
    for name, control in (("none", GaussianErrors.none(x0)), ("moments", GaussianErrors(x0, moments))):
        problem = Problem(model, x0, control, seed=1)
        laws = {"time": in_time(model, edges), **{law: rule(edges, moments) for law, rule in LAWS.items()}}
        laws["pilot"] = pilot(problem, edges)
        for law, mass in laws.items():
            places = LevelDistribution(edges, mass)
            figures = [spread(problem, places, design, draws, items) * bits for design in DESIGNS.values()]
            click.echo(f"{name:9s} {law:8s}" + "".join(f"{figure:13.4f}" for figure in figures))
    if run is not None:
        ends(model, load(run, 64)[1], draws)


if __name__ == "__main__":
    main()
