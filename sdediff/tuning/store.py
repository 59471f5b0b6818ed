"""Storage of tuned solvers: ``tuned.json`` in the run of the model, solvers by their number of steps.

Where tuning found nothing better than an untuned solver, that one is kept.

The file names its format and the fingerprint of the model; with another model, or after more training, it is refused.
It is validated before use, and replaced by renaming a temporary file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import torch
from pydantic import Field, model_validator

from sdediff.denoiser import Denoiser
from sdediff.description import describe_model
from sdediff.documents import Finite, Section, read_document, validated
from sdediff.evaluation.distances import Errors
from sdediff.files import write
from sdediff.gaussian import Moments
from sdediff.moments_storage import moments_tensors
from sdediff.samplers.chosen import Chosen
from sdediff.samplers.tuned import AdamsMethod, StepWeights, Tuned
from sdediff.score_model import ScoreModel
from sdediff.tuning.chosen_section import ChosenSection, chosen_values
from sdediff.tuning.tuner import Tuning

TUNED_FORMAT = 1
FILE = "tuned.json"
_MAX_STEPS = 4096  # steps

DocumentT = TypeVar("DocumentT", bound=Section)
Numbers = Annotated[tuple[Finite, ...], Field(max_length=_MAX_STEPS + 1)]
WeightPair = tuple[Numbers, Numbers]
StepsKey = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}$")]


class MethodSection(Section):
    """Multistep method of a tuned solver, :class:`~sdediff.samplers.tuned.AdamsMethod`."""

    memory: Annotated[int, Field(ge=0, le=_MAX_STEPS)]
    correct: bool


class SolverSection(Section):
    """Tuned solver, :class:`~sdediff.samplers.tuned.Tuned`, its errors on held-out trajectories, and its setting."""

    half_log_snr: Numbers
    rows: Annotated[tuple[WeightPair, ...], Field(min_length=1, max_length=_MAX_STEPS)]
    clean: WeightPair
    method: MethodSection
    asked: Numbers
    held_out: dict[str, dict[str, Finite | None]] = Field(default_factory=dict)
    setting: str = ""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.tuned(None)
        return self

    @property
    def steps(self) -> int:
        """Number of forwards."""
        return len(self.rows)

    def sampler(self, model: Denoiser) -> Tuned:
        """Return the sampler."""
        return self.tuned(model.moments)

    def tuned(self, moments: Moments | None) -> Tuned:
        """Return the sampler relative to a Gaussian of the data."""
        rows = tuple(StepWeights(*weights) for weights in self.rows)
        method = AdamsMethod(self.method.memory, self.method.correct)
        return Tuned(self.half_log_snr, rows, StepWeights(*self.clean), method, self.asked, moments)


class UntunedSection(ChosenSection):
    """Solver that tuning did not better, its errors on held-out trajectories, and its setting."""

    held_out: dict[str, dict[str, Finite | None]] = Field(default_factory=dict)
    setting: str = ""


AnySolver = SolverSection | UntunedSection


class TunedDocument(Section):
    """Content of the file."""

    format: int
    model: str
    solvers: dict[StepsKey, AnySolver]

    @model_validator(mode="after")
    def _counted(self) -> Self:
        for steps, solver in self.solvers.items():
            if int(steps) != solver.steps:
                raise ValueError(f"the solver of {steps} steps has {solver.steps}")
        return self


def fingerprint(model: ScoreModel) -> str:
    """Return the SHA-256 of everything a trajectory depends on: process, prediction, weights and moments.

    Raises:
        ValueError: if a part of the model is not one of the library's own.
    """
    digest = hashlib.sha256(json.dumps(describe_model(model), sort_keys=True).encode())
    tensors = dict(model.state_dict())
    if model.moments is not None:
        tensors |= {f"moments.{name}": value for name, value in moments_tensors(model.moments).items()}
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(run: str | Path, model: ScoreModel, tunings: Iterable[Tuning], setting: str = "") -> Path:
    """Add solvers to the run's file, replacing those of the same numbers of steps, and return its path.

    Solvers for another model are dropped.

    Args:
        run: folder of the run.
        model: model for which they were tuned.
        tunings: results of :func:`~sdediff.tuning.tuner.tune`.
        setting: what the model was told or guided by, in words; empty for nothing.
    """
    path, digest = Path(run) / FILE, fingerprint(model)
    try:
        kept = {key: solver.model_dump() for key, solver in _read_solvers(path, digest).items()}
    except (FileNotFoundError, ValueError):
        kept = {}
    for each in tunings:
        kept[str(each.solver.steps)] = {
            **(chosen_values(each.solver) if isinstance(each.solver, Chosen) else _tuned_values(each.solver)),
            "held_out": {"before": _errors_as_json(each.before), "after": _errors_as_json(each.after)},
            "setting": setting,
        }
    solvers = {key: kept[key] for key in sorted(kept, key=int)}
    write(path, (json.dumps({"format": TUNED_FORMAT, "model": digest, "solvers": solvers}) + "\n").encode())
    return path


def _tuned_values(solver: Tuned) -> dict[str, Any]:
    """Return the values of a tuned solver's section."""
    return {
        "half_log_snr": solver.half_log_snr,
        "rows": solver.rows,
        "clean": solver.clean,
        "method": solver.method._asdict(),
        "asked": solver.evaluated,
    }


def load(run: str | Path, model: ScoreModel, steps: int | None = None) -> Tuned | Chosen:
    """Load the solver tuned for a model and a number of steps, to be given as ``solver=``.

    Args:
        run: folder of the run.
        model: model of the run, as loaded.
        steps: number of steps; by default the largest for which there is a solver.

    Raises:
        FileNotFoundError: if nothing was tuned in the run.
        ValueError: if the file is damaged, is another model's, or has no solver of this number of steps.
    """
    solver = _solver_of(run, model, steps)
    try:
        return solver.sampler(model)
    except ValueError as error:
        raise ValueError(f"{Path(run) / FILE} is damaged: {error}") from None


def tuned_setting(run: str | Path, model: ScoreModel, steps: int | None = None) -> str:
    """Return what a model was told or guided by when a solver was tuned for it, in words; empty for nothing.

    Args and errors are those of :func:`load`.
    """
    return _solver_of(run, model, steps).setting


def _solver_of(run: str | Path, model: ScoreModel, steps: int | None) -> AnySolver:
    """Read the solver of a number of steps, by default of the largest."""
    path = Path(run) / FILE
    solvers = _read_solvers(path, fingerprint(model))
    there = sorted(int(key) for key in solvers)
    if steps is None and there:
        steps = there[-1]
    if steps not in there:
        raise ValueError(f"{path} has no solver of {steps} steps, only of {', '.join(map(str, there))}")
    return solvers[str(steps)]


def _errors_as_json(found: Errors) -> dict[str, float | None]:
    """Return errors as JSON values, NaN and infinity as null."""
    return {name: value if math.isfinite(value) else None for name, value in found._asdict().items()}


def _read_solvers(path: Path, digest: str) -> dict[str, AnySolver]:
    """Read the solvers of the file, by their number of steps."""
    if not path.is_file():
        raise FileNotFoundError(f"no solver was tuned in {path.parent} ({path.name} is missing)")
    other = "was tuned for another model, or before more training"
    return read_of_model(path, digest, TunedDocument, TUNED_FORMAT, other=other, cure=": tune again").solvers


def read_of_model(
    path: Path, digest: str, document: type[DocumentT], version: int, *, other: str, cure: str = ""
) -> DocumentT:
    """Read a document that belongs to one model.

    Args:
        path: the file.
        digest: fingerprint of the model.
        document: schema of the content, which names its ``format`` and ``model``.
        version: the format that is read.
        other: words for a file of another model.
        cure: words after a file of another format or model.

    Raises:
        ValueError: if the file is damaged, or of another format or model.
    """
    try:
        content = read_document(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    kind, model = content.get("format"), content.get("model")
    if isinstance(kind, int) and kind != version:
        raise ValueError(f"{path} has format {kind}, not {version}{cure}")
    if isinstance(model, str) and model != digest:
        raise ValueError(f"{path} {other}{cure}")
    try:
        return validated(document, content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
