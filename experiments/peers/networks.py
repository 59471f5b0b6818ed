"""The networks of the contest ``real``: trained with the product, pretrained by others, and exact ones with an error.

    python -m experiments.peers.networks RUNS --shared DATA     # trains what RUNS lacks, one after the other

``DATA`` holds ``fashion_mnist.npz``, ``cifar10_16k.npz`` and ``tabular/*.npz`` (arrays ``data``); the contest also
takes its pretrained networks from there (``checkpoints/``). What a network has learnt does not matter here: the truth
is its own probability flow. So they are small and trained for minutes; all of them take half an hour of one core.

Every network belongs to one of two halves, fixed before anything was measured: solvers are chosen on ``choose``, and
what was chosen is reported on ``judge``. The halves share no network, no mixture and no error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

HALVES = ("choose", "judge")


@dataclass(frozen=True)
class Recipe:
    """What ``sdediff train`` is told.

    Args:
        half: ``choose`` or ``judge``.
        data: a data set of the product, or a key of ``PREPARED``.
        sde: the process.
        prediction: what the network predicts.
        steps: of training.
        options: more settings, ``SECTION.KEY=VALUE``.
    """

    half: str
    data: str
    sde: str
    prediction: str
    steps: int
    options: tuple[str, ...] = ()


SMALL = ("network.name=unet", "network.width=16", "network.multipliers=[1,2,4]", "training.batch_size=32")
SIMPLE, NOISY = "training.weighting=simple", "training.weighting=velocity"
"""As networks that predict epsilon are trained everywhere, and what weighs the noisy end far more."""
EVEN = ("training.weighting=likelihood", "training.time_law=logsnr")
"""Evenly in log-SNR, half of which is noise on a cosine chain: else so short a training leaves errors of 0.2 there."""
TRAINED: dict[str, Recipe] = {
    "moons-linear-eps": Recipe("choose", "moons", "ddpm", "epsilon", 3000, (NOISY,)),
    "moons-cosine-eps": Recipe("judge", "moons", "ddpm-cosine", "epsilon", 3000, (NOISY,)),
    "moons-ve": Recipe("choose", "moons", "ve", "score", 3000, (NOISY,)),
    "moons-flow": Recipe("judge", "moons", "flow", "flow", 3000),
    "protein-flow": Recipe("choose", "protein", "flow", "flow", 3000),
    "protein-cosine-eps": Recipe("judge", "protein", "ddpm-cosine", "epsilon", 3000, (NOISY,)),
    "parkinsons-ve": Recipe("judge", "parkinsons", "ve", "score", 3000, (NOISY,)),
    "digits-cosine-eps": Recipe("choose", "digits", "ddpm-cosine", "epsilon", 800, (SIMPLE,)),
    "digits-cosine-v": Recipe("choose", "digits", "cosine", "v_prediction", 500),
    "digits-flow": Recipe("judge", "digits", "flow", "flow", 500),
    "fashion-cosine-eps": Recipe("choose", "fashion", "ddpm-cosine", "epsilon", 600, (*SMALL, *EVEN)),
    "fashion-cosine-v": Recipe("judge", "fashion", "ddpm-cosine", "v_prediction", 400, SMALL),
    "cifar-linear-eps": Recipe("choose", "cifar", "ddpm", "epsilon", 500, (*SMALL, SIMPLE)),
    "cifar-cosine-eps": Recipe("judge", "cifar", "ddpm-cosine", "epsilon", 600, (*SMALL, *EVEN)),
    "cifar-ve": Recipe("judge", "cifar", "ve", "score", 400, (*SMALL, SIMPLE)),
}


def _table(name: str, first: int) -> Callable[[Path, Path], Path]:
    """Eight columns of a table, as a file of their own."""

    def prepare(shared: Path, runs: Path) -> Path:
        path = runs / f"{name}8.npy"
        with np.load(shared / "tabular" / f"{name}.npz") as arrays:
            np.save(path, arrays["data"][:, first : first + 8].astype(np.float32))
        return path

    return prepare


PREPARED: dict[str, Callable[[Path, Path], Path]] = {
    "protein": _table("protein", 1),
    "parkinsons": _table("parkinsons", 8),
    "fashion": lambda shared, _: shared / "fashion_mnist.npz",
    "cifar": lambda shared, _: shared / "cifar10_16k.npz",
}


def train(name: str, runs: Path, shared: Path) -> None:
    """Train a network by the command line, as a user would."""
    recipe = TRAINED[name]
    data = str(PREPARED[recipe.data](shared, runs)) if recipe.data in PREPARED else recipe.data
    settings = [
        f"sde.name={recipe.sde}",
        f"model.prediction={recipe.prediction}",
        f"training.steps={recipe.steps}",
        "training.sample_every=0",
        *recipe.options,
    ]
    command = [sys.executable, "-m", "sdediff", "train", "--force", "--device", "cpu", "--data", data]
    command += ["--run", str(runs / name), *(part for setting in settings for part in ("--set", setting))]
    with (runs / f"{name}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


@click.command()
@click.argument("runs", type=click.Path(file_okay=False, path_type=Path))
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--name", "names", multiple=True, type=click.Choice(list(TRAINED)), default=list(TRAINED))
def main(runs: Path, shared: Path, names: tuple[str, ...]) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (runs / name / "model.json").exists():
            print(f"{name} ...", flush=True)
            train(name, runs, shared)


if __name__ == "__main__":
    main()
