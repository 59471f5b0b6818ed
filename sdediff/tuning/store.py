"""``tuned.json``: solvers tuned for the model beside it, by their number of steps.

The file names its format and the fingerprint of the model; with another model, or after more training, it does not fit
and is refused. It is written beside its place and moved into it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sdediff.checkpoint import describe, write
from sdediff.denoiser import ScoreModel
from sdediff.samplers.tuned import Method, Row, Tuned
from sdediff.tuning.tuner import Tuning

FORMAT = 1
FILE = "tuned.json"


def fingerprint(model: ScoreModel) -> str:
    """SHA-256 of everything a trajectory depends on: process, prediction, weights and moments.

    Raises:
        ValueError: if a part of the model is not one of the library's own.
    """
    digest = hashlib.sha256(json.dumps(describe(model), sort_keys=True).encode())
    tensors = dict(model.state_dict())
    if model.moments is not None:
        tensors |= {f"moments.{key}": value for key, value in vars(model.moments).items() if value is not None}
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(run: str | Path, model: ScoreModel, tunings: Iterable[Tuning]) -> Path:
    """Add solvers to the run's file, replacing those of the same numbers of steps; the file's path.

    Solvers that the file holds for another model go.

    Args:
        run: the folder of the run.
        model: the one that they were tuned for.
        tunings: what :func:`~sdediff.tuning.tuner` returned.
    """
    path, own = Path(run) / FILE, fingerprint(model)
    try:
        kept = _read(path, own)
    except (FileNotFoundError, ValueError):
        kept = {}
    for each in tunings:
        kept[str(each.solver.steps)] = {
            "half_log_snr": each.solver.half_log_snr,
            "rows": each.solver.rows,
            "clean": each.solver.clean,
            "method": each.solver.method._asdict(),
            "asked": each.solver.asked,
            "held_out": {"before": each.before._asdict(), "after": each.after._asdict()},
        }
    solvers = {key: kept[key] for key in sorted(kept, key=int)}
    write(path, (json.dumps({"format": FORMAT, "model": own, "solvers": solvers}) + "\n").encode())
    return path


def load(run: str | Path, model: ScoreModel, steps: int | None = None) -> Tuned:
    """The solver tuned for a model and a number of steps, to be given as ``solver=``.

    Args:
        run: the folder of the run.
        model: the run's model, as loaded.
        steps: the number of steps; by default the most that there is a solver for.

    Raises:
        FileNotFoundError: if nothing was tuned in the run.
        ValueError: if the file is damaged, is another model's, or has no solver of so many steps.
    """
    path = Path(run) / FILE
    solvers = _read(path, fingerprint(model))
    there = sorted(int(key) for key in solvers)
    if steps is None and there:
        steps = there[-1]
    if steps not in there:
        raise ValueError(f"{path} has no solver of {steps} steps, only of {', '.join(map(str, there))}")
    try:
        return _solver(solvers[str(steps)], model)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def _solver(entry: dict[str, Any], model: ScoreModel) -> Tuned:
    def row(weights: list[list[float]]) -> Row:
        step, back = (tuple(float(value) for value in part) for part in weights)
        return Row(step, back)

    nodes, asked = (tuple(float(value) for value in entry[key]) for key in ("half_log_snr", "asked"))
    return Tuned(
        nodes,
        tuple(row(each) for each in entry["rows"]),
        row(entry["clean"]),
        Method(**entry["method"]),
        asked,
        model.moments,
    )


def _read(path: Path, own: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no solver was tuned in {path.parent} ({path.name} is missing)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind, model, solvers = content["format"], content["model"], dict(content["solvers"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    if kind != FORMAT:
        raise ValueError(f"{path} has format {kind!r}, not {FORMAT}: tune again")
    if model != own:
        raise ValueError(f"{path} was tuned for another model, or before more training: tune again")
    return solvers
