"""Anomalies among scored items: the least likely, the area under the ROC curve, and a simple density beside the model.

``--anomaly-label`` says which class is anomalous; ``--labels``, of another meaning, tells the network classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdediff import evaluation
from sdediff.cli.console import columns
from sdediff.cli.items import DataItems, training_items
from sdediff.cli.options import COUNT, TableName, together
from sdediff.cli.runs import Run
from sdediff.data.dataset import Ids
from sdediff.data.held_out import class_names
from sdediff.evaluation import BASELINES, Auroc, Baseline, Evaluation, auroc, auroc_difference

MODEL = "model"
"""Name of the model beside a baseline."""

anomaly_options = together(
    click.option("--top", type=COUNT, metavar="N", help="List the N least likely items."),
    click.option(
        "--anomaly-label",
        multiple=True,
        metavar="CLASS",
        help="Anomalous [COLUMN=]CLASS of DATA, for the AUROC.",
    ),
    click.option(
        "--baseline", type=TableName(BASELINES, "baseline"), help="gmm: Gaussians fitted to the training data."
    ),
)


class AnomalyReport(NamedTuple):
    """The findings: lines of text, figures for ``--json``, and columns of the items in the order they were taken."""

    lines: list[str]
    figures: dict[str, Any]
    columns: dict[str, NDArray[Any]]


class AnomalySearch(NamedTuple):
    """A search for anomalies.

    Attributes:
        top: number of least likely items to list.
        anomalous: whether each item of the data is anomalous, ``(n,)``, if labels say so.
        kind: name of the anomalous classes.
        baseline: name of the baseline and its density, if one is wanted.
    """

    top: int
    anomalous: NDArray[np.bool_] | None
    kind: str
    baseline: tuple[str, Baseline] | None

    def report(self, result: Evaluation, items: Tensor, called: Mapping[str, Ids]) -> AnomalyReport:
        """Return what the finished items say, in the unit of their evaluation."""
        index = result.columns["item"]
        unit, name, _ = evaluation.unit(items)
        sign = -1.0 if name == "log_prob" else 1.0  # of the surprise, in bits/dim or minus nats
        values = {MODEL: result.values.astype(np.float64)}
        more: dict[str, NDArray[Any]] = {}
        if self.anomalous is not None:
            more["anomalous"] = self.anomalous[index].astype(np.int64)
        if self.baseline is not None:
            values[self.baseline[0]] = more[self.baseline[0]] = self.baseline[1].values(items[index])
        surprise = {key: sign * each for key, each in values.items()}
        lines, figures = self._areas(surprise, more.get("anomalous"))
        if self.baseline is not None:
            said, figures["baseline"] = _beside(*self.baseline, values, unit, figures.pop("baseline"))
            lines = [*lines[:1], *said, *lines[1:]]
        rows = self._least_likely(result, name, surprise[MODEL], called, more)
        table = [f"  least likely of {result.done:,}", columns(_texts(rows, name, unit), "    "), ""] if rows else []
        return AnomalyReport([*lines, *[""] * bool(lines), *table], {**figures, "least_likely": rows}, more)

    def _areas(self, surprise: Mapping[str, Any], kinds: NDArray[Any] | None) -> tuple[list[str], dict[str, Any]]:
        """Return lines and figures of the areas, the model's and the baseline's."""
        figures: dict[str, Any] = {"auroc": None, "baseline": None}
        if kinds is None:
            return [], figures
        if len(set(kinds.tolist())) < 2:
            return ["  no AUROC: the items done are all of one kind"], figures
        areas = {key: auroc(score, kinds > 0) for key, score in surprise.items()}
        own = areas.pop(MODEL)
        counts = f"{own.anomalous:,} anomalous ({self.kind}), {own.others:,} others"
        lines, figures["auroc"] = [f"  AUROC {_area_text(own)}; {counts}"], _area_figures(own)
        for key, area in areas.items():
            difference, error = auroc_difference(surprise[MODEL], surprise[key], kinds > 0)
            lines.append(f"  AUROC of {key} {_area_text(area)}; model - {key} {difference:+.4f} +- {error:.2g}")
            figures["baseline"] = {
                "auroc": _area_figures(area),
                "auroc_difference": difference,
                "auroc_difference_standard_error": error,
            }
        return lines, figures

    def _least_likely(
        self,
        result: Evaluation,
        name: str,
        surprise: NDArray[np.float64],
        called: Mapping[str, Ids],
        more: Mapping[str, NDArray[Any]],
    ) -> list[dict[str, Any]]:
        """Return the least likely items, the least likely first and ties in the order of the data."""
        index = result.columns["item"]
        places = np.lexsort((index, -surprise))[: self.top]
        named = {key: ids[index] for key, ids in called.items()}
        shown = {
            "item": index,
            **named,
            name: result.values,
            "standard_error": result.columns["standard_error"],
            **more,
        }
        return [{key: column[place].item() for key, column in shown.items()} for place in places]


def anomaly_column(labels: Sequence[str]) -> str | None:
    """Return the column that the anomalous classes name, if they name one.

    Raises:
        ValueError: if they name several.
    """
    named = {label.partition("=")[0] if "=" in label else None for label in labels}
    if len(named) > 1:
        raise ValueError(f"--anomaly-label: the classes must be of one column, not {', '.join(labels)}")
    return named.pop() if named else None


def anomaly_search(
    run: Run, data: DataItems, top: int, labels: Sequence[str], baseline: str | None, seed: int
) -> AnomalySearch:
    """Find the anomalous items by their labels, and fit the baseline, before the work.

    Raises:
        ValueError: if the data have no labels or no such class, are all of one kind, or the baseline has no fit.
    """
    anomalous = _anomalous(run, data, labels) if labels else None
    fitted = None
    if baseline is not None:
        try:
            train = training_items(run)
        except (ValueError, OSError) as error:
            raise ValueError(f"--baseline {baseline} needs the training data: {error}") from None
        if train.is_floating_point() != data.items.is_floating_point():
            raise ValueError(
                f"--baseline {baseline}: the run's data and DATA are of two kinds, integers and continuous"
            )
        fitted = (baseline, BASELINES[baseline](train, seed))
    return AnomalySearch(top, anomalous, ", ".join(labels), fitted)


def _anomalous(run: Run, data: DataItems, labels: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which items are of the anomalous classes, by name or number."""
    if data.labels is None:
        hint = "name the column of a table by --anomaly-label COLUMN=CLASS"
        raise ValueError(f"{data.name}: the data have no labels for --anomaly-label; {hint}")
    known = data.labels.numpy()
    names = data.classes or class_names(run.folder)
    wanted = []
    for label in labels:
        text = label.partition("=")[2] if "=" in label else label
        number = names.index(text) if text in names else int(text) if text.lstrip("-").isdecimal() else None
        if number is None or not (known == number).any():
            there = np.unique(known)
            have = [names[k] if 0 <= k < len(names) else str(k) for k in there[:10].tolist()]
            more = ", ..." if len(there) > 10 else ""
            raise ValueError(f"--anomaly-label {label}: no item of {data.name} is; they are {', '.join(have)}{more}")
        wanted.append(number)
    anomalous: NDArray[np.bool_] = np.isin(known, wanted)
    if anomalous.all():
        raise ValueError(
            f"--anomaly-label {', '.join(labels)}: all items of {data.name} are; an AUROC needs others too"
        )
    return anomalous


def _beside(
    name: str, baseline: Baseline, values: Mapping[str, NDArray[np.float64]], unit: str, areas: Mapping[str, Any] | None
) -> tuple[list[str], dict[str, Any]]:
    """Return lines and figures of a baseline's mean and the paired difference of the model."""
    (mean, error), (difference, spread) = map(evaluation.mean_and_error, (values[name], values[MODEL] - values[name]))
    lines = [
        f"  baseline {name}: {mean:.5g} +- {error:.2g} {unit} ({baseline.description})",
        f"  model - {name}: {difference:+.4g} +- {spread:.2g} {unit} (paired)",
    ]
    figures = {
        "name": name,
        "description": baseline.description,
        "mean": mean,
        "standard_error": error,
        "difference": difference,
        "difference_standard_error": spread,
    }
    return lines, {**figures, **(areas or {"auroc": None})}


def _area_text(area: Auroc) -> str:
    low, high = area.interval()
    return f"{area.value:.4f}" + ("" if math.isnan(low) else f", 95 % interval {low:.4f} to {high:.4f}")


def _area_figures(area: Auroc) -> dict[str, Any]:
    low, high = area.interval()
    return {**area._asdict(), "low": low, "high": high}


def _texts(rows: Sequence[Mapping[str, Any]], name: str, unit: str) -> list[list[str]]:
    """Return a table's cells, its head first."""
    if not any(row["standard_error"] for row in rows):  # of an exact trace, which has other errors: no claim of none
        rows = [{key: cell for key, cell in row.items() if key != "standard_error"} for row in rows]
    heads = {name: unit, "standard_error": "+-"}
    cells = [[f"{cell:.5g}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
    return [[heads.get(key, key) for key in rows[0]], *cells]
