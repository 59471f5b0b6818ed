"""Binarised MNIST: a VAE and the score model on its codes, both bounds in nats, in half an hour of one CPU core.

    python -m experiments.latent.mnist mnist.npz --run runs/mnist-vae

The file is an .npz of ``x_train`` and ``x_test``, bytes ``(n, 28, 28)``. Every pixel is binarised once, with the
probability of its grey value, by a fixed seed; the test images are held out and seen at the end alone. Two thirds of
the time are the VAE's, of one thread, and one third is the score model's.

Expected: with codes of 32 entries the VAE's bound is 91.1 +- .2 nats on all test images after 22 CPU minutes
(importance-weighted, K = 256, on the first 500: 83.9 +- 1.0). Its codes are so close to N(0, 1) that the loss of a
score model on them stays at 1.00: nothing is gained. With codes of 2 x 7 x 7, after 13 CPU minutes, the VAE's bound is
97.0 +- .2, and the score model's, after 7 more, 4.2 +- .3 nats better on the same 200 images (89.6 and 93.8).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import sdediff
from sdediff import latent
from sdediff.data import Dataset

VAE: dict[str, Any] = {
    "model": "vae",
    "coder": {"name": "conv", "width": 32, "halvings": 1, "patch": 2},
    "batch_size": 64,
    "held_out_every": 0,
    "sample_every": 0,
}
SCORE: dict[str, Any] = {
    "model": "latent",
    "time_law": "velocity",
    "weighting": "likelihood",
    "sde": "vp",
    "ema": 0.999,
    "held_out_every": 0,
    "sample_every": 0,
}
CODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vector": ({"code": (32,)}, {"network": "mlp", "network.size": "small", "batch_size": 256}),
    "maps": ({"code": (2, 7, 7)}, {"network": "unet", "network.width": 32, "batch_size": 64}),
}
"""Shapes of the codes, and the score models on them."""
SHORT, PACE = 5, 25
"""Steps of two short runs, whose difference is the time of their difference in steps."""


def binarised(images: np.ndarray[Any, Any], seed: int) -> Tensor:
    """Return bytes ``(n, 28, 28)`` as levels 0 and 1, ``(n, 1, 28, 28)``, drawn once."""
    draws = np.random.default_rng(seed).random(images.shape, dtype=np.float32)
    return torch.from_numpy((255.0 * draws < images).astype(np.int64))[:, None]


def steps_in(seconds: float, train: Callable[..., Any]) -> int:
    """Return the number of steps that a training takes in a processor time."""
    spent = []
    for steps in (SHORT, SHORT, PACE):  # the first warms up
        start = time.process_time()
        train(steps=steps, progress=False)
        spent.append(time.process_time() - start)
    return max(1, int(seconds * (PACE - SHORT) / max(spent[2] - spent[1], 1e-9)))


def report(name: str, bound: latent.LatentBound) -> None:
    """Print a bound with its terms."""
    terms = f"{float(bound.reconstruction.mean()):.2f} reconstruction + {float(bound.kl.mean()):.2f} divergence"
    print(f"{name:34s} {bound.mean:7.2f} +- {bound.mean_standard_error:.2f} nats = {terms}", flush=True)


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--run", default=Path("runs/mnist-vae"), show_default=True, type=click.Path(path_type=Path))
@click.option("--minutes", default=30.0, show_default=True, help="Processor minutes in all.")
@click.option("--codes", type=click.Choice(list(CODES)), default="maps", show_default=True, help="Shape of the codes.")
@click.option("--items", default=10_000, show_default=True, help="Test images of the VAE's bound.")
@click.option("--few", default=500, show_default=True, help="Test images of the bounds that take longer.")
def main(file: Path, run: Path, minutes: float, codes: str, items: int, few: int) -> None:
    torch.set_num_threads(1)
    stage, prior = ({**common, **own} for common, own in zip((VAE, SCORE), CODES[codes], strict=True))
    with np.load(file) as arrays:
        train, test = binarised(arrays["x_train"], 0), binarised(arrays["x_test"], 1)
    data = Dataset(train, test, sdediff.DataInfo((1, 28, 28), levels=2, name="mnist-binarised"))

    def first(**settings: Any) -> sdediff.training.TrainResult:
        return sdediff.train(data, device="cpu", **{**stage, **settings})

    steps = steps_in(minutes * 40.0, first)
    start = time.process_time()
    vae = first(steps=steps, run=run / "vae", force=True, checkpoint_every=1000).model
    print(f"VAE: {steps:,} steps, {(time.process_time() - start) / 60.0:.1f} processor minutes", flush=True)
    report("VAE", latent.elbo(vae, test[:items], batch_size=500))
    report("VAE, training images", latent.elbo(vae, train[:items], batch_size=500))
    importance = latent.elbo(vae, test[:few], samples=256, bound="importance", batch_size=50)
    report("VAE, importance-weighted, K = 256", importance)
    means = vae.to_codes(test[:2000])
    print(f"active units: {int(latent.active_units(means).sum())} of {means[0].numel()}", flush=True)

    def second(**settings: Any) -> sdediff.training.TrainResult:
        return sdediff.train(data, device="cpu", **{**prior, "first_stage": str(run / "vae"), **settings})

    steps = steps_in(minutes * 20.0, second)
    start = time.process_time()
    model = second(steps=steps, run=run / "latent", force=True, checkpoint_every=5000).model
    print(f"score model: {steps:,} steps, {(time.process_time() - start) / 60.0:.1f} processor minutes", flush=True)
    both = [latent.elbo(m, test[:few], samples=2, batch_size=100) for m in (vae, model)]
    report("VAE, the same images", both[0])
    report("latent score model, by its flow", both[1])
    gain = both[0].total - both[1].total
    print(f"gain of the score model: {float(gain.mean()):.2f} +- {float(gain.std()) / len(gain) ** 0.5:.2f} nats")
    print(both[1].error_budget)


if __name__ == "__main__":
    main()
