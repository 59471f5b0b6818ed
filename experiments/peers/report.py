"""The table, the geometric means, the figure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from .contest import BUDGETS, FIELDS, Score
from .measure import Errors

mpl.use("Agg")
from matplotlib import pyplot as plt

METRICS = ("rms", "median")


@dataclass(frozen=True)
class Outcome:
    """One problem's scores: peers on few starts and on all, ours by name and budget."""

    name: str
    screened: list[Score]
    peers: list[Score]
    ours: dict[str, dict[int, Errors]]

    def best(self, field: str, metric: str, budget: int) -> Score:
        """The peers' best by one metric."""
        allowed = [s for s in self.peers if s.budget == budget and s.field <= FIELDS.index(field)]
        return min(allowed, key=lambda score: getattr(score.errors, metric))

    def ratio(self, field: str, metric: str, budget: int, solver: str = "ode") -> float:
        """Our error over the peers' best."""
        errors = self.ours[solver].get(budget)
        return (
            math.inf if errors is None else _of(errors, metric) / _of(self.best(field, metric, budget).errors, metric)
        )


def _of(errors: Errors, metric: str) -> float:
    return float(getattr(errors, metric))


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def summary(outcomes: list[Outcome], solver: str) -> dict[str, dict[str, float]]:
    """Geometric mean and maximum of a solver's ratios over problems and budgets."""
    rows = {}
    for field in FIELDS:
        for metric in METRICS:
            ratios = [outcome.ratio(field, metric, n, solver) for outcome in outcomes for n in BUDGETS]
            rows[f"{field} {metric}"] = {"mean": geometric_mean(ratios), "max": max(ratios)}
    return rows


def table(outcomes: list[Outcome]) -> str:
    """A line a problem and budget; the best peers' names; a line a solver of ours."""
    head = "".join(f"  {text:>19}" for text in (*(f"peers, {f}" for f in FIELDS), "ode"))
    head += "".join(f"  {f'ode / {f}':>14}" for f in FIELDS)
    lines = [f"{'RMS / median of':16} {'N':>3}{head}   best by RMS | by median, a field each"]
    for outcome in outcomes:
        for n in BUDGETS:
            best = {(f, m): outcome.best(f, m, n) for f in FIELDS for m in METRICS}
            pairs = [tuple(_of(best[f, m].errors, m) for m in METRICS) for f in FIELDS]
            ours = outcome.ours["ode"][n]
            pairs.append((ours.rms, ours.median))
            ratios = [tuple(outcome.ratio(f, m, n) for m in METRICS) for f in FIELDS]
            names = " || ".join(" | ".join(best[f, m].label for m in METRICS) for f in FIELDS)
            cells = [f"{a:9.2e} {b:9.2e}" for a, b in pairs] + [f"{a:7.2f} {b:6.2f}" for a, b in ratios]
            lines.append(f"{outcome.name:16} {n:3}  " + "  ".join(cells) + "   " + names)
    lines += [
        "",
        f"{'geometric mean (max) of our error / best peer':46}"
        + "".join(f"{f'{f} {m}':>18}" for f in FIELDS for m in METRICS),
    ]
    for solver in outcomes[0].ours:
        rows = summary(outcomes, solver).values()
        lines.append(f"{solver:46}" + "".join(f"{row['mean']:10.3f} ({row['max']:5.2f})" for row in rows))
    return "\n".join(lines)


def as_json(outcomes: list[Outcome]) -> dict[str, Any]:
    """Everything measured."""
    solvers = outcomes[0].ours
    return {
        "ratios": {solver: summary(outcomes, solver) for solver in solvers},
        "problems": {
            o.name: {
                "starts_screened": [asdict(score) for score in o.screened],
                "peers": [asdict(score) for score in o.peers],
                "ours": {name: {n: asdict(errors) for n, errors in row.items()} for name, row in o.ours.items()},
            }
            for o in outcomes
        },
    }


def draw(outcomes: list[Outcome], path: Path) -> None:
    """Error against forwards: a column a problem, RMS above, median below."""
    figure, axes = plt.subplots(2, len(outcomes), figsize=(4.2 * len(outcomes), 7.0), squeeze=False, sharex=True)
    for column, outcome in zip(axes.T, outcomes, strict=True):
        for axis, metric in zip(column, METRICS, strict=True):
            _panel(axis, outcome, metric)
        column[0].set_title(outcome.name)
        column[1].set_xlabel("forwards of the network")
    for axis, metric in zip(axes[:, 0], METRICS, strict=True):
        axis.set_ylabel({"rms": "RMS error", "median": "median error of a sample"}[metric])
    axes[0, 0].plot([], [], color="0.75", lw=1.0, label="a configuration of a peer, own grids")
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Any, outcome: Outcome, metric: str) -> None:
    lines: dict[str, dict[int, float]] = {}
    for score in outcome.screened:
        if score.field == 0:
            lines.setdefault(score.label, {})[score.budget] = _of(score.errors, metric)
    for line in lines.values():
        axis.plot(*zip(*sorted(line.items()), strict=True), color="0.75", lw=0.4)
    for field, style in (("own", "-"), ("any", ":")):
        best = [_of(outcome.best(field, metric, n).errors, metric) for n in BUDGETS]
        axis.plot(BUDGETS, best, color="black", lw=1.2, ls=style, label=f"best peer, {field} grids")
    ours = outcome.ours["ode"]
    axis.plot(
        list(ours),
        [_of(e, metric) for e in ours.values()],
        color="tab:blue",
        lw=2.5,
        marker="o",
        ms=4,
        label='sdediff "ode"',
    )
    axis.set(xscale="log", yscale="log", xticks=BUDGETS, xticklabels=BUDGETS)
    axis.minorticks_off()
    low = min(_of(e, metric) for e in ours.values())
    axis.set_ylim(0.3 * min(low, *(_of(outcome.best(FIELDS[-1], metric, n).errors, metric) for n in BUDGETS)), 2.0)
