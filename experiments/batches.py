"""The share of a training step that is neither forward, backward nor optimiser: the batch.

``python -m experiments.batches`` times steps of the default network on digits, with a new batch each and with one that
is there already, and batches alone of digits, of CIFAR-10's shape and of rows of a table.

Expected on one core: a batch of 128 digits takes 0.4 to 1.2 ms, 0.2 to 0.4 % of a step of 240 to 330 ms. Cost: half a
minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from sdediff import DataInfo
from sdediff.config import Config, build
from sdediff.data import load_dataset
from sdediff.training import Objective
from sdediff.training.batches import Batches


def median(work: Callable[[int], object], count: int) -> float:
    """Return the median duration of ``work(i)`` in milliseconds, the first call left out."""
    durations = []
    for i in range(count + 1):
        start = time.perf_counter()
        work(i)
        durations.append(1e3 * (time.perf_counter() - start))
    return float(torch.tensor(durations[1:]).median())


def sets() -> dict[str, tuple[Tensor, DataInfo, bool]]:
    """Return items, description and whether to mirror, by name."""
    digits, generator = load_dataset("digits"), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    cifar = DataInfo((3, 32, 32), 256)
    rows = torch.randn(5000, 10, generator=generator)
    return {
        "digits": (digits.train, digits.info, False),
        "3x32x32": (images, cifar, False),
        "3x32x32, mirrored": (images, cifar, True),
        "rows of 10": (rows, DataInfo((10,)), False),
    }


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--steps", default=30, show_default=True)
def main(device: str, steps: int) -> None:
    torch.set_num_threads(1)
    config, size = Config(), Config().training.batch_size
    for name, (items, info, flips) in sets().items():
        batches = Batches(items, info, size, 0, device=device, flips=flips)
        print(f"{name:18s} {median(batches, 10 * steps):8.3f} ms a batch of {size}")
    data = load_dataset("digits")
    model = build(config, data.info).to(device)
    objective = Objective(model.sde, config.training.time_law, config.weighting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = Batches(data.train, data.info, size, 0, device=device)
    kept = batches(0)

    def step(_: int) -> float:
        loss = objective.loss(model, kept.x0, kept.u, kept.eps).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())  # which waits for the device

    spent = median(step, steps)
    alone = median(batches, steps)
    print(f"{'a step on digits':18s} {spent + alone:8.3f} ms, of which the batch {alone / (spent + alone):.2%}")


if __name__ == "__main__":
    main()
