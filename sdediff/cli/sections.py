"""The sections of a report, each a function from its subject to a part of the page."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff import __version__, evaluation, plots
from sdediff.checkpoint import FIRST, SECOND, TENSORS
from sdediff.cli.comparison import comparison_panels, comparison_tables, describe_reference, legend
from sdediff.cli.evaluation import draw_picture, total_budget
from sdediff.cli.frame import CommandFrame
from sdediff.cli.group import message_of
from sdediff.cli.info import describe_run, fact_lines
from sdediff.cli.items import DataItems, backdrop, read_items
from sdediff.cli.runs import Run, read_metrics, run_config
from sdediff.denoiser import Denoiser
from sdediff.evaluation import LIKELIHOOD_METHODS
from sdediff.evaluation.resume import digest
from sdediff.evaluation.solvers import compare
from sdediff.generation import sample
from sdediff.interop import sample_bounds
from sdediff.noise import STREAM
from sdediff.report import details, paragraph, picture, pictures, subtitle, table
from sdediff.training.folder import AUTOENCODER
from sdediff.types import DataInfo

SHOWN: tuple[tuple[str, int], ...] = (
    ("ode", 5),
    ("ode", 10),
    ("unipc3", 10),
    ("dpm++2m", 20),
    ("ode", 20),
    ("sde", 50),
)
"""Solvers and steps whose samples are shown."""
COMPARED, BUDGETS = ("ode", "ddim", "dpm++2m", "unipc3"), (5, 10, 20)
"""Solvers and NFE that are compared."""
STARTS, TOLERANCE = 32, 1e-5
"""Most starts of the comparison, and the tolerance of its reference."""
IMAGES, POINTS, EXTREMES = 16, 500, 5
"""Samples in a picture, and rows of the tables of the most and the least likely items."""
_WEIGHTS = (TENSORS, f"{FIRST}/{TENSORS}", f"{SECOND}/{TENSORS}")
_LOSSES = {"training": "loss", "held out": "held_out_loss"}


class Subject(NamedTuple):
    """The subject of a report.

    Attributes:
        frame: the frame of the command.
        run: the run.
        data: place or name of the items, ``None`` for the run's own.
        items: number of items.
        seed: seed of all randomness.
        batch_size: items the network sees at a time.
    """

    frame: CommandFrame
    run: Run
    data: str | None
    items: int
    seed: int
    batch_size: int


@dataclass(frozen=True)
class Part:
    """A section.

    Attributes:
        blocks: content, HTML.
        shown: values that stand above all sections, by name.
        results: values for ``--json``.
        reason: reason why the section is left out; empty if it is not.
    """

    blocks: Sequence[str]
    shown: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def left_out(title: str, describe: Callable[[Subject], Part], subject: Subject) -> Part:
    """Return a section or, of work that cannot be done, the reason why it is not there."""
    try:
        return describe(subject)
    except (ValueError, ArithmeticError, FileNotFoundError, PermissionError) as error:
        reason = " ".join(message_of(error).split())
    subject.frame.console.note(f"{title.lower()}: left out, {reason}")
    return Part([paragraph(f"Left out: {reason}")], reason=reason)


def configuration(subject: Subject) -> Part:
    """Describe process, network, data and training, and list all settings."""
    facts = describe_run(subject.run)
    blocks = [table([[name, text] for name, text in fact_lines(facts).items()])]
    config = run_config(subject.run.folder)
    if config is not None:
        settings = [
            [f"{section}.{name}", str(value)]
            for section, values in config.model_dump(mode="json").items()
            for name, value in values.items()
            if value is not None
        ]
        blocks.append(details(f"All {len(settings)} settings", table(settings)))
    return Part(blocks, {"weights": f"{facts['parameters']:,}"}, {"parameters": facts["parameters"]})


def training(subject: Subject) -> Part:
    """Draw the losses, of a latent model's own autoencoder too, and list the last metrics."""
    blocks, results = list[str](), dict[str, Any]()
    folder = subject.run.folder
    for place, words in ((folder, "Loss"), (folder / AUTOENCODER, "Loss of the autoencoder")):
        metrics = read_metrics(place)
        lines = {name: metrics[key] for name, key in _LOSSES.items() if key in metrics}
        if lines:
            blocks.append(picture(partial(plots.curves, lines), f"{words}, by steps of the optimiser"))
            last = {name: (steps[-1], values[-1]) for name, (steps, values) in metrics.items()}
            rows = [[name, f"{value:.5g}", f"{step:,}"] for name, (step, value) in last.items()]
            blocks.append(table(rows, ["metric", "last", "at step"]))
            results[place.name if place != folder else "last"] = {name: value for name, (_, value) in last.items()}
    return Part(blocks or [paragraph("The run holds no metrics.")], {}, {"training": results})


def samples(subject: Subject) -> Part:
    """Draw samples by several solvers from the same seed."""
    run, info = subject.run, subject.run.info
    bounds = sample_bounds(run.model)
    model: Denoiser = bounds.of(run.model) if bounds.words else run.model
    image = plots.is_image(info.shape)
    beneath = None if image else backdrop(run)
    shape = (IMAGES if image else POINTS, *run.state_shape)
    drawn, rows = list[str](), list[dict[str, Any]]()
    for solver, steps in SHOWN:
        with subject.frame.measure(model, f"sampling by {solver}") as measured:
            states = sample(
                model, shape, solver, steps=steps, seed=subject.seed,
                batch_size=subject.batch_size, progress=measured.report,
            )  # fmt: skip
        nfe, x = measured.items / shape[0], run.data(states, subject.batch_size)
        caption = f"{solver}, {steps} steps, {nfe:g} forwards"
        drawn.append(picture(partial(_draw_samples, x, info, beneath), caption))
        rows.append({"solver": solver, "steps": steps, "nfe": nfe, "seconds": measured.seconds})
    words = f"{shape[0]} samples each, of seed {subject.seed}: solvers without noise start from the same noise."
    words += f" The scheduler: {bounds.words}." if bounds.words else ""
    return Part([paragraph(words), pictures(drawn)], {}, {"samples": rows})


def _draw_samples(x: Tensor, info: DataInfo, reference: Tensor | None, path: Path) -> None:
    plots.picture(x, info, path, reference=reference)


def likelihood(subject: Subject) -> Part:
    """Evaluate items drawn from the data: histogram, the most and the least likely, error budget."""
    run = subject.run
    data = _drawn(read_items(subject.data, run), subject)
    method = "flow" if run.stage is None else "stages"
    scored = run.model if run.stage is None else run.stage
    with subject.frame.console.bar("likelihood", "item") as report:
        result = evaluation.evaluate(
            partial(LIKELIHOOD_METHODS[method].evaluate, scored, seed=subject.seed),
            data.items,
            seed=subject.seed,
            model=scored,
            processes=evaluation.Processes(run.device),
            report=lambda state: report(state.done, state.total),
        )
    if result.interrupted:
        raise KeyboardInterrupt
    unit, name, _ = evaluation.unit(data.items)
    mean, error = evaluation.mean_and_error(result.values)
    text = f"{mean:.5g} ± {error:.2g} {unit}"
    budget = total_budget(result, unit)
    parts = [
        [part, "" if row["item"] != row["item"] else f"{row['item']:.1e}", f"{row['mean']:.1e}"]
        for part, row in budget.to_dict().items()
    ]
    words = f"{text}: mean and standard error of {result.done} items of {data.name}"
    blocks = [
        paragraph(f"{words}, by the {LIKELIHOOD_METHODS[method].description}."),
        picture(partial(draw_picture, data.items, run.info, result), f"{unit} of the items, of {data.name}"),
        subtitle("Most and least likely items"),
        _extremes(data, result, name, unit),
        subtitle("Error budget"),
        paragraph(f"Errors in {unit}: of an item (root mean square), and of the mean."),
        table(parts, ["part", "an item (RMS)", "the mean"]),
        *([paragraph(budget.warning)] if budget.warning else []),
    ]
    results = {
        "data": data.name, "method": method, "unit": unit, "mean": mean, "standard_error": error,
        "items": result.done, "error_budget": budget.to_dict(),
    }  # fmt: skip
    return Part(blocks, {f"likelihood, {unit}": f"{mean:.4g} ± {error:.1g}"}, {"likelihood": results})


def _drawn(data: DataItems, subject: Subject) -> DataItems:
    """Return the first items in the random order of the seed, so that their mean is a fair estimate of that of all."""
    chosen = torch.from_numpy(evaluation.order(len(data.items), subject.seed)[: subject.items])
    labels = None if data.labels is None else data.labels[chosen]
    return DataItems(data.items[chosen], data.name, labels, None if data.ids is None else data.ids[chosen.numpy()])


def _extremes(data: DataItems, result: evaluation.Evaluation, name: str, unit: str) -> str:
    """Return a table of the most and the least likely items, by what they are called in their source."""
    called = next(iter(data.named.items()), ("item", None))
    sign = 1.0 if name == "bits_per_dim" else -1.0
    ranked = (sign * result.values.astype("float64")).argsort(kind="stable")
    places = [str(item) if called[1] is None else str(called[1][item]) for item in result.columns["item"]]
    count = min(EXTREMES, len(ranked))
    rows = [
        [str(k + 1), *(cell for i in (ranked[k], ranked[-1 - k]) for cell in (places[i], f"{result.values[i]:.4g}"))]
        for k in range(count)
    ]
    head = called[0].replace("_", " ")
    return table(rows, ["", f"most likely {head}", unit, f"least likely {head}", unit])


def errors(subject: Subject) -> Part:
    """Compare solvers with an accurate solve: error against forwards."""
    run, starts = subject.run, max(3, min(STARTS, subject.items))
    with subject.frame.console.bar("comparing", "forward") as report:
        result = compare(
            run.model,
            (starts, *run.state_shape),
            COMPARED,
            forwards=BUDGETS,
            tolerance=TOLERANCE,
            seed=subject.seed,
            batch_size=subject.batch_size,
            progress=report,
        )
    found = comparison_tables(result)
    draw = partial(plots.trade_off, comparison_panels(result), xlabel="forwards of the network")
    blocks = [
        paragraph("Distances from an accurate solve of the probability-flow ODE from the same starts."),
        picture(draw, "Error against forwards of the network"),
    ]
    for head, (names, *cells) in found.items():
        blocks += [subtitle(head), table(cells, names)]
    blocks.append(paragraph(f"{describe_reference(result)}. {legend(found)}."))
    pathwise = [row for row in result.rows if row.budget == BUDGETS[1] and row.rms is not None]
    best = min(pathwise, key=lambda row: row.rms)  # type: ignore[arg-type, return-value]  # the others are left out
    shown = {f"least error, {BUDGETS[1]} forwards": f"{best.rms:.1e} ({best.solver})"}
    rows = [row._asdict() for row in result.rows]
    return Part(blocks, shown, {"comparison": {"rows": rows, "reference": result.reference._asdict()}})


def provenance(subject: Subject) -> Part:
    """List versions, seeds, fingerprints of the weights, machine and date."""
    run = subject.run
    values = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "sdediff": f"{__version__}, noise stream {STREAM}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "machine": f"{platform.system()} {platform.machine()}, device {run.device}",
        "seed of the report": str(subject.seed),
    }
    with suppress(ValueError):  # of a damaged file, as the section of the configuration says
        config = run_config(run.folder)
        values |= {} if config is None else {"seed of the training": str(config.training.seed)}
    if run.condition:
        values["told"] = ", ".join(f"{name}={value.tolist()}" for name, value in run.condition.items())
    weights = [place for place in _WEIGHTS if (run.folder / place).is_file()]
    values |= {f"SHA-256 of {place}": _sha256(run.folder / place) for place in weights}
    if not weights:  # a folder of diffusers
        values["fingerprint of the model"] = digest(run.loaded)
    return Part([table([[name, text] for name, text in values.items()])], {}, {"provenance": values})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SECTIONS: dict[str, Callable[[Subject], Part]] = {
    "Configuration": configuration,
    "Training": training,
    "Samples": samples,
    "Likelihood": likelihood,
    "Error against forwards": errors,
    "Provenance": provenance,
}
"""Sections by title, in order."""
