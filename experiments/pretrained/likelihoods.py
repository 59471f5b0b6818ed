"""Bits a dimension through the ODE, by dequantisation and by number of steps, each with its error budget."""

from __future__ import annotations

import math
import time
from typing import Any

from torch import Tensor, nn

import sdediff
from sdediff.data import bin_width

from .show import Row, line

STEPS, GRID, PROBES = 40, "logsnr", 2
"""These networks change fastest at their first instants, where a grid uniform in log-SNR has most of its nodes."""
LADDER = (("reference", (20, 40, 80)), (None, (20, 40, 80)))
FINEST = 160


def scored(model: sdediff.ScoreModel, images: Tensor, **options: Any) -> tuple[sdediff.BitsPerDim, float]:
    """The result and the seconds it took."""
    begin = time.perf_counter()
    result = sdediff.bits_per_dim(model, images, probes=PROBES, batch_size=32, **options)
    return result, time.perf_counter() - begin


def described(name: str, model: sdediff.ScoreModel, images: Tensor, **options: Any) -> Row:
    """Bits a dimension and what is stated of their error, two draws an image."""
    result, seconds = scored(model, images, dequantisation=name, samples=2, steps=STEPS, grid=GRID, **options)
    row: Row = {"dequantisation": name, "noise, bins": noise(model, result.t_from)}
    row |= {"bits/dim": result.mean, "+-": result.mean_standard_error}
    budget = result.error_budget.to_dict()
    row |= {f"{part} (mean)": value["mean"] for part, value in budget.items() if part != "population"}
    row |= {"forwards": result.nfe, "s/image": seconds / len(images)}
    line(row)
    return row


def noise(model: sdediff.ScoreModel, t: float) -> float:
    """Sigma over alpha at a time, in bins."""
    return math.exp(-float(model.sde.half_log_snr(t))) / bin_width(model.data)


def dequantisations(model: sdediff.ScoreModel, images: Tensor) -> list[Row]:
    """Each of the three."""
    return [described(name, model, images) for name in ("uniform", "truncated-normal", "decoder")]


def below(model: sdediff.ScoreModel, images: Tensor) -> list[Row]:
    """From half a bin of noise, far below the first instant.

    There the noise half of the first instant is held where the network is asked by labels; one that is asked by the
    time goes on being asked, by times that it has never seen. So that one is asked by labels, too.
    """
    start = float(model.sde.time(-math.log(0.5 * bin_width(model.data))))
    rows = [described("decoder", model, images, t_from=start)]
    if model.conditioning == "time":
        rows.append(described("decoder", by_label(model), images, t_from=start))
    return rows


def by_label(model: sdediff.ScoreModel) -> sdediff.ScoreModel:
    """The same network, asked with ``t = (k + 1) / N`` for the label k."""
    network = Relabelled(model.network, len(model.sde.instants) - 1)
    return sdediff.ScoreModel(
        network, model.sde, model.prediction, conditioning="label", moments=model.moments, data=model.data
    )


class Relabelled(nn.Module):
    """A network that knows times, for those who have labels."""

    def __init__(self, inner: nn.Module, steps: int) -> None:
        super().__init__()
        self.inner, self.steps = inner, steps

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.inner(x, (label + 1.0) / self.steps)


def convergence(model: sdediff.ScoreModel, images: Tensor) -> list[Row]:
    """The solver's stated error beside the distance to a far finer solve, by the same draw of the dequantisation.

    Probes differ between the solves: ``probes`` is what they make of an image's difference.
    """
    finest, _ = scored(model, images, steps=FINEST, grid=GRID)
    rows = []
    for grid, ladder in LADDER:
        for steps in ladder:
            result, seconds = scored(model, images, steps=steps, grid=grid)
            gap, budget = result.bits_per_dim - finest.bits_per_dim, result.error_budget.to_dict()
            both = float((result.probe_error.square() + finest.probe_error.square()).mean().sqrt())
            row: Row = {"grid": "default" if grid is None else grid, "steps": steps, "bits/dim": result.mean}
            stated = math.hypot(budget["solver"]["item"], budget["quadrature"]["item"])
            row |= {"stated": stated, "observed": float(gap.square().mean().sqrt())}
            rows.append(row | {"of the mean": float(gap.mean()), "probes": both, "s/image": seconds / len(images)})
            line(rows[-1])
    return rows
