"""The variational bounds: the chain's, from sampled steps and from all of them, and the continuous one."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import sdediff

from .show import Row, line

DRAWS = 64
CHOICES: dict[str, dict[str, Any]] = {
    "chain, posterior variance": {"variance": "posterior"},
    "chain, marginal variance": {"variance": "marginal"},
    "chain, levels decoder": {"variance": "posterior", "decoder": "levels"},
    "continuous time": {"steps": math.inf},
}
EDGES = (1, 3, 10, 30, 100, 300, 1000)
"""Steps of the chain between which the bound is summed up, for its profile."""


def bounded(model: sdediff.ScoreModel, images: Tensor, **options: Any) -> tuple[sdediff.Elbo, Row]:
    """The bound and its parts, bits a dimension."""
    begin = time.perf_counter()
    e = sdediff.elbo(model, images, batch_size=32, **options)
    seconds, bit = time.perf_counter() - begin, math.log(2.0) * e.dim
    row: Row = {"bits/dim": e.mean / bit, "+-": e.mean_standard_error / bit}
    parts = {"prior": e.prior, "diffusion": e.diffusion.sum(dim=0), "reconstruction": e.reconstruction}
    row |= {name: float(part.mean()) / bit for name, part in parts.items()}
    row |= {"draws (image)": float(e.standard_error.square().mean().sqrt()) / bit}
    return e, row | {"forwards": e.nfe, "s/image": seconds / len(images)}


def bounds(model: sdediff.ScoreModel, images: Tensor) -> list[Row]:
    """From sampled steps, every choice."""
    rows = []
    for name, options in CHOICES.items():
        _, row = bounded(model, images, draws=DRAWS, **options)
        rows.append({"bound": name} | row)
        line(rows[-1])
    return rows


def exactly(model: sdediff.ScoreModel, images: Tensor) -> list[Row]:
    """All steps of few images, where they come from, and how far the sampled ones were off.

    ``z`` is the root mean square of the distance between the two over their stated standard errors: about 1.
    """
    exact, row = bounded(model, images, samples=2)
    sampled, _ = bounded(model, images, draws=DRAWS)
    gap, error = sampled.total - exact.total, torch.hypot(sampled.standard_error, exact.standard_error)
    row["z of sampled"] = float((gap / error).square().mean().sqrt())
    row["of the mean"] = float(gap.mean()) / (math.log(2.0) * exact.dim)
    line({"bound": "all steps"} | row)
    return [row, *profile(exact)]


def profile(exact: sdediff.Elbo) -> list[Row]:
    """Shares of the steps, bits a dimension: row i of ``diffusion`` leaves instant i + 2."""
    rows, bit = list[Row](), math.log(2.0) * exact.dim
    costs = torch.cat([exact.reconstruction[None], exact.diffusion]).mean(dim=1) / bit
    rows.append({"steps": "1 (reconstruction)", "share": float(costs[0])})
    for low, high in pairwise(EDGES):
        rows.append({"steps": f"{low + 1} to {high}", "share": float(costs[low:high].sum())})
    for row in rows:
        line(row)
    return rows
