"""What ``sdediff likelihood`` says and writes: a bar, a table, a picture, a summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff import evaluation, plots
from sdediff.cli.console import Console
from sdediff.cli.output import write_csv, write_npz
from sdediff.cli.runs import Run
from sdediff.evaluation import LIKELIHOOD_METHODS, Evaluation
from sdediff.evaluation.methods import EFFECT, ERROR, TERM
from sdediff.likelihood.result import ErrorBudget
from sdediff.plots.likelihoods import Likelihoods, alone, with_images, with_points
from sdediff.progress import Progress
from sdediff.types import DataInfo

WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {".npz": write_npz, ".csv": write_csv}
"""What ``--out`` may be, by suffix."""


class Files(NamedTuple):
    """Where things go, if anywhere: the table, its unfinished form, the picture."""

    out: Path | None
    part: Path | None
    picture: Path | None


class Task(NamedTuple):
    """What is scored, how, and where it goes."""

    console: Console
    run: Run
    items: Tensor
    words: str
    method: str
    files: Files


@contextmanager
def bar(task: Task, show: bool) -> Iterator[Callable[[Evaluation], None]]:
    """Progress over the items with the mean so far."""
    unit = evaluation.unit(task.items)[0]
    with Progress("likelihood", "item", len(task.items), show=show) as progress:
        yield lambda scores: progress(scores.done, note=f"{mean_of(scores)} {unit}")


def mean_of(scores: Evaluation) -> str:
    """The mean and its standard error."""
    mean, error = evaluation.mean_and_error(scores.values)
    return f"{mean:.5g} +- {error:.2g}"


def finish(task: Task, scores: Evaluation, target: float | None) -> None:
    """Write the files and say what came out; of an interrupted run only how far it came."""
    console, files, unit = task.console, task.files, evaluation.unit(task.items)[0]
    if scores.interrupted:
        so_far = f": {mean_of(scores)} {unit} so far" if scores.done else ""
        console.note(f"stopped after {scores.done} of {scores.total} items{so_far}")
        if files.part is not None and scores.done:
            console.note(f"  next  the same command goes on with {files.part}")
        elif files.part is None:
            console.note("  nothing is kept; with --out it would be")
        return
    if files.out is not None:
        WRITERS[files.out.suffix](files.out, _sorted(scores))
    if files.picture is not None:
        _draw(task, scores, files.picture)
    _report(task, scores, target)
    if files.part is not None and not scores.on_target:  # else the rest can still be gone on with
        files.part.unlink(missing_ok=True)  # the last thing: until then the same command finishes what is left


def _report(task: Task, scores: Evaluation, target: float | None) -> None:
    """The figures, for people and for machines."""
    console, files, unit = task.console, task.files, evaluation.unit(task.items)[0]
    mean, error = evaluation.mean_and_error(scores.values)
    budget, nfe = _budget(scores, unit), float(scores.columns["nfe"].astype(np.float64).mean())
    terms = {name: float(part.mean()) for name, part in _named(scores, TERM).items()}
    count = f"{scores.done} of {scores.total} items" if scores.on_target else f"{scores.done} items"
    lines = [f"{mean_of(scores)} {unit} ({task.words}, {count}; mean and standard error)"]
    if scores.on_target:
        lines.append(f"  stopped at the target of {target:g}; the items are a random part, their mean a fair estimate")
    elif target is not None and not error <= target:
        lines.append(f"  the target of {target:g} was not reached: there are no more items")
    lines.append(f"  {LIKELIHOOD_METHODS[task.method].description}, {nfe:g} forwards, {scores.seconds:.1f} s")
    if terms:
        lines.append(f"  = {' + '.join(f'{value:.4g} {name}' for name, value in terms.items())} (costs)")
    lines += ["", *(f"  {line}" for line in str(budget).splitlines()), ""]
    lines += [f"  {name:8s} {path}" for name, path in {"items": files.out, "picture": files.picture}.items() if path]
    console.say("\n".join(lines).rstrip())
    console.result(
        run=task.run.folder,
        data=task.words,
        method=task.method,
        unit=unit,
        mean=mean,
        standard_error=error,
        items=scores.done,
        total=scores.total,
        on_target=scores.on_target,
        terms=terms,
        error_budget=budget.to_dict(),
        nfe=nfe,
        seconds=scores.seconds,
        out=files.out,
        picture=files.picture,
    )


def _sorted(scores: Evaluation) -> dict[str, Any]:
    """The columns in the order of the data, the index first."""
    place = np.argsort(scores.columns["item"])
    names = ("item", *(name for name in scores.columns if name != "item"))
    return {name: scores.columns[name][place] for name in names}


def _draw(task: Task, scores: Evaluation, path: Path) -> None:
    """The picture that suits the items."""
    unit, name, _ = evaluation.unit(task.items)
    mean, error = evaluation.mean_and_error(scores.values)
    label = "log p, nats (larger is likelier)" if name == "log_prob" else f"{unit} (smaller is likelier)"
    found = Likelihoods(torch.from_numpy(scores.values.astype(np.float64)), label, mean, error, name != "log_prob")
    items, info = task.items[torch.from_numpy(scores.columns["item"])], task.run.info
    if plots.is_image(info.shape):
        low, high = _shades(items, info)
        with_images(found, items, path, low=low, high=high)
    elif len(info.shape) == 1:
        with_points(found, items, path)
    else:
        alone(found, path)


def _shades(items: Tensor, info: DataInfo) -> tuple[float, float]:
    """Black and white."""
    if info.levels is None:
        return float(items.min()), float(items.max())
    return (info.low, info.high) if items.is_floating_point() else (0.0, info.levels - 1.0)


def _budget(scores: Evaluation, unit: str) -> ErrorBudget:
    """The parts of the error over all items, and their spread; parts that nothing is known of are left out."""
    random, effects = (
        {name: part for name, part in _named(scores, prefix).items() if not bool(part.isnan().any())}
        for prefix in (ERROR, EFFECT)
    )
    return ErrorBudget(random, effects, {"items": evaluation.mean_and_error(scores.values)[1]}, unit=unit)


def _named(scores: Evaluation, prefix: str) -> dict[str, Tensor]:
    """The columns whose names begin so, by the rest of the name."""
    return {
        name.removeprefix(prefix): torch.from_numpy(column)
        for name, column in scores.columns.items()
        if name.startswith(prefix)
    }
