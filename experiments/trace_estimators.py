r"""Which estimator of the divergence errs least for the same number of products, and does the stated error cover it?

The path of an item is known, and so, here, is its Jacobian J at every node; a log-determinant is ``sum_k w_k tr J_k``.
Every estimator is given the same number of products ``J^T e`` an item. First table: RMS over items and probes of its
error in bits/dim, on 33 nodes, from the exact matrices (nothing is sampled but rows and, in "memory", probes).

    one probe               kept along the path (Grathwohl et al. 2019): the error is that of one matrix, the integral
    Gaussian                fresh at every node, normals
    signs                   fresh at every node, in pixels (Hutchinson 1990)
    signs, data's axes      in the axes of the data's covariance
    orthogonal rows         one random sign a coordinate for the path, times rows of a Hadamard matrix, one after
                            another along the nodes, none twice before all were used
    memory                  control variate J_k as kriging foretells it from the products of earlier nodes, with the
                            scale known
    Hutch++                 K - 1 of the products of a node for its largest directions, taken exactly, signs for the
                            rest (Meyer et al. 2021); the eigenvectors are exact and free here, so that it bounds
                            XTrace (Epperly et al. 2024) and sketches shared by nodes as well
    anchor                  J whole at one node (D products), signs in its eigenvectors at all others
    Gaussian control        what the data's own Gaussian makes of a probe, times sin(theta), taken off and given back
    placed                  signs, as many at a node as ``|w| sqrt(V)`` asks for, V the variance over the items; at
                            least 2 at each where the mean is 2
    placed, control         both; and with orthogonal rows; and the mean of two such of half the rows, whose shares
                            ``t`` of the coordinates state its error: ``1/2 sum_i (t_i - t_i')^2``

Second table: ``sdediff.log_likelihood`` itself, fresh signs with the control, placed by a rule for all data: RMS
against the exact trace on the same nodes, stated error, and how often the 95 % interval covers.

Expected, digits mixture, smoothed digits and a small network trained on digits (``--run``):

    products            33    66   132   264       33    66   132   264       33    66   132   264
    one probe         .126  .089  .063  .045     .060  .042  .030  .021     .142  .100  .071  .050
    signs             .034  .024  .017  .012     .029  .021  .015  .010     .042  .030  .021  .015
    memory            .033  .023  .015     -     .029  .021  .014     -     .051  .041  .035     -
    Hutch++              -  .026  .023  .018        -  .013  .006  .003        -  .029  .024  .019
    placed, control   .030  .021  .012  .008     .030  .021  .010  .007     .038  .027  .015  .010
    with orthogonal   .027  .017  .007  .003     .030  .020  .007  .004     .035  .023  .008  .004

Fresh signs are 2 to 4 times as good as a kept probe at equal cost. Control and placing together are worth another
factor of 1.4, which rounding (at least 2 at a node) takes away at 66. Orthogonal rows gain 1.5 at 2 D products and 2 or
more at 4 D, nothing far below D. Deflation loses where J has no few large directions, even with its vectors free, and
wins by 1.5 to 2 on data near their own points. Intervals cover 93 to 97 %, and more with one probe on 16 steps.
Cost: 2 minutes on 1 core, 3 more with ``--run``.

    python -m experiments.trace_estimators [--run runs/digits] [--items 16]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as File

import numpy as np
import torch
from torch import Tensor

import sdediff
from experiments.problems import PROBLEMS, digits
from sdediff.denoiser import Denoiser
from sdediff.dynamics import to_x, velocity

STEPS = 32
MEANS = (1, 2, 4, 8)
"""Products of a node, in the mean."""


def diagonal(a: Tensor) -> Tensor:
    return a.diagonal(dim1=-2, dim2=-1)


def off_diagonal(a: Tensor) -> Tensor:
    return a - torch.diag_embed(diagonal(a))


def squared(a: Tensor) -> Tensor:
    return a.square().sum(dim=(-2, -1))


@dataclass(frozen=True)
class Known:
    """Paths with their Jacobians' symmetric parts ``(n, B, D, D)``; angles and weights ``(n,)``; the data's moments."""

    angle: Tensor
    weight: Tensor
    J: Tensor
    variances: Tensor
    basis: Tensor

    @property
    def dim(self) -> int:
        return self.J.shape[-1]

    @cached_property
    def gaussian(self) -> Tensor:
        """The Jacobian of the data's own Gaussian, ``(n, D, D)``."""
        cos, sin = self.angle.cos()[:, None], self.angle.sin()[:, None]
        rates = sin * cos * (1.0 - self.variances) / (sin**2 + self.variances * cos**2)
        return (self.basis * rates[:, None, :]) @ self.basis.T

    @cached_property
    def controlled(self) -> Tensor:
        """J without the Gaussian control."""
        return self.J - (self.angle.sin()[:, None, None] * self.gaussian)[:, None]

    def bits(self, variance: Tensor) -> float:
        """RMS over items, bits/dim, of errors with these variances in nats ``(B,)``."""
        return math.sqrt(float(variance.mean())) / (self.dim * math.log(2.0))


def jacobians(model: Denoiser, x: Tensor) -> Known:
    """The default path from ``t_min`` to ``t_max`` and the matrices on it, by one product a dimension."""
    sde = model.sde
    times = sdediff.GRIDS["reference"](sde, STEPS, sde.t_min, sde.t_max)
    states = sdediff.solve(model, x, "ode", t_from=sde.t_min, t_to=sde.t_max, grid=times, path=True).path
    found, levels = [], sde.levels(times)
    eye = torch.eye(x[0].numel(), dtype=x.dtype)
    for state, level in zip(states, levels, strict=True):
        y = (state / level.scale).detach().requires_grad_()
        with torch.enable_grad():
            v = velocity(model(to_x(y, level), level), level)
        rows = []
        for part in eye.split(16):
            cotangents = part[:, None].expand(-1, len(x), -1).reshape(-1, *v.shape)
            (row,) = torch.autograd.grad(v, y, cotangents, retain_graph=True, is_grads_batched=True)
            rows.append(row.reshape(len(part), len(x), -1))
        J = torch.cat(rows).transpose(0, 1)
        found.append(0.5 * (J + J.mT))
    angle = torch.tensor([level.angle for level in levels], dtype=torch.float64)
    steps, moments = 0.5 * angle.diff(prepend=angle[:1], append=angle[-1:]), model.moments
    return Known(angle, steps[1:] + steps[:-1], torch.stack(found), moments.variances, moments.basis)


# ---- estimators: the variance of an item's log-determinant in nats, (B,), at K products a node ---------------------


def signs_of(known: Known, residual: Tensor, counts: Tensor | float) -> Tensor:
    """Fresh signs at every node, for what a control leaves."""
    weight = known.weight.square() / torch.as_tensor(counts, dtype=torch.float64)
    return 2.0 * (weight.expand(len(known.angle))[:, None] * squared(off_diagonal(residual))).sum(dim=0)


def kept(known: Known, mean: int) -> Tensor:
    integral = torch.einsum("k,kbij->bij", known.weight, known.J)
    return 2.0 * squared(off_diagonal(integral)) / mean


def gaussian(known: Known, mean: int) -> Tensor:
    return 2.0 * (known.weight.square()[:, None] * squared(known.J)).sum(dim=0) / mean


def signs(known: Known, mean: int) -> Tensor:
    return signs_of(known, known.J, mean)


def turned(known: Known, mean: int) -> Tensor:
    return signs_of(known, known.basis.T @ known.J @ known.basis, mean)


def controlled(known: Known, mean: int) -> Tensor:
    return signs_of(known, known.controlled, mean)


def places(known: Known, residual: Tensor, mean: int) -> Tensor:
    """As many at a node as the deviations ask for: rounded, the factor found by bisection on its logarithm."""
    deviation = known.weight.abs() * squared(off_diagonal(residual)).mean(dim=1).sqrt()
    low, high, total, least = -20.0, 20.0, mean * len(deviation), min(mean, 2)
    for _ in range(100):
        middle = 0.5 * (low + high)
        fits = float((math.exp(middle) * deviation).round().clamp(min=least).sum()) <= total
        low, high = (middle, high) if fits else (low, middle)
    return (math.exp(low) * deviation).round().clamp(min=least)


def placed(known: Known, mean: int) -> Tensor:
    return signs_of(known, known.J, places(known, known.J, mean))


def placed_controlled(known: Known, mean: int) -> Tensor:
    return signs_of(known, known.controlled, places(known, known.controlled, mean))


def deflated(known: Known, mean: int) -> Tensor | None:
    """Hutch++ with the eigenvectors for nothing: r products for r directions of J less its mean, one for the rest."""
    if mean == 1:
        return None
    centred = known.J - diagonal(known.J).mean(dim=-1)[..., None, None] * torch.eye(known.dim, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(centred)
    rank = values.abs().argsort(dim=-1, descending=True).argsort(dim=-1)
    rest = torch.where(rank < mean - 1, 0.0, values)
    return signs_of(known, (vectors * rest[..., None, :]) @ vectors.mT, 1)


def anchored(known: Known, mean: int) -> Tensor | None:
    """J whole in the middle of the nodes."""
    nodes = len(known.angle)
    left = (mean * nodes - known.dim) / (nodes - 1)
    if left < 1.0:
        return None
    vectors = torch.linalg.eigh(known.J[nodes // 2]).eigenvectors
    return signs_of(known, vectors.mT @ known.J @ vectors, left)


def remembered(known: Known, mean: int) -> Tensor | None:
    """Kriging in the log-SNR, entries of J alike: length 1, scale that of the off-diagonal of many items."""
    if mean > 4:
        return None  # large systems, nothing new
    generator = torch.Generator().manual_seed(0)
    nodes, items, dim = known.J.shape[:3]
    e = draw_signs(generator, (nodes, items, mean, dim))
    products = e @ known.J
    products = products - (e * products).mean(dim=-1, keepdim=True) * e  # signs do not see the diagonal's mean
    clock, scale = -known.angle.tan().log(), squared(off_diagonal(known.J)).mean(dim=1).sqrt()
    scale = scale.clamp(min=1e-3 * float(scale.max()))
    covariance = torch.exp(-0.5 * (clock[:, None] - clock) ** 2) * scale[:, None] * scale
    residual = known.J.clone()
    for k in range(1, nodes):
        probes, seen = (t[:k].transpose(0, 1).reshape(items, -1, dim) for t in (e, products))
        wide = covariance[:k, :k].repeat_interleave(mean, 0).repeat_interleave(mean, 1)
        gram = wide * (probes @ probes.mT) + 0.01 * dim * torch.diag(wide.diagonal())
        guess = (covariance[k, :k].repeat_interleave(mean)[:, None] * torch.linalg.solve(gram, seen)).mT @ probes
        residual[k] -= 0.5 * (guess + guess.mT)
    return signs_of(known, residual, mean)


def draw_signs(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0


def hadamard(least: int) -> Tensor:
    rows = torch.ones(1, 1, dtype=torch.float64)
    while len(rows) < least:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return rows


def orthogonal_on(known: Known, residual: Tensor, counts: Tensor, orders: int = 8) -> Tensor:
    """One random sign a coordinate for the whole path, times rows: all of it is one probe of one matrix.

    At a node the rows h multiply the entries of J by those of ``sum h h^T``; all rows together leave the diagonal.
    """
    generator = torch.Generator().manual_seed(0)
    rows, variance = hadamard(known.dim), torch.zeros(known.J.shape[1], dtype=torch.float64)
    for _ in range(orders):
        turns = [torch.randperm(len(rows), generator=generator) for _ in range(int(counts.sum()) // len(rows) + 1)]
        nodes = torch.cat(turns)[: int(counts.sum())].split([int(count) for count in counts])
        grams = [rows[chosen, : known.dim].T @ rows[chosen, : known.dim] / len(chosen) for chosen in nodes]
        whole = torch.einsum("k,kij,kbij->bij", known.weight, torch.stack(grams), residual)
        variance += 2.0 * squared(off_diagonal(whole)) / orders
    return variance


def orthogonal(known: Known, mean: int) -> Tensor:
    return orthogonal_on(known, known.J, torch.full((len(known.angle),), mean))


def orthogonal_placed(known: Known, mean: int) -> Tensor:
    return orthogonal_on(known, known.controlled, places(known, known.controlled, mean))


def replicated(known: Known, mean: int) -> Tensor | None:
    """The mean of two of half the rows, whose difference states the error without bias."""
    if mean == 1:
        return None
    return orthogonal_on(known, known.controlled, (places(known, known.controlled, mean) / 2).floor()) / 2.0


ESTIMATORS: dict[str, Callable[[Known, int], Tensor | None]] = {
    "one probe": kept,
    "Gaussian": gaussian,
    "signs": signs,
    "signs, data's axes": turned,
    "orthogonal rows": orthogonal,
    "memory": remembered,
    "Hutch++, free vectors": deflated,
    "anchor": anchored,
    "Gaussian control": controlled,
    "placed": placed,
    "placed, control": placed_controlled,
    "orthogonal, placed, ctl": orthogonal_placed,
    "two replicates of it": replicated,
}


# ---- tables --------------------------------------------------------------------------------------------------


def compare(name: str, model: Denoiser, x: Tensor) -> None:
    known = jacobians(model, x)
    print(f"\n{name}, {len(x)} items, bits/dim; products an item")
    print(f"{'':24s}" + "".join(f"{mean * (STEPS + 1):8d}" for mean in MEANS))
    for estimator, variance in ESTIMATORS.items():
        found = [variance(known, mean) for mean in MEANS]
        print(
            f"{estimator:24s}" + "".join(f"{'-' if v is None else f'{known.bits(v):.4f}':>8s}" for v in found),
            flush=True,
        )


def cover(name: str, model: Denoiser, x: Tensor, draws: int) -> None:
    bits = x[0].numel() * math.log(2.0)
    print(f"\n{name}: log_likelihood, {draws} draws of {len(x)} items, bits/dim")
    print("steps  probes   RMS    stated  covered")
    for steps in (16, 40):
        exact = sdediff.log_likelihood(model, x, trace="exact", steps=steps).log_prob
        for probes in (1, 2, 4):
            runs = [
                sdediff.log_likelihood(model, x, trace="hutchinson", steps=steps, probes=probes, draw=draw)
                for draw in range(draws)
            ]
            errors = torch.stack([run.log_prob - exact for run in runs])
            stated = torch.stack([run.standard_error for run in runs])
            inside = 100.0 * float((errors.abs() <= 1.96 * stated).double().mean())
            rms, claim = (float(v.square().mean().sqrt()) / bits for v in (errors, stated))
            print(f"{steps:5d} {probes:7d}  {rms:.4f}  {claim:.4f} {inside:7.1f} %", flush=True)


def trained_items(model: Denoiser, items: int) -> Tensor:
    """Digits with their grey levels filled in."""
    rng = np.random.default_rng(11)
    x = digits()[rng.choice(1797, size=items, replace=False)]
    return torch.from_numpy(x + (rng.random(x.shape) - 0.5) / 8.0).reshape(items, *model.data.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=File, help="a trained run on the digits, compared as well")
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--draws", type=int, default=4, help="of probes for the coverage")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("digits-mixture", "smoothed-digits"):
        law = PROBLEMS[name]()
        model, x = law.model(sdediff.VPSDE()), law.sample(options.items, seed=11)
        compare(name, model, x)
        cover(name, model, law.sample(4 * options.items, seed=12), options.draws)
    if options.run is not None:
        model = sdediff.load(options.run).double().eval().requires_grad_(False)
        compare(str(options.run.name), model, trained_items(model, options.items))


if __name__ == "__main__":
    main()
