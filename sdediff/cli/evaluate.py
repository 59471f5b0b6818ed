"""``sdediff evaluate``."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
from torch import Tensor

from sdediff import evaluation
from sdediff.checkpoint import DESCRIPTION
from sdediff.cli import tables
from sdediff.cli.compare import Several
from sdediff.cli.conditions import Assignments, condition_option, with_condition
from sdediff.cli.console import Console, warnings_as_lines
from sdediff.cli.help import DescribedCommand
from sdediff.cli.items import ITEM_ARRAYS, DataItems, read_items, reading_of
from sdediff.cli.options import (
    COUNT,
    PATH,
    SolverChoice,
    TableName,
    batch_size_option,
    device_option,
    json_option,
    reading_option,
    seed_option,
    solver_options,
)
from sdediff.cli.runs import Run, find_run, open_run
from sdediff.config import Config
from sdediff.data import DATASETS, describe_items, load_dataset, to_levels
from sdediff.data.entries import levels_of
from sdediff.data.files import load_items
from sdediff.devices import pick_device
from sdediff.evaluation import LIKELIHOOD_METHODS, mean_and_error
from sdediff.generation import sample
from sdediff.interop import find_model, sample_bounds
from sdediff.quality import MEASURES, Quality, Scripted
from sdediff.quality import evaluate as evaluate_samples
from sdediff.quality.embedding import AUTO, Features
from sdediff.quality.evaluate import RESAMPLES
from sdediff.quality.features import FEATURES
from sdediff.quality.scripted import SUFFIXES
from sdediff.samplers import SAMPLERS
from sdediff.training.folder import CONFIG
from sdediff.types import DataInfo

DRAWN, SCORED = 1000, 128
"""Numbers of samples and of scored items of a run by default."""

EXAMPLES = """\
  sdediff evaluate                  # the most recent run and its held-out data
  sdediff evaluate runs/digits -n 5000 --solver sde --steps 100
  sdediff evaluate samples.npz --data test.npz --json
  sdediff evaluate pictures/ --data photos/ --features inception.pt"""

RANGE_HELP = "Values of black and white for --features FILE, unless it takes bytes.  [default: -1 1]"


class Subject(NamedTuple):
    """Samples ``(n, *shape)``, the data beside them, and the run that drew the samples, if one did."""

    samples: Tensor
    data: DataItems
    info: DataInfo
    run: Run | None


@click.command("evaluate", cls=DescribedCommand, examples=EXAMPLES, notes=(partial(tables.solvers_by_use, SAMPLERS),))
@click.argument("subject", metavar="[SAMPLES_OR_RUN]", type=PATH, required=False)
@click.option("--data", help="A file or folder of data, or a data set's name for its held-out part.")
@reading_option
@click.option("-n", "--number", type=COUNT, help=f"Samples of a run, or the first of a file.  [default: {DRAWN}; all]")
@click.option(
    "--features",
    default=AUTO,
    show_default=True,
    help=f"Space of the comparison: {', '.join(FEATURES)}, or a TorchScript FILE ({', '.join(SUFFIXES)}).",
)
@click.option("--feature-range", type=float, nargs=2, metavar="LOW HIGH", help=RANGE_HELP)
@click.option("--feature-size", type=COUNT, help="Width and height for --features FILE.  [default: 299]")
@click.option(
    "--measure",
    "measures",
    type=Several(TableName(MEASURES, "measure")),
    help=f"Measures, comma-separated: {', '.join(MEASURES)}.  [default: all]",
)
@click.option(
    "--resamples",
    type=click.IntRange(min=0),
    default=RESAMPLES,
    show_default=True,
    help="Pairs of halves behind an interval; 0 for no intervals.",
)
@click.option(
    "--scored",
    type=click.IntRange(min=0),
    help=f"Items of the data whose likelihood a run is asked for; 0 for none.  [default: {SCORED}]",
)
@solver_options(SAMPLERS, None, "  [default: ode; of a run only]")
@seed_option
@batch_size_option(256)
@condition_option
@device_option
@json_option
def command(
    subject: Path | None,
    data: str | None,
    number: int | None,
    features: str,
    feature_range: tuple[float, float] | None,
    feature_size: int | None,
    measures: tuple[str, ...] | None,
    resamples: int,
    scored: int | None,
    solver: SolverChoice,
    seed: int,
    batch_size: int,
    condition: Assignments,
    device: str,
    as_json: bool,
) -> None:
    """Measure how like the data samples are: of a file or folder, or drawn from a run.

    The figures are the Fréchet distance, precision and recall, the sliced Wasserstein distance and a classifier's
    accuracy, in a space of features that the output names; each with its interval, and with what perfect samples
    would have. A run's likelihood of the data comes with them. DATA of a run are its held-out data by default.

    --features FILE runs a network that you name, such as Inception for FID. A TorchScript file is a program, which can
    read files and fill the memory: give only one that you trust.
    """
    console = Console(as_json)
    chosen = _features(features, feature_range, feature_size)
    start = time.perf_counter()
    if subject is None or _is_run(subject):
        run = with_condition(open_run(subject or find_run(console), device, console), condition)
        loaded = _draw(console, run, read_items(data, run), number or DRAWN, solver, seed, batch_size)
    else:
        given = {"--scored": scored, "--solver": solver.name, "--condition": condition or None, **solver.options}
        _refuse_run_options([name for name, value in given.items() if value is not None])
        loaded = _read(subject, data, number)
    console.note(f"data: {loaded.data.name}, {describe_items(loaded.data.items, loaded.info)}")
    with console.bar("comparing", "step") as report:
        quality = evaluate_samples(
            loaded.samples,
            loaded.data.items,
            features=chosen,
            measures=measures,
            info=loaded.info,
            seed=seed,
            resamples=resamples,
            batch_size=batch_size,
            device=pick_device(device),
            progress=report,
        )
    count = SCORED if scored is None else scored
    likelihood = None
    if loaded.run is not None and count > 0:
        likelihood = _likelihood(console, loaded.run, loaded.data.items, count, seed, batch_size)
    _finish(console, loaded, quality, likelihood, time.perf_counter() - start)


def _features(name: str, pixels: tuple[float, float] | None, size: int | None) -> Features:
    """Return the features that the options name.

    Raises:
        ValueError: for options of a file without one.
    """
    options = {key: value for key, value in (("pixels", pixels), ("size", size)) if value is not None}
    if Path(name).suffix.lower() in SUFFIXES:
        return Scripted(Path(name), **options)  # type: ignore[arg-type]
    if options:
        raise ValueError(f"--feature-range and --feature-size are of a network in a file, not of --features {name}")
    return name


def _is_run(path: Path) -> bool:
    """Return whether a path is a run or a folder of diffusers; pictures and arrays are samples."""
    if path.is_dir():
        return any((path / name).is_file() for name in (DESCRIPTION, CONFIG)) or find_model(path) is not None
    return path.name == DESCRIPTION


def _refuse_run_options(given: list[str]) -> None:
    """Refuse options that only a run has a use for."""
    if given:
        names = ", ".join(name if name.startswith("-") else f"--{name}" for name in given)
        raise ValueError(f"{names}: only for a run, which is sampled and scored; these samples are there already")


def _draw(
    console: Console, run: Run, data: DataItems, number: int, solver: SolverChoice, seed: int, batch_size: int
) -> Subject:
    """Draw samples of a run: levels beside levels, values beside values."""
    sampler, bounds = solver.resolve(solver.name or "ode"), sample_bounds(run.model)
    model = bounds.of(run.model) if bounds.words else run.model  # as `sdediff sample` does
    with console.bar("sampling") as report:
        x = sample(
            model,
            (number, *run.state_shape),
            sampler,
            steps=solver.steps,
            grid=solver.grid,
            seed=seed,
            batch_size=batch_size,
            progress=report,
        )
        x = run.data(x, batch_size)
    levels = not data.items.is_floating_point()
    return Subject(to_levels(x, run.info) if levels else x, data, run.info, run)


def _read(path: Path, name: str | None, number: int | None) -> Subject:
    """Read samples and data from files.

    Raises:
        FileNotFoundError: if there is nothing at a path.
        ValueError: if there is no name of data, or a file cannot be read.
    """
    if name is None:
        raise ValueError(f"{path} holds samples: say with --data what they are to be like")
    if not path.exists():
        raise FileNotFoundError(f"no samples or run at {path}")
    with warnings_as_lines():
        if name in DATASETS or not Path(name).exists():
            dataset = load_dataset(name)
            data, info = DataItems(dataset.held_out, f"held-out {name}", None, None), dataset.info
        else:
            data = DataItems(load_items(Path(name), ITEM_ARRAYS, reading_of(Config())).x, name, None, None)
            info = DataInfo(tuple(data.items.shape[1:]), levels_of(data.items))
        arrays = ("samples", "levels") if data.items.is_floating_point() else ("levels", "samples")
        samples = load_items(path, (*arrays, *ITEM_ARRAYS), shape=info.shape).x
    return Subject(samples[:number], data, info, None)


class Likelihood(NamedTuple):
    """The mean likelihood of items of the data, its standard error, and its unit."""

    mean: float
    standard_error: float
    items: int
    unit: str

    def __str__(self) -> str:
        """Return a line."""
        better = "larger" if self.unit == "nats" else "smaller"
        number = f"{self.mean:.5g} +- {self.standard_error:.2g} {self.unit}"
        return f"likelihood of {self.items} items of the data: {number}, mean and standard error; {better} is better"


def _likelihood(console: Console, run: Run, items: Tensor, count: int, seed: int, batch_size: int) -> Likelihood:
    """Return the mean likelihood of some of the data, a random part."""
    rows, method = evaluation.order(len(items), seed)[:count], "flow" if run.stage is None else "stages"
    with console.bar("likelihood", "item") as report:
        result = evaluation.evaluate(
            partial(LIKELIHOOD_METHODS[method].evaluate, run.model if run.stage is None else run.stage, seed=seed),
            items[rows],
            seed=seed,
            batch_size=batch_size,
            report=lambda part: report(part.done, part.total),
        )
    if result.interrupted:
        raise KeyboardInterrupt
    return Likelihood(*mean_and_error(result.values), result.done, evaluation.unit(items)[0])


def _finish(console: Console, loaded: Subject, quality: Quality, scored: Likelihood | None, seconds: float) -> None:
    """Print the figures as text and as JSON."""
    text = str(quality) if scored is None else f"{quality}\n\n{scored}"
    console.say(f"{text}\n  {seconds:.1f} s")
    for line in quality.remarks:
        console.note(line)
    console.result(
        run=None if loaded.run is None else loaded.run.folder,
        reference=loaded.data.name,
        **quality.to_dict(),
        likelihood=None if scored is None else scored._asdict(),
        seconds=seconds,
    )
