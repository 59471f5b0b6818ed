"""Held-out nats of tables: ours beside scikit-learn's Gaussian mixture and zuko's neural spline flow.

    python -m experiments.training.tables FOLDER/sml.npz FOLDER/parkinsons.npz FOLDER/protein.npz

Needs zuko. Files hold ``data`` ``(n, D)`` and ``test_mask`` ``(n,)``, true for rows that are held out; ``rows.py`` says
how they are prepared, the same for all. Every model has the same processor time of one thread to train in, and chooses
its stop, and the mixture its components, on a tenth of the training rows. Ours is ``tables.toml``; ``--validate``
reports on those rows in place of held-out ones, to choose settings by (``--set``).

Expected, ours less the better of the two: sml +4.9 +- 0.7, parkinsons +1.2 +- 0.2, protein +0.9 +- 0.2 nats.
Cost: six minutes a table.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import torch

import sdediff
from experiments.training.density import Report, mixture, spline_flow
from experiments.training.rows import Array, Parts, prepared
from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.types import DataInfo

CONFIG = Path(__file__).with_suffix(".toml")
SHORT, PACE = 20, 200
"""Steps of two short runs, whose difference is the time of ``PACE`` steps."""


def ours(parts: Parts, budget: float, *, config: Config) -> Report:
    """Train a score model in as many steps as the budget holds, and take that of the least validation loss."""
    train, validation, test = (torch.from_numpy(x).float() for x in parts)
    data = Dataset(train, validation, DataInfo(train.shape[1:]))

    def trained(steps: int, run: str | None = None) -> tuple[sdediff.training.TrainResult, float]:
        start, settings = time.process_time(), config.updated({"training.steps": steps})
        result = sdediff.train(data, run=run, config=settings, progress=False, force=True, device="cpu")
        return result, time.process_time() - start

    trained(SHORT)  # which warms up
    short, pace = trained(SHORT)[1], trained(SHORT + PACE)[1]
    steps = int(PACE * budget / max(pace - short, 1e-9))
    with tempfile.TemporaryDirectory() as folder:
        result, seconds = trained(steps, folder)
        measured = (line for line in result.metrics if "held_out_loss" in line)
        best = min(measured, key=lambda line: line["held_out_loss"])["step"]
        model = sdediff.load(Path(folder) / "best")
    nats = sdediff.log_likelihood(model, test, seed=0).log_prob
    return Report(nats.double().numpy(), f"step {best:,} of {steps:,}", seconds)


def mean_and_error(nats: Array) -> str:
    """Return a mean with its standard error."""
    return f"{nats.mean():8.3f} +- {nats.std(ddof=1) / math.sqrt(len(nats)):.3f}"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default=120.0, show_default=True, help="Processor seconds of every model of every table.")
@click.option("--config", "file", default=CONFIG, show_default=True, type=click.Path(exists=True, path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Settings of ours.")
@click.option("--model", "names", multiple=True, default=("mixture", "flow", "ours"), show_default=True)
@click.option("--validate", is_flag=True, help="Report on validation rows.")
def main(
    files: tuple[Path, ...],
    seconds: float,
    file: Path,
    settings: tuple[str, ...],
    names: tuple[str, ...],
    validate: bool,
) -> None:
    torch.set_num_threads(1)
    config = Config.load(file).updated(dict(setting.split("=", 1) for setting in settings))
    models: dict[str, Callable[[Parts, float], Report]] = {
        "mixture": mixture,
        "flow": spline_flow,
        "ours": partial(ours, config=config),
    }
    for path in files:
        parts = prepared(path)
        parts = parts._replace(test=parts.validation) if validate else parts
        print(
            f"{path.stem}: {', '.join(str(len(x)) for x in parts)} rows of {parts.train.shape[1]} numbers", flush=True
        )
        reports: dict[str, Report] = {}
        for name in names:
            report = reports[name] = models[name](parts, seconds)
            spent = f"({report.seconds:.0f} s; {report.chosen})"
            print(f"  {name:16s} {mean_and_error(report.nats)}  {spent}", flush=True)
        if "ours" in reports:
            for name, report in reports.items():
                if name != "ours":
                    print(f"  ours less {name:6s} {mean_and_error(reports['ours'].nats - report.nats)}", flush=True)


if __name__ == "__main__":
    main()
