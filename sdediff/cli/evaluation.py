"""Output of ``sdediff likelihood``: progress bar, table of items, picture, summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff import evaluation, plots
from sdediff.cli.anomalies import AnomalyReport, AnomalySearch
from sdediff.cli.console import Console
from sdediff.cli.output import write_csv, write_npz
from sdediff.cli.runs import Run
from sdediff.data.dataset import Ids
from sdediff.evaluation import LIKELIHOOD_METHODS, Evaluation
from sdediff.evaluation.methods import TERM
from sdediff.likelihood.result import EFFECT, ERROR, ErrorBudget
from sdediff.plots.likelihoods import Likelihoods, histogram_only, with_images, with_points
from sdediff.progress import Progress
from sdediff.tables import subtable
from sdediff.types import DataInfo

WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {".npz": write_npz, ".csv": write_csv}
"""Writers of ``--out`` by suffix."""


class OutputFiles(NamedTuple):
    """Paths of the table of items, its unfinished form, and the picture; ``None`` if not wanted."""

    out: Path | None
    unfinished: Path | None
    picture: Path | None


class Task(NamedTuple):
    """The evaluated items, what they are called in their source, the method, the output, the search for anomalies."""

    console: Console
    run: Run
    items: Tensor
    called: Mapping[str, Ids]
    name: str
    method: str
    files: OutputFiles
    search: AnomalySearch


@contextmanager
def evaluation_bar(task: Task, show: bool) -> Iterator[Callable[[Evaluation], None]]:
    """Show the progress over the items, with the mean so far."""
    unit = evaluation.unit(task.items)[0]
    with Progress("likelihood", "item", len(task.items), show=show) as progress:
        yield lambda result: progress(result.done, note=f"{_mean_text(result)} {unit}")


def _mean_text(result: Evaluation) -> str:
    """Format the mean and its standard error."""
    mean, error = evaluation.mean_and_error(result.values)
    return f"{mean:.5g} +- {error:.2g}"


def write_evaluation(task: Task, result: Evaluation, target: float | None) -> None:
    """Write the files and print the result; after an interruption, print the number of items done."""
    console, files, unit = task.console, task.files, evaluation.unit(task.items)[0]
    if result.interrupted:
        so_far = f": {_mean_text(result)} {unit} so far" if result.done else ""
        console.note(f"stopped after {result.done} of {result.total} items{so_far}")
        if files.unfinished is not None and result.done:
            console.note(f"  next  the same command goes on with {files.unfinished}")
        elif files.unfinished is None:
            console.note("  nothing is kept; with --out it would be")
        return
    report = task.search.report(result, task.items, task.called)
    if files.out is not None:
        WRITERS[files.out.suffix](files.out, _in_order(result, task.called, report.columns))
    if files.picture is not None:
        draw_picture(task.items, task.run.info, result, files.picture)
    _print_evaluation(task, result, target, report)
    if files.unfinished is not None and not result.on_target:  # at a target, further items can still be added
        files.unfinished.unlink(missing_ok=True)  # last: until then the same command completes the output


def _print_evaluation(task: Task, result: Evaluation, target: float | None, report: AnomalyReport) -> None:
    """Print the result as text and as JSON."""
    console, files, unit = task.console, task.files, evaluation.unit(task.items)[0]
    mean, error = evaluation.mean_and_error(result.values)
    budget, nfe = total_budget(result, unit), float(result.columns["nfe"].astype(np.float64).mean())
    terms = {name: float(torch.from_numpy(x).mean()) for name, x in subtable(result.columns, TERM).items()}
    count = f"{result.done} of {result.total} items" if result.on_target else f"{result.done} items"
    lines = [f"{_mean_text(result)} {unit} ({task.name}, {count}; mean and standard error)"]
    if result.on_target:
        lines.append(f"  stopped at the target of {target:g}; the items are a random part, their mean a fair estimate")
    elif target is not None and not error <= target:
        lines.append(f"  the target of {target:g} was not reached: there are no more items")
    lines.append(f"  {LIKELIHOOD_METHODS[task.method].description}, {nfe:g} forwards, {result.seconds:.1f} s")
    if terms:
        lines.append(f"  = {' + '.join(f'{value:.4g} {name}' for name, value in terms.items())} (costs)")
    lines += ["", *(f"  {line}" for line in str(budget).splitlines()), "", *report.lines]
    lines += [f"  {name:8s} {path}" for name, path in {"items": files.out, "picture": files.picture}.items() if path]
    console.say("\n".join(lines).rstrip())
    console.result(
        run=task.run.folder,
        data=task.name,
        method=task.method,
        unit=unit,
        mean=mean,
        standard_error=error,
        items=result.done,
        total=result.total,
        on_target=result.on_target,
        terms=terms,
        error_budget=budget.to_dict(),
        nfe=nfe,
        seconds=result.seconds,
        out=files.out,
        picture=files.picture,
        **report.figures,
    )


def _in_order(result: Evaluation, called: Mapping[str, Ids], more: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return all columns in the order of the data: the index first, then what the items are in their source."""
    order = np.argsort(result.columns["item"])
    item = result.columns["item"][order]
    names = [name for name in result.columns if name != "item"]
    return {
        "item": item,
        **{name: ids[item] for name, ids in called.items()},
        **{name: result.columns[name][order] for name in names},
        **{name: values[order] for name, values in more.items()},
    }


def draw_picture(items: Tensor, info: DataInfo, result: Evaluation, path: Path) -> None:
    """Draw images, points or a histogram, by the shape of the items."""
    unit, name, _ = evaluation.unit(items)
    mean, error = evaluation.mean_and_error(result.values)
    label = "log p, nats (larger is likelier)" if name == "log_prob" else f"{unit} (smaller is likelier)"
    values = torch.from_numpy(result.values.astype(np.float64))
    likelihoods = Likelihoods(values, label, mean, error, name != "log_prob")
    items = items[torch.from_numpy(result.columns["item"])]
    if plots.is_image(info.shape):
        low, high = plots.shades(items, info)
        with_images(likelihoods, items, path, low=low, high=high)
    elif len(info.shape) == 1:
        with_points(likelihoods, items, path)
    else:
        histogram_only(likelihoods, path)


def total_budget(result: Evaluation, unit: str) -> ErrorBudget:
    """Return the parts of the error over all items, and their spread; parts with unknown values are left out."""
    random, effects = (
        {key: torch.from_numpy(x) for key, x in subtable(result.columns, prefix).items() if not np.isnan(x).any()}
        for prefix in (ERROR, EFFECT)
    )
    return ErrorBudget(random, effects, {"items": evaluation.mean_and_error(result.values)[1]}, unit=unit)
