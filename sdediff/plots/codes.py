"""Pictures of autoencoders: reconstructions, the codes of data beside their prior, rate and distortion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdediff.data.levels import to_values
from sdediff.numerics import flatten
from sdediff.plots import is_image, sequences
from sdediff.plots.canvas import INK, PALE, new_figure, save_figure, single_axes
from sdediff.types import DataInfo

_PRIOR = "#b3402a"
_MOST = 5_000
"""Most points of a scatter."""


def reconstructions(x: Tensor, decoded: Tensor, info: DataInfo, path: str | Path) -> None:
    """Draw data beside their reconstructions: images in a row above theirs, points joined to theirs.

    Args:
        x: data, levels or values ``(B, *shape)``.
        decoded: their reconstructions, values ``(B, *shape)``.
        info: description of the data.
        path: path of the PNG.
    """
    values = x if x.is_floating_point() else to_values(x, info, dtype=decoded.dtype)
    pairs = torch.stack([values.to(decoded), decoded])
    sequences(pairs.transpose(0, 1) if is_image(info.shape) else pairs, info, path)


def codes_and_prior(codes: Tensor, path: str | Path) -> None:
    """Draw codes of data beside the prior N(0, 1): the two entries that vary most, and the deviation of all.

    The codes are draws from the posteriors: where they and the prior differ, samples of a VAE decode what no datum has.

    Args:
        codes: codes of many items, one draw each, ``(n, *code_shape)``.
        path: path of the PNG.
    """
    flat = flatten(codes.detach().double().cpu())
    order = flat.var(dim=0, correction=0).argsort(descending=True)
    first, second = (int(order[0]), int(order[min(1, len(order) - 1)]))
    figure = new_figure(10.0, 4.6)
    left, right = figure.subplots(1, 2)
    shown = flat[:_MOST]
    left.scatter(shown[:, first], shown[:, second], s=6, c=INK, alpha=0.5, linewidths=0, label="codes of data")
    turn = np.linspace(0.0, 2.0 * math.pi, 200)
    for radius in (1.0, 2.0, 3.0):
        label = "N(0, 1), 1 to 3 deviations" if radius == 1.0 else None
        left.plot(radius * np.cos(turn), radius * np.sin(turn), color=_PRIOR, linewidth=1.0, label=label)
    left.set(xlabel=f"code entry {first}", ylabel=f"code entry {second}", aspect="equal")
    left.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False)
    bins = np.linspace(-4.0, 4.0, 61)
    for place in order[: min(6, len(order))]:
        right.hist(flat[:, int(place)], bins=bins.tolist(), density=True, histtype="step", color=INK, alpha=0.6)
    right.plot(bins, np.exp(-0.5 * bins**2) / math.sqrt(2.0 * math.pi), color=_PRIOR, linewidth=1.5, label="N(0, 1)")
    right.set(xlabel="the six entries that vary most", ylabel="density")
    right.legend(frameon=False)
    save_figure(figure, path)


def rate_distortion(points: Mapping[str, tuple[float, float]], path: str | Path, *, unit: str = "nats") -> None:
    """Draw distortion over rate, one point for each weight of the divergence (Alemi et al. 2018).

    Args:
        points: name of each point, as ``"0.5"`` for a weight, to rate and distortion.
        path: path of the PNG.
        unit: unit of both.
    """
    figure, axes = single_axes(6.0, 4.4)
    rates, distortions = (np.array([point[place] for point in points.values()]) for place in (0, 1))
    order = rates.argsort()
    axes.plot(rates[order], distortions[order], "o-", color=INK, markersize=5, linewidth=1.2)
    for name, (rate, distortion) in points.items():
        axes.annotate(rf"$\beta$ = {name}", (rate, distortion), xytext=(6, 4), textcoords="offset points")
    best = min(rate + distortion for rate, distortion in points.values())
    ends = np.array([rates.min(), rates.max()])
    axes.plot(ends, best - ends, "--", color=PALE, linewidth=1.2, label=f"bound of {best:.4g} {unit}")
    axes.set(xlabel=f"rate, {unit} (divergence from the prior)", ylabel=f"distortion, {unit} (reconstruction)")
    axes.legend(frameon=False)
    save_figure(figure, path)
