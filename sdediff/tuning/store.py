"""``tuned.json``: solvers tuned for the model beside it, by their number of steps.

The file names its format and the fingerprint of the model; with another model, or after more training, it does not fit
and is refused. It is validated before anything of it is used, and written beside its place and moved into it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator

from sdediff.checkpoint import describe_model
from sdediff.denoiser import ScoreModel
from sdediff.documents import Finite, Section, read_document, validated
from sdediff.files import write
from sdediff.gaussian import Moments
from sdediff.samplers.tuned import Method, Row, Tuned
from sdediff.tuning.trajectories import Errors
from sdediff.tuning.tuner import Tuning

FORMAT = 1
FILE = "tuned.json"
_MOST = 4096  # steps

Numbers = Annotated[tuple[Finite, ...], Field(max_length=_MOST + 1)]
Weights = tuple[Numbers, Numbers]
Steps = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}$")]


class MethodSection(Section):
    """The multistep method under the rows, :class:`~sdediff.samplers.tuned.Method`."""

    memory: Annotated[int, Field(ge=0, le=_MOST)]
    correct: bool


class Solver(Section):
    """A tuned solver, :class:`~sdediff.samplers.tuned.Tuned`, and its errors on held-out trajectories."""

    half_log_snr: Numbers
    rows: Annotated[tuple[Weights, ...], Field(min_length=1, max_length=_MOST)]
    clean: Weights
    method: MethodSection
    asked: Numbers
    held_out: dict[str, dict[str, Finite | None]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.sampler()
        return self

    def sampler(self, moments: Moments | None = None) -> Tuned:
        """Return the sampler."""
        rows = tuple(Row(*weights) for weights in self.rows)
        method = Method(self.method.memory, self.method.correct)
        return Tuned(self.half_log_snr, rows, Row(*self.clean), method, self.asked, moments)


class Document(Section):
    """What the file says."""

    format: int
    model: str
    solvers: dict[Steps, Solver]

    @model_validator(mode="after")
    def _counted(self) -> Self:
        for steps, solver in self.solvers.items():
            if int(steps) != len(solver.rows):
                raise ValueError(f"the solver of {steps} steps has {len(solver.rows)}")
        return self


def fingerprint(model: ScoreModel) -> str:
    """SHA-256 of everything a trajectory depends on: process, prediction, weights and moments.

    Raises:
        ValueError: if a part of the model is not one of the library's own.
    """
    digest = hashlib.sha256(json.dumps(describe_model(model), sort_keys=True).encode())
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
        kept = {key: solver.model_dump() for key, solver in _read(path, own).items()}
    except (FileNotFoundError, ValueError):
        kept = {}
    for each in tunings:
        kept[str(each.solver.steps)] = {
            "half_log_snr": each.solver.half_log_snr,
            "rows": each.solver.rows,
            "clean": each.solver.clean,
            "method": each.solver.method._asdict(),
            "asked": each.solver.asked,
            "held_out": {"before": _errors(each.before), "after": _errors(each.after)},
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
    return solvers[str(steps)].sampler(model.moments)


def _errors(found: Errors) -> dict[str, float | None]:
    """Errors as JSON knows them: what is no number is null."""
    return {name: value if math.isfinite(value) else None for name, value in found._asdict().items()}


def _read(path: Path, own: str) -> dict[str, Solver]:
    """The solvers of the file, by their number of steps."""
    if not path.is_file():
        raise FileNotFoundError(f"no solver was tuned in {path.parent} ({path.name} is missing)")
    try:
        content = read_document(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    kind, model = content.get("format"), content.get("model")
    if isinstance(kind, int) and kind != FORMAT:
        raise ValueError(f"{path} has format {kind}, not {FORMAT}: tune again")
    if isinstance(model, str) and model != own:
        raise ValueError(f"{path} was tuned for another model, or before more training: tune again")
    try:
        return validated(Document, content).solvers
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
