"""Draw what ``real`` measured: a panel a network, peers in grey, ours, the best peer, and one sentence.

    python -m experiments.peers.real ... --solver ode --solver auto --cache CACHE --out FIGURES.jsonl
    python -m experiments.peers.figure FIGURES.jsonl --cache CACHE   # writes docs/pictures/peers.png

The upper row has exact problems, the lower one networks. A grey line is one configuration of a configuration of a peer;
"best peer" is the best of them at every number of forwards separately, knowing the answer, and the sentence says where
it is ahead. Seconds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

PANELS = {
    "digits-mixture": "64-D mixture, exact",
    "ring": "ring of 8 Gaussians, exact",
    "photos-v": "photograph patches, exact",
    "digits-flow": "digits, flow",
    "protein-cosine-eps": "a table, cosine chain",
    "mnist-unet": "MNIST U-Net, chain",
}
Row = dict[str, Any]
Line = dict[int, float]


def peers(cache: Path, network: str, metric: str) -> Iterable[Line]:
    """Return the errors of every peer's configuration by forwards, on as many starts as it was measured on."""
    lines: dict[str, dict[int, tuple[int, float]]] = {}
    for path in cache.glob(f"{network}-*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            label, forwards, starts, _ = row["key"].rsplit("|", 3)
            if label.split()[0] in ("diffusers", "k-diffusion", "azula", "GITS"):
                line = lines.setdefault(label, {})
                line[int(forwards)] = max(line.get(int(forwards), (0, 0.0)), (int(starts), row[metric]))
    return [{n: error for n, (_, error) in line.items()} for line in lines.values()]


def sentence(rows: Sequence[Row], solver: str) -> str:
    """Return what a solver's errors are to the best peer's, and where it is behind."""
    ratios = {m: {r["forwards"]: r["ours"][solver] / r["peer"] for r in rows if r["metric"] == m} for m in METRICS}
    median, rms = (statistics.geometric_mean(of.values()) for of in ratios.values())
    lost = [n for n, ratio in ratios["rms"].items() if ratio > 1.0]
    behind = (
        f"behind at {' '.join(map(str, lost))} (to x {max(ratios['rms'].values()):.1f})" if lost else "never behind"
    )
    return f"{solver} has {median:.2f} times the best peer's median error\nand {rms:.2f} times its RMS error: {behind}"


METRICS = ("median", "rms")


def panel(axis: Any, title: str, rows: Sequence[Row], others: Iterable[Line]) -> None:
    """Draw the medians of one network."""
    for line in others:
        axis.plot(*zip(*sorted(line.items()), strict=True), color="0.75", lw=0.4)
    mine = [row for row in rows if row["metric"] == "median"]
    forwards = [row["forwards"] for row in mine]
    axis.plot([], [], color="0.75", lw=1.0, label="a configuration of a peer")
    axis.plot(forwards, [row["peer"] for row in mine], color="black", lw=1.2, label="the best of them at every count")
    for solver, colour in (("ode", "tab:blue"), ("auto", "tab:orange")):
        axis.plot(
            forwards, [row["ours"][solver] for row in mine], "o-", color=colour, lw=2, ms=4, label=f"sdediff {solver}"
        )
    axis.set(xscale="log", yscale="log", xticks=forwards, xticklabels=forwards, xlim=(4.6, 54))
    axis.minorticks_off()
    low = min(min(row["peer"], *row["ours"].values()) for row in mine)
    high = max(max(row["peer"], *row["ours"].values()) for row in mine)
    axis.set_ylim(0.5 * low, 10.0 * high)
    axis.set_title(title, fontsize=11, pad=28)
    axis.text(0.5, 1.02, sentence(rows, "auto"), transform=axis.transAxes, ha="center", fontsize=7.5)
    axis.spines[["top", "right"]].set_visible(False)


@click.command()
@click.argument("figures", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--cache", "caches", multiple=True, type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/pictures/peers.png"), show_default=True)
def main(figures: tuple[Path, ...], caches: tuple[Path, ...], out: Path) -> None:
    rows = [json.loads(line) for path in figures for line in path.read_text().splitlines()]
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 7.2), layout="constrained", sharex=True)
    for axis, (network, title) in zip(axes.flat, PANELS.items(), strict=True):
        own = [row for row in rows if row["network"] == network and row["counts"]]
        if not own:
            raise click.ClickException(f"the figures lack {network}")
        panel(axis, title, own, [line for cache in caches for line in peers(cache, network, "median")])
    for axis in axes[:, 0]:
        axis.set_ylabel("median error of a sample")
    for axis in axes[1]:
        axis.set_xlabel("forwards of the network")
    axes[0, 0].legend(fontsize=7.5, frameon=False)
    figure.savefig(out, dpi=110)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
