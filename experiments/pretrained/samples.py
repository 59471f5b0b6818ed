"""Samples by five solvers in one picture, and round trips."""

from __future__ import annotations

import io
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import sdediff
from sdediff.data import bin_width, to_values

from .show import Row, line

SOLVERS = (("ode", 20), ("ancestral", 1000), ("ddim", 50), ("dpm++2m", 20), ("sde", 50))
TRIPS = (("reversible", 20), ("reversible", 50), ("ode", 20), ("ode", 50), ("ode", 200))
COLUMNS = 12


def drawn(model: sdediff.ScoreModel) -> tuple[dict[str, Tensor], list[Row]]:
    """Samples by every solver, from the same starts; and what they took."""
    images, rows = {}, []
    for solver, steps in SOLVERS:
        begin = time.perf_counter()
        shape = (COLUMNS, *model.data.shape)
        start = model.sde.prior_sample(shape, moments=model.moments, seed=0)
        s = sdediff.solve(model, start, solver, t_from=model.sde.t_max, t_to=0.0, steps=steps, seed=0)
        images[f"{solver}, {s.nfe} forwards"] = (s.x - model.data.low) / (model.data.high - model.data.low)
        rows.append({"solver": solver, "forwards": s.nfe, "s/image": (time.perf_counter() - begin) / COLUMNS})
        line(rows[-1])
    return images, rows


def trips(model: sdediff.ScoreModel, images: Tensor) -> list[Row]:
    """Images to latents and back, in float32: the distance in grey levels, and what the latents look like.

    ``encode`` and ``decode`` go down to ``t_min``, below the chain's first instant, where no network was trained; the
    last rows stop at that instant.
    """
    x, rows = to_values(images, model.data, dtype=torch.float32), list[Row]()
    for solver, steps in TRIPS:
        z = sdediff.encode(model, x, solver, steps=steps)
        y = sdediff.decode(model, z, solver, steps=steps)
        rows.append({"solver": solver, "steps": steps} | _trip(model, x, z if z.shape == x.shape else z[:, 0], y))
        line(rows[-1])
    first, last = float(model.sde.instants[1]), model.sde.t_max
    for steps in (20, 50):
        z = sdediff.solve(model, x, "ode", t_from=first, t_to=last, steps=steps).x
        y = sdediff.solve(model, z, "ode", t_from=last, t_to=first, steps=steps).x
        rows.append({"solver": "ode, from the first instant", "steps": steps} | _trip(model, x, z, y))
        line(rows[-1])
    return rows


def _trip(model: sdediff.ScoreModel, x: Tensor, z: Tensor, y: Tensor) -> Row:
    off = ((y - x) / bin_width(model.data)).abs()
    figures = {
        "levels off, RMS": off.square().mean().sqrt(),
        "at most": off.max(),
        "latents' RMS": z.square().mean().sqrt(),
    }
    return {name: float(value) for name, value in figures.items()}


def picture(blocks: dict[str, dict[str, Tensor]], path: Path) -> None:
    """A block a model, a row a solver."""
    figure = Figure(figsize=(5.2 * len(blocks) + 0.8, 2.5), layout="constrained", facecolor="white")
    known: list[str] = []
    for axes, (title, rows) in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks.items(), strict=True):
        tiles = torch.stack(list(rows.values())).clamp(0.0, 1.0)[:, :, 0]  # (solvers, columns, side, side)
        framed = torch.nn.functional.pad(1.0 - tiles, (1, 1, 1, 1), value=0.85)
        side = framed.shape[-1]
        axes.imshow(framed.transpose(1, 2).flatten(0, 1).flatten(1, 2).numpy(), cmap="gray", vmin=0.0, vmax=1.0)
        labels = [] if known == list(rows) else list(rows)  # the same solvers are named once
        axes.set_yticks([(i + 0.5) * side for i in range(len(labels))], labels, fontsize=9)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=10)
        known = list(rows)
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=150)
    Image.open(drawing).convert("L").save(path, "PNG", optimize=True)  # grey: a fifth of the bytes
