"""``sdediff info``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sdediff import __version__
from sdediff.checkpoint import latest_run
from sdediff.cli import tables
from sdediff.cli.console import Console, columns
from sdediff.cli.help import DescribedCommand
from sdediff.cli.options import json_option, run_option
from sdediff.cli.runs import Run, open_run, read_metrics, run_config
from sdediff.config import PROCESSES
from sdediff.data import DATASETS
from sdediff.data.section import data_entries
from sdediff.description import describe_model
from sdediff.grids import GRIDS
from sdediff.latent import FirstStage, LatentModel
from sdediff.networks import NETWORKS
from sdediff.parametrization import PREDICTIONS
from sdediff.samplers import SOLVERS
from sdediff.stage_storage import describe_stage
from sdediff.training import OBJECTIVES, SCHEDULES, TIME_LAWS, WEIGHTINGS

_KINDS = {"ae": "autoencoder", "vae": "variational autoencoder", "latent": "score model on codes"}

EXAMPLES = """\
  sdediff info                # the most recent run
  sdediff info --run runs/digits --json
  sdediff info --run google/ddpm-cifar10-32 --download
  sdediff info --list         # solvers, grids, processes, networks, data sets"""


AUTHORS = "The sdediff authors"
TITLE = "sdediff: score-based SDE/ODE solvers with exact encoding and likelihoods that state their error"
CITATION = f"""\
@software{{sdediff,
  author  = {{{{{AUTHORS}}}}},
  title   = {{{{{TITLE}}}}},
  version = {{{__version__}}},
  license = {{MIT}}
}}"""


@click.command("info", cls=DescribedCommand, examples=EXAMPLES)
@run_option
@click.option("--list", "listing", is_flag=True, help="Solvers, grids, processes and data, not a run.")
@click.option("--cite", is_flag=True, help="How to cite the package, as BibTeX.")
@json_option
def command(run: Path | None, listing: bool, cite: bool, as_json: bool) -> None:
    """Describe a run: process, network, data, training.

    With --list, or without any run: the available solvers, grids, processes and data sets.
    """
    console = Console(as_json)
    if cite:
        console.say(CITATION)
        return console.result(title=TITLE, author=AUTHORS, version=__version__, bibtex=CITATION)
    if listing or (run is None and not _any_run()):
        return _list_tables(console)
    opened = open_run(run, "cpu", console)
    facts = describe_run(opened)
    console.say(f"{opened.folder}\n" + columns([[name, line] for name, line in fact_lines(facts).items()]))
    return console.result(run=opened.folder, **facts)


def _any_run() -> bool:
    try:
        latest_run()
    except FileNotFoundError:
        return False
    return True


def _list_tables(console: Console) -> None:
    console.say(
        "\n\n".join([tables.solvers(), tables.grids(), tables.processes(), tables.networks(), tables.datasets()])
    )
    console.say("\nDATA may also be a .npy, .npz, .csv, .parquet or IDX file, or a folder of images")
    lists: dict[str, Mapping[str, object]] = {
        "solvers": SOLVERS,
        "grids": GRIDS,
        "processes": PROCESSES,
        "networks": NETWORKS,
        "predictions": PREDICTIONS,
        "time_laws": TIME_LAWS,
        "weightings": WEIGHTINGS,
        "objectives": OBJECTIVES,
        "schedules": SCHEDULES,
        "data": DATASETS,
    }
    console.result(**{name: list(table) for name, table in lists.items()})


def describe_run(run: Run) -> dict[str, Any]:
    """Return the description of a run as JSON values; of a latent model that of its first stage is ``first_stage``."""
    config, metrics = run_config(run.folder), read_metrics(run.folder)
    loaded, described = run.loaded, dict[str, Any]()
    if isinstance(loaded, FirstStage):
        described = describe_stage(loaded) | {"code": list(loaded.code_shape)}
    else:
        sde = run.model.sde
        described = describe_model(run.model) | {
            "log_snr": [2.0 * float(sde.half_log_snr(t)) for t in (sde.t_max, sde.t_min)]
        }
    if isinstance(loaded, LatentModel):
        described |= {
            "kind": "latent",
            "code": list(loaded.code_shape),
            "data": data_entries(run.info),
            "scale": loaded.scale.flatten().tolist(),
            "first_stage": describe_stage(loaded.first_stage),
        }
    return {
        **described,
        "parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "steps": max((steps[-1] for steps, _ in metrics.values()), default=None),
        "training": None if config is None else config.training.model_dump(),
        "last": {name: values[-1] for name, (_, values) in metrics.items()},
    }


def fact_lines(facts: dict[str, Any]) -> dict[str, str]:
    """Format the description of a run as lines by title."""
    data, training = facts["data"], facts["training"]
    lines = {
        "data": f"{data['name'] or 'of no name'}, items {tuple(data['shape'])}, "
        + (
            "continuous" + ", standardised inside" * (not {"shift", "scale"}.isdisjoint(data))
            if data["levels"] is None
            else f"{data['levels']} levels on [{data['low']:g}, {data['high']:g}]"
        ),
    }
    stage = facts.get("first_stage", facts if "encoder" in facts else None)
    if stage is not None:
        lines |= {
            "model": f"{_KINDS[facts['kind']]}, codes {tuple(facts['code'])}",
            "encoder": _name_and_parameters(stage["encoder"]),
            "decoder": f"{_name_and_parameters(stage['decoder'])}, {_name_and_parameters(stage['observation'])}",
        }
    if "sde" in facts:
        low, high = facts["log_snr"]
        lines |= {
            "process": f"{_name_and_parameters(facts['sde'])}, log-SNR {low:.3g} to {high:.3g}",
            "network": _name_and_parameters(facts["network"]),
            "output": f"{facts['prediction']}, conditioned on {facts['conditioning']}",
        }
    lines["size"] = f"{facts['parameters']:,} parameters"
    if training is not None:
        names = ("batch_size", "learning_rate", "ema", "time_law", "weighting", "objective", "seed")
        lines["training"] = f"{facts['steps']} of {training['steps']} steps, " + ", ".join(
            f"{name} {training[name]}" for name in names
        )
    if facts["last"]:
        lines["last"] = ", ".join(f"{name} {value:.4g}" for name, value in facts["last"].items())
    return lines


def _name_and_parameters(section: dict[str, Any]) -> str:
    """Format name and parameters of an entry; long lists, as of betas, by their length."""
    hidden = ("name", "shape", "settings", "scheduler")  # the last two are long, of networks of diffusers
    texts = (
        f"{name}={f'({len(value)} values)' if isinstance(value, list | tuple) and len(value) > 8 else value}"
        for name, value in section.items()
        if name not in hidden and value is not None
    )
    return f"{section['name']}({', '.join(texts)})"
