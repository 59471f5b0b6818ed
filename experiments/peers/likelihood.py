"""Likelihoods of other packages and of sdediff against an exact density: error, wall time, passes of the network.

Two problems in 64 dimensions (``experiments.problems``), the same batch, dtype, model and one thread for all. The
peers (``likelihood_methods``) keep one probe along the path; the mean of R runs with probes of their own is their way
to a smaller error, R times as dear. Ours are the library's ``log_likelihood`` over a ladder of steps and probes.

    pip install -e ".[peers]" && pip install --no-deps k-diffusion
    python -m experiments.peers.likelihood                    # all parts
    python -m experiments.peers.likelihood --part curves      # error against cost, table and picture
    python -m experiments.peers.likelihood --quick            # minutes: 64 items

Expected, 256 items (digits mixture; smoothed digits). One probe costs every peer an error of 0.12; 0.073 bits/dim,
16 runs 0.033; 0.019; the probe's noise hides the solver. Ours over the best peer, at the time of one run: at
score_sde's 0.07; 0.13, at k-diffusion's 0.06; 0.14, at dopri5's at 1e-5 0.08; 0.17, and at 1e-3, the fastest, 0.15;
0.40. Our time over a peer's at its error: 0.05; 0.06, 0.04; 0.07, 0.06; 0.08, and 0.11; 0.18; at 16 runs 0.01 to 0.07.
On smoothed digits the path, not the probes, is what 24 to 32 steps leave (0.012). The default call: 0.016; 0.020 an
item, its mean over 1,000 items off by less than 1 standard error (5e-4; 6e-4), of which the exact trace on the same
path finds 3e-5; 2e-4. With the exact trace the mixture needs 49 forwards for 1e-3 and 56 for 1e-4 (RMS; a few items
make it: at 41 forwards the median is 2e-5, the RMS 2e-3), with a shorter memory on the quadratic grid 32 and 65.
Stated intervals of 95 % hold 94.8 to 97.4 % at K = 1 and 2; on the ring at K = 2, where as many probes as dimensions
make the trace exact and the size of the solver's error alone is stated, 99.9 %. Cost: 15 minutes of one core.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

import sdediff
import sdediff.samplers.relative
from experiments.problems import digits_mixture, ring

from .likelihood_measure import Case, Error, Point, Run, averaged, cost_at, counted, peer_run, rms_at, timed
from .likelihood_methods import Method, methods
from .likelihood_report import COSTS, draw

REPEATS = (1, 4, 16)
CASES = ("digits-mixture", "smoothed-digits")


class Setting(NamedTuple):
    """How much is measured."""

    items: int
    many: int
    repeats: tuple[int, ...]
    repetitions: int
    dtype: torch.dtype
    cache: Path
    out: Path


class Configuration(NamedTuple):
    """A call of ours."""

    line: str
    label: str
    options: dict[str, Any]

    def score(self, case: Case, seed: int = 0) -> Tensor:
        return sdediff.log_likelihood(case.model, case.x, seed=seed, **self.options).log_prob


def ours() -> list[Configuration]:
    """The ladder, and the call without options."""
    ladder = {1: (3, 4, 6, 8, 12, 16, 24), 2: (8, 12, 16, 24, 32), 4: (12, 16, 24, 32), 8: (12, 16, 24, 32, 48)}
    ladder |= {16: (16, 24, 32, 48), 32: (24, 32, 48)}
    probed = [
        Configuration(f"ours, K = {k}", f"{n} steps", {"steps": n, "probes": k, "trace": "hutchinson"})
        for k, steps in ladder.items()
        for n in steps
    ]
    traced = [
        Configuration("ours, exact", f"{n} steps", {"steps": n, "trace": "exact"}) for n in (8, 12, 16, 24, 32, 48, 64)
    ]
    sought = [
        Configuration("ours, target error", f"{bits:g}", {"target_error": bits * 64.0 * math.log(2.0)})
        for bits in (0.04, 0.02, 0.01, 0.005)
    ]
    return [*probed, *traced, *sought, Configuration("ours, default", "", {})]


# ---- error against cost --------------------------------------------------------------------------------------


def points(case: Case, setting: Setting) -> tuple[list[Point], list[Point]]:
    """Peers' and ours, timed in turn; those with the exact trace, which have no randomness and cost most, once."""
    peers, mine = methods(), {f"{c.line} {c.label}": c for c in ours()}

    def of_peer(method: Method, number: int) -> Run:
        return counted(case, partial(method.score, case.model, case.x, case.probe(number)))

    def of_us(c: Configuration, number: int) -> Run:
        return counted(case, partial(c.score, case, number))

    scores: dict[str, Callable[[int], Run]] = {m.name: partial(of_peer, m) for m in peers if m.probed}
    scores |= {key: partial(of_us, c) for key, c in mine.items() if "exact" not in key}
    mine["ours, default "].score(case)  # fills caches and lazy imports
    found = timed(scores, setting.repetitions)
    found |= timed({key: partial(of_us, c) for key, c in mine.items() if "exact" in key}, 1)
    made = []
    for key, c in mine.items():
        runs, seconds = found[key]
        error = Error.of([run.log_prob for run in runs], case)
        made.append(Point(c.line, c.label, error, seconds, runs[0].forwards, runs[0].products))
    timings = {m.name: found[m.name][1] for m in peers if m.probed}
    return [point for m in peers for point in of_peer_runs(case, m, timings.get(m.name), setting)], made


def of_peer_runs(case: Case, method: Method, seconds: float | None, setting: Setting) -> list[Point]:
    """A method at every number of runs averaged. Runs come from the cache; so does their time, where none was taken."""
    repeats = setting.repeats if method.probed else (1,)
    kept = [peer_run(case, method, number, setting.cache) for number in range(repeats[-1])]
    runs, each = [run for run, _ in kept], kept[0][1] if seconds is None else seconds
    forwards, products = (sum(run[i] for run in runs) / len(runs) for i in (1, 2))
    made = []
    for count in repeats:
        costs = each * count, forwards * count, products * count
        label = f"R = {count}" if method.probed else ""
        made.append(Point(method.name, label, Error.of(averaged(runs, count), case), *costs))
    return made


def ratios(peers: list[Point], mine: list[Point]) -> list[dict[str, Any]]:
    """Ours over the best peer at each peer's cost, and our cost over each peer's at its error, in either cost."""
    rows = []
    rivals = [point for point in peers if point.label]
    for point in rivals:
        row: dict[str, Any] = {"peer": f"{point.line}, {point.label}"}
        for name, cost in COSTS.items():
            best = min(p.error.rms for p in rivals if cost(p) <= cost(point))
            row[f"RMS at equal {name}"] = rms_at(mine, cost, cost(point)) / best
            row[f"{name} at equal RMS"] = cost_at(mine, cost, point.error.rms) / cost(point)
        rows.append(row)
    return rows


def curves(setting: Setting) -> dict[str, Any]:
    record: dict[str, Any] = {}
    measured = {}
    for name in CASES:
        case = Case(name, setting.items, setting.dtype)
        peers, mine = points(case, setting)
        print(f"\n{name}, {setting.items} items, {setting.dtype}; RMS and bias in bits/dim")
        print(f"{'':44}{'forw.':>6} {'prod.':>7} {'seconds':>8}  {'RMS':8}  bias")
        print("\n".join(str(point) for point in (*peers, *mine)), flush=True)
        rows = ratios(peers, mine)
        print("\nours over the peers'   " + "  ".join(key for key in rows[0] if key != "peer"))
        for row in rows:
            print(f"{row['peer']:34} " + "  ".join(f"{value:20.4f}" for key, value in row.items() if key != "peer"))
        measured[name] = (peers, mine)
        record[name] = {"peers": [asdict(p) for p in peers], "ours": [asdict(p) for p in mine], "ratios": rows}
    draw(measured, setting.out / "likelihood.png")
    return record


# ---- ours alone ----------------------------------------------------------------------------------------------


def bias(setting: Setting) -> dict[str, Any]:
    """The mean over many items at the default call; the exact trace on the same path tells what is not noise."""
    record: dict[str, Any] = {}
    print(f"\ndefault call, {setting.many} items, bits/dim      RMS       bias")
    for name in CASES:
        case, fewer = (Case(name, count, setting.dtype, seed=3) for count in (setting.many, setting.items))
        for label, items, options in (("", case, {}), (", exact trace", fewer, {"trace": "exact"})):
            found = sdediff.log_likelihood(items.model, items.x, batch_size=250, **options)
            error = Error.of([found.log_prob], items)
            print(f"{name + label:42} {error}   {abs(error.bias) / error.bias_error:.1f} standard errors", flush=True)
            record[name + label] = error._asdict()
    return record


def forwards(setting: Setting) -> dict[str, Any]:
    """With the exact trace: RMS against forwards, by the default path and by a shorter memory, better at ridges."""
    record = {}
    short = {"solver": sdediff.samplers.relative.Relative(3, correct_from=0), "grid": "quadratic"}
    print("\nexact trace, forwards: RMS in bits/dim")
    for name in CASES:
        case = Case(name, setting.items, setting.dtype)
        for label, options in (("", {}), (", memory 3, quadratic grid", short)):
            rows = {}
            for steps in (24, 31, 40, 48, 55, 64):
                call = Configuration("", "", {"steps": steps, "trace": "exact", **options})
                found = counted(case, partial(call.score, case))
                rows[round(found.forwards)] = Error.of([found.log_prob], case).rms
            print(f"{name + label:44}" + "  ".join(f"{count}: {rms:.1e}" for count, rms in rows.items()))
            for target in (1e-3, 1e-4):
                enough = min((count for count, rms in rows.items() if rms <= target), default=math.inf)
                print(f"{'':44}{target:.0e} from {enough} forwards", flush=True)
            record[name + label] = rows
    return record


def coverage(setting: Setting) -> dict[str, Any]:
    """How often the stated 95 % interval holds the truth, one and two probes."""
    mixture = digits_mixture()
    laws = {"gaussian": sdediff.analytic.Gaussian(mixture.mean, mixture.covariance), "mixture": mixture, "ring": ring()}
    record, count = {}, 2 * setting.many
    print(f"\ncoverage of the stated 95 % interval, {count} items (+- {50 / math.sqrt(count):.1f} %)")
    for name, law in laws.items():
        case = Case(name, count, setting.dtype, law=law, seed=2)
        for probes in (1, 2):
            found = sdediff.log_likelihood(case.model, case.x, trace="hutchinson", probes=probes, batch_size=250)
            (low, high), error = found.interval(), found.log_prob - case.truth
            inside = float(((low <= case.truth) & (case.truth <= high)).double().mean())
            stated = float(((high - low) / (2.0 * 1.96)).square().mean().sqrt()) / case.bits
            seen = float(error.square().mean().sqrt()) / case.bits
            print(f"{name:10} K = {probes}  {100 * inside:5.1f} %   stated {stated:.1e}, seen {seen:.1e}", flush=True)
            record[f"{name} {probes}"] = {"inside": inside, "stated": stated, "seen": seen}
    return record


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "curves": curves,
    "bias": bias,
    "forwards": forwards,
    "coverage": coverage,
}


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="64 items, few repetitions.")
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), default=list(PARTS))
@click.option("--float32", is_flag=True, help="States in float32.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/likelihood"), show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "sdediff-peers")
def main(quick: bool, parts: tuple[str, ...], float32: bool, out: Path, cache: Path) -> None:
    torch.set_num_threads(1)
    sizes: Any = (64, 100, REPEATS[:2], 1) if quick else (256, 1000, REPEATS, 3)
    setting = Setting(*sizes, torch.float32 if float32 else torch.float64, cache, out)
    out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        (out / f"{part}.json").write_text(json.dumps(PARTS[part](setting), indent=1))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
