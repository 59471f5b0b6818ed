"""``sdediff train``."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from sdediff import plots
from sdediff.cli.console import Console, print_error, warnings_as_lines
from sdediff.cli.group import INTERRUPTED
from sdediff.cli.help import DescribedCommand
from sdediff.cli.options import (
    COUNT,
    PATH,
    POSITIVE,
    TableName,
    assignments,
    device_option,
    given_network,
    import_typed,
    json_option,
    network_option,
)
from sdediff.cli.runs import MAIN, find_run, read_metrics
from sdediff.cli.stages import draw_stages
from sdediff.config import PROCESSES, Config
from sdediff.data import DATASETS, KINDS
from sdediff.data.reading import MISSING, REFUSE
from sdediff.devices import pick_device
from sdediff.extras import require
from sdediff.foreign import is_import_path, path_of
from sdediff.latent import FirstStage, LatentModel
from sdediff.training import TrainingWarning, TrainResult, train
from sdediff.training.conditional import conditional_config
from sdediff.training.folder import CONFIG, SAMPLES
from sdediff.training.tasks import TASKS

KINDS_OF_MODEL = dict.fromkeys(TASKS)
RUNS = Path("runs")
PICTURES = ("loss.png", "reconstructions.png", "codes.png", "traversals.png")
DEFAULTS = Config().training


EXAMPLES = """\
  sdediff train                              # digits, to runs/digits
  sdediff train --data moons --steps 3000 --set sde.name=flow
  sdediff train --data photos/ --size 64 --set data.flips=true
  sdediff train --data table.csv --missing drop --set data.text=drop
  sdediff train --resume --run runs/photos --steps 20000
  sdediff train --network mynets:UNet --set network.width=64
  sdediff train --conditional                # with the classes of the data
  sdediff train --model vae --run runs/vae
  sdediff train --model latent --first-stage runs/vae
  torchrun --nproc_per_node 2 -m -- sdediff train"""

NOTES = (
    lambda: f"Data by name:\n  {', '.join(DATASETS)}",
    lambda: f"Processes, for --set sde.name=:\n  {', '.join(PROCESSES)}",
    lambda: f"Settings:\n  {CONFIG} in the run lists all of them, for --config or --set.",
)


@click.command("train", cls=DescribedCommand, examples=EXAMPLES, notes=NOTES)
@click.option(
    "--data", metavar="NAME|PATH", help="Data set, file (arrays, table, IDX) or folder of images.  [default: digits]"
)
@click.option("--kind", type=TableName(KINDS, "kind of data"), help=f"What an item of a file is: {', '.join(KINDS)}.")
@click.option("--size", type=COUNT, help="Side in pixels to which images are resized and cropped.")
@click.option(
    "--missing",
    type=TableName(MISSING, "treatment of missing values"),
    help=f"What becomes of missing values: {', '.join(MISSING)}.  [default: {REFUSE}]",
)
@click.option("--config", "file", type=PATH, help="Settings, as TOML or JSON; other options override them.")
@click.option("--run", type=PATH, help="Folder of the run.  [default: runs/<data>]")
@click.option("--steps", type=COUNT, help=f"Optimiser steps.  [default: {DEFAULTS.steps}]")
@click.option("--batch-size", type=COUNT, help=f"Items a step.  [default: {DEFAULTS.batch_size}]")
@click.option("--lr", type=POSITIVE, help=f"Learning rate.  [default: {DEFAULTS.learning_rate:g}]")
@click.option("--seed", type=int, help=f"Seed of weights, data order and noise.  [default: {DEFAULTS.seed}]")
@click.option(
    "--conditional", is_flag=True, help="Tell the network the classes of the data, so that it samples by --label."
)
@click.option(
    "--model",
    "kind_of_model",
    type=TableName(KINDS_OF_MODEL, "kind of model"),
    help=f"What is trained: {', '.join(KINDS_OF_MODEL)}.  [default: score]",
)
@click.option("--first-stage", type=PATH, help="Run of a latent model's autoencoder.  [default: its own VAE]")
@network_option
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")
@click.option("--resume", is_flag=True, help="Continue the run, with its own settings.")
@click.option("--force", is_flag=True, help="Replace a run that exists.")
@device_option
@json_option
def command(
    data: str | None,
    kind: str | None,
    size: int | None,
    missing: str | None,
    file: Path | None,
    run: Path | None,
    steps: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int | None,
    conditional: bool,
    kind_of_model: str | None,
    first_stage: Path | None,
    settings: tuple[str, ...],
    resume: bool,
    force: bool,
    device: str,
    as_json: bool,
) -> None:
    """Train a score network, an autoencoder, a VAE or a latent score model on data and write a run.

    The run's folder holds the moving average of the network, settings, metrics and, every few hundred steps, pictures
    of samples. Ctrl-C, SIGTERM and SIGHUP save a checkpoint first; --resume continues from it bit for bit.
    """
    require("train", "plots")
    console = Console(as_json)
    chosen = pick_device(device)
    flags = {
        "data.name": data,
        "data.kind": kind,
        "data.size": size,
        "data.missing": missing,
        "model.kind": kind_of_model,
        "latent.first_stage": None if first_stage is None else str(first_stage),
        "training.steps": steps,
        "training.batch_size": batch_size,
        "training.learning_rate": lr,
        "training.seed": seed,
    }
    changes = {key: value for key, value in flags.items() if value is not None} | assignments(settings)
    if resume and run is None:
        run = find_run(console, CONFIG) if data is None else RUNS / Path(data).stem
    saved = run / CONFIG if resume and run is not None and (run / CONFIG).is_file() else None
    source = file or saved
    network = given_network()
    if network is None and is_import_path(str(changes.get("network.name", ""))):
        network = import_typed(str(changes["network.name"]))
    if network is not None:
        changes["network.name"] = path_of(network)
    config = (Config() if source is None else Config.load(source)).updated(changes)
    folder = run or RUNS / Path(config.data.name).stem
    if (folder / CONFIG).exists() and not (resume or force):
        raise FileExistsError(f"{folder} holds a run already: --resume goes on with it, --force replaces it")
    if resume and not (folder / CONFIG).is_file():  # before data are read
        raise FileNotFoundError(f"nothing to resume in {folder}: {CONFIG} is missing")
    with warnings_as_lines(show=MAIN):
        dataset = config.data.load()
    if conditional:
        config = conditional_config(config, network, dataset)
    if MAIN:
        for line in dataset.notes:
            console.note(f"note: {line}")
        console.note(f"training on {config.data.name}: {dataset} ({chosen}), to {folder}")

    def draw(samples: Tensor, path: Path) -> None:
        plots.picture(samples, dataset.info, path.with_name(f"{path.name}.png"), reference=dataset.held_out)

    with _remarks_at_once():
        result = train(
            config,
            folder,
            data=dataset,
            network=network,
            conditional=conditional,
            resume=resume,
            force=force,
            device=str(chosen),
            on_sample=draw,
        )
    if MAIN:
        if isinstance(result.model, FirstStage | LatentModel):
            for remark in draw_stages(result.model, dataset, folder):
                console.note(remark)
        _print_result(result, folder, console, f" --network {config.network.name}" * (network is not None))
    if result.interrupted:
        sys.exit(INTERRUPTED)


@contextmanager
def _remarks_at_once() -> Iterator[None]:
    """Print remarks on the run as lines when they come, whatever the filters of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", TrainingWarning)
        show = warnings.showwarning

        def line(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, TrainingWarning):
                print_error(f"warning: {message}")
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = line
        yield


def _print_result(result: TrainResult, folder: Path, console: Console, own: str) -> None:
    """Print the losses, the files and the next command, and draw the curves of the losses."""
    metrics = read_metrics(folder)
    lines = {"training": "loss", "held out": "held_out_loss"}
    if drawn := {name: metrics[key] for name, key in lines.items() if key in metrics}:  # none of a run just begun
        plots.curves(drawn, folder / "loss.png")
    if math.isnan(result.loss):
        console.note(f"{folder} was finished already, after {result.steps:,} steps: --steps takes it further")
    else:
        console.say(
            f"{'stopped after' if result.interrupted else 'trained'} {result.steps:,} steps, {result.seconds:.1f} s: "
            f"loss {result.loss:.4f}, held out {result.held_out_loss:.4f}"
        )
    console.say(f"  run       {folder}")
    pictures = [folder / name for name in PICTURES if (folder / name).is_file()]
    console.say(f"  pictures  {', '.join([f'{folder / SAMPLES}/', *map(str, pictures)])}")
    console.say(f"  next      sdediff {'train --resume' if result.interrupted else 'sample'} --run {folder}{own}")
    console.result(
        run=folder,
        steps=result.steps,
        seconds=result.seconds,
        loss=result.loss,
        held_out_loss=result.held_out_loss,
        interrupted=result.interrupted,
    )
