"""Series whose density is known: how many nats a trained network loses.

    python -m experiments.training.series

A series of 32 numbers is one of two stationary Gaussian processes, a slow and a fast damped oscillation with noise; the
density is that of a Gaussian mixture of two components. A one-dimensional U-Net (``series.toml``) is trained on 8,000
of them. Of 200 others the divergence ``E[log p - log p_model]`` is printed with its standard error, and that of the
best Gaussian beside it.

Expected: 1.01 +- 0.09 nats of the 32 numbers, the Gaussian 7.2 +- 0.2. Cost: a minute of one core.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

import sdediff
from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.types import DataInfo

LENGTH, NOISE = 32, 0.05
PERIODS, DECAY = (16.0, 5.0), 24.0
CONFIG = Path(__file__).with_suffix(".toml")


def covariance(period: float) -> np.ndarray:
    """Return the covariance ``exp(-|s - t| / DECAY) cos(2 pi (s - t) / period)``, plus the noise."""
    lag = np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))
    return np.exp(-np.abs(lag) / DECAY) * np.cos(2.0 * math.pi * lag / period) + NOISE**2 * np.eye(LENGTH)


def law() -> sdediff.analytic.GaussianMixture:
    """Return the law of the series, of points ``(n, LENGTH)``."""
    covariances = torch.from_numpy(np.stack([covariance(period) for period in PERIODS]))
    return sdediff.analytic.GaussianMixture(torch.zeros(2, LENGTH, dtype=torch.float64), covariances)


def mean_and_error(values: Tensor) -> str:
    """Return a mean with its standard error."""
    return f"{float(values.mean()):8.3f} +- {float(values.std() / math.sqrt(len(values))):.3f}"


@click.command()
@click.option("--steps", type=int, help="Steps of training.  [default: those of series.toml]")
@click.option("--items", default=200, show_default=True, help="Series that are scored.")
def main(steps: int | None, items: int) -> None:
    torch.set_num_threads(1)
    truth = law()
    x = truth.sample(8000 + 1000 + items, seed=0)
    train, validation, test = x.split([8000, 1000, items])
    series = [part.float()[:, None, :] for part in (train, validation, test)]
    config = Config.load(CONFIG)
    config = config if steps is None else config.updated({"training.steps": steps})
    start = time.process_time()
    data = Dataset(series[0], series[1], DataInfo((1, LENGTH), name="series"))
    run = sdediff.train(data, config=config, device="cpu")
    seconds = time.process_time() - start
    exact = truth.log_prob(test)
    found = sdediff.log_likelihood(run.model, series[2], seed=0).log_prob
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(LENGTH).double(), torch.cov(train.T).double())
    print(f"log p, nats                  {mean_and_error(exact)}")
    print(f"lost by the network          {mean_and_error(exact - found)}  ({seconds:.0f} s of one core)")
    print(f"lost by the best Gaussian    {mean_and_error(exact - gaussian.log_prob(test.double()))}")


if __name__ == "__main__":
    main()
