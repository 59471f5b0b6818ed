"""Networks of others, as they are: likelihood, bounds, samples and round trips of two pretrained DDPMs of MNIST.

    python -m experiments.pretrained --checkpoints FOLDER --mnist mnist.npz [--model unet] [--part bits] [--out FILE]

``FOLDER`` holds the weights, in safetensors: ``yichizhang_ddpm_mnist_cnn/ddpm_mnist_starter.safetensors`` (a CNN that
is asked by t, pixels in [-0.5, 0.5]) and ``franfee_ddpm_mnist_unet/model_unet_res.safetensors`` (a U-Net with a table
of 1000 embeddings, pixels in [0, 1]). ``mnist.npz`` has ``x_train`` and ``x_test``, uint8. The recipe that makes a
model of each is in ``models.py``; everything else is the library's public functions.

    bits        bits/dim through the ODE, by three dequantisations, with their error budgets
    below       the same from below the chain's first instant, where the bins are
    steps       the solver's stated error beside the observed one, by grid and number of steps
    bounds      the variational bounds: of the chain, sampled and from all its steps, and in continuous time
    trips       to latents and back
    samples     by five solvers, in one picture (``--picture``)

About seven minutes a network on one free core. Expected on the first 64 test images, in bits/dim (cnn, unet):

    chain's bound, posterior variance               1.96, 2.04 (+- 0.04), of which the decoder has 1.39, 1.26
    in continuous time                              1.92, 1.94
    ODE at the first instant, uniform               3.67, 2.75
    ODE at the first instant, decoder               3.39, 3.00
    ODE from half a bin of noise, decoder           2.80 asked by times, 2.19 by labels; 2.05

A first noise of 2.5 bins (unet) or 3.8 (cnn) is wide for MNIST, four fifths of whose pixels are exactly 0: a density
blurred by that much gives such a pixel a bin of ``log2(3.8 sqrt(2 pi)) = 3.2`` bits, whatever the network knows. The
chain's own decoder stands about the denoised pixel and takes all that lies beyond the last level for it: 0.86 bits.
Below the first instant a flow with the noise half held finds the zeros, which is worth 0.9 to 1.2 bits/dim. Half of
what is left of the bound lies in its first ten steps. ``truncated-normal`` is uniform, here: its normals are far wider
than a bin.

The network's flow changes fastest at the first instants, and has a kink at each: of 40 nodes of the grid for other
processes too few lie there, which costs 0.03 bits/dim (cnn); one uniform in log-SNR, the default on chains, is off by
0.006 at most. By ``reversible`` an
image comes back to 0.05 grey levels (float32), by 50 steps of ``ode`` to 2. Latents of MNIST have an RMS of 0.5 to 0.7,
not 1: pixels that are always 0 have no noise of their own.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

import sdediff

from . import bounds, likelihoods, samples
from .models import MODELS, digits, with_moments
from .show import Row, heading

FEW = 8
"""Images where a solve is far finer, or a chain is walked whole."""
PARTS = ("bits", "below", "steps", "bounds", "trips", "samples")


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--checkpoints", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--mnist", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--model", "chosen", multiple=True, type=click.Choice(list(MODELS)), default=list(MODELS))
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS)
@click.option("--items", default=64, show_default=True, help="Test images scored.")
@click.option("--picture", type=click.Path(path_type=Path), default=Path("runs/pretrained.png"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="The figures as JSON.")
def main(
    checkpoints: Path,
    mnist: Path,
    chosen: tuple[str, ...],
    parts: tuple[str, ...],
    items: int,
    picture: Path,
    out: Path | None,
) -> None:
    torch.set_num_threads(1)
    train, test = digits(mnist, "x_train"), digits(mnist, "x_test")[:items]
    record, blocks = dict[str, dict[str, list[Row]]](), dict[str, dict[str, torch.Tensor]]()
    for name in chosen:
        model = with_moments(MODELS[name](checkpoints), train)
        size = sum(parameter.numel() for parameter in model.parameters())
        heading(f"=== {name}: {size:,} parameters, {model.sde}, conditioning {model.conditioning!r}")
        record[name] = {part: run(part, model, test, blocks, name) for part in parts}
        if out is not None:
            out.write_text(json.dumps(record, indent=1) + "\n")
    if blocks:
        picture.parent.mkdir(parents=True, exist_ok=True)
        samples.picture(blocks, picture)


def run(
    part: str, model: sdediff.ScoreModel, test: torch.Tensor, blocks: dict[str, dict[str, torch.Tensor]], name: str
) -> list[Row]:
    """One part of the report; samples are kept for the picture."""
    heading(f"{name}: {part}")
    if part == "samples":
        size = sum(parameter.numel() for parameter in model.parameters())
        blocks[f"{name}, {size:,} parameters"], rows = samples.drawn(model)
        return rows
    work = {
        "bits": lambda: likelihoods.dequantisations(model, test),
        "below": lambda: likelihoods.below(model, test),
        "steps": lambda: likelihoods.convergence(model, test[:FEW]),
        "bounds": lambda: bounds.bounds(model, test) + bounds.exactly(model, test[:FEW]),
        "trips": lambda: samples.trips(model, test[:FEW]),
    }
    return work[part]()


if __name__ == "__main__":
    main()
