"""Draw the README's picture: log-likelihoods with their stated errors beside the truth, and samples in few forwards.

    python -m experiments.glance --checkpoints FOLDER   # writes docs/pictures/glance.png

Left, 60 items of the 64-dimensional mixture fitted to the digits, whose density is known: what the default call says
less the truth, with the 95 % interval that it states. Expected: the truth in 54 to 60 of them. Right, digits by a
public MNIST U-Net (``franfee_ddpm_mnist_unet``) from the same noise, by the solver that ``"auto"`` chooses for it.
Cost: about a minute of one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import torch

import sdediff
from experiments.pretrained.models import unet
from experiments.problems import PROBLEMS

mpl.use("Agg")
from matplotlib import pyplot as plt

ITEMS, IMAGES, FORWARDS = 60, 8, (5, 10, 20, 50)


def scores(axis: Any) -> None:
    """Draw the error of every item's log-density with its interval."""
    data = PROBLEMS["digits-mixture"]()
    x = data.sample(ITEMS, seed=0)
    truth = data.log_prob(x)
    found = sdediff.log_likelihood(data.model(sdediff.VPSDE()), x)
    low, high = found.interval(0.95)
    holds = (low <= truth) & (truth <= high)
    order = truth.argsort()
    for place, item in enumerate(order.tolist()):
        colour = "tab:blue" if holds[item] else "tab:red"
        axis.plot([place, place], [low[item] - truth[item], high[item] - truth[item]], color=colour, lw=1.5)
        axis.plot(place, found.log_prob[item] - truth[item], "o", color=colour, ms=3)
    axis.axhline(0.0, color="black", lw=0.8)
    axis.set_title(f"log p and its stated 95 % interval, less the truth: held by {int(holds.sum())} of {ITEMS}")
    axis.set(xlabel="item, by likelihood", ylabel="nats", xticks=[])
    axis.spines[["top", "right"]].set_visible(False)


def samples(axis: Any, checkpoints: Path) -> None:
    """Draw the same noise decoded in different numbers of forwards, a row each."""
    model = unet(checkpoints)
    model = model.with_moments(sdediff.moments(model, n=64, steps=20))
    rows = []
    for n in FORWARDS:
        x = sdediff.sample(model, (IMAGES, 1, 28, 28), solver="auto", steps=n, seed=4)
        rows.append(torch.cat(list(x[:, 0]), dim=1))
    axis.imshow(torch.cat(rows).clip(0, 1), cmap="gray_r")
    axis.set_title("a public MNIST U-Net, the same noise by auto")
    axis.set(xticks=[], yticks=[28 * i + 14 for i in range(len(FORWARDS))], yticklabels=FORWARDS, ylabel="forwards")
    axis.spines[:].set_visible(False)


@click.command()
@click.option("--checkpoints", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/pictures/glance.png"), show_default=True)
def main(checkpoints: Path, out: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=(1.15, 1), layout="constrained")
    with mpl.rc_context({"axes.titlesize": 10}):
        scores(left)
        with torch.no_grad():
            samples(right, checkpoints)
    for axis in (left, right):
        axis.title.set_fontsize(10)
    figure.savefig(out, dpi=120)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
