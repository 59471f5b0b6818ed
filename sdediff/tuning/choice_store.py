"""Storage of choices: ``auto.json`` in the run of the model, by steps, interval and setting.

The file names its format and the fingerprint of the model. It is a cache: whoever cannot use it chooses anew, and the
next choice replaces it, in one step.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from sdediff.denoiser import ScoreModel
from sdediff.documents import Finite, Section, read_document, shown, validated
from sdediff.files import write
from sdediff.samplers.auto import METHODS, Choice
from sdediff.samplers.chosen import Chosen
from sdediff.tuning.store import fingerprint

CHOICES_FORMAT = 1
CHOICES_FILE = "auto.json"
_MAX_NODES = 4097


class ChoiceKey(NamedTuple):
    """What a choice is kept by.

    Attributes:
        steps: forwards of a solve.
        t_from: time at which solves start.
        t_to: time at which they end.
        setting: what the model is told or changed by beside its weights, in words; empty for nothing.
    """

    steps: int
    t_from: float
    t_to: float
    setting: str = ""


class ChoiceSection(Section):
    """One choice, :class:`~sdediff.samplers.auto.Choice`."""

    name: str
    method: str
    times: Annotated[tuple[Finite, ...], Field(min_length=2, max_length=_MAX_NODES)]
    free: bool
    score: Finite
    setting: str = ""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method not in METHODS:
            raise ValueError(f"{shown(self.method)} is no method that is chosen from")
        steps = [there - here for here, there in pairwise(self.times)]
        if not (all(step > 0.0 for step in steps) or all(step < 0.0 for step in steps)):
            raise ValueError("the times must rise or fall throughout")
        if len(steps) <= int(self.free):
            raise ValueError("at least one step must be the network's")
        return self

    @property
    def key(self) -> ChoiceKey:
        """What it is kept by."""
        return ChoiceKey(len(self.times) - 1 - int(self.free), self.times[0], self.times[-1], self.setting)

    def choice(self, model: ScoreModel) -> Choice:
        """Return the choice.

        Raises:
            ValueError: if the model's process or moments do not allow it.
        """
        model.sde.levels(self.times)  # refuses times outside the process
        if self.free and model.moments is None:
            raise ValueError("the first forward is free, but the model knows no moments")
        return Choice(self.name, Chosen(METHODS[self.method], self.times, self.free), self.score)


class ChoicesDocument(Section):
    """Content of the file."""

    format: int
    model: str
    choices: tuple[ChoiceSection, ...]


def save_choice(run: str | Path, model: ScoreModel, choice: Choice, setting: str = "") -> Path:
    """Add a choice to the run's file, replacing that of the same steps, interval and setting, and return its path.

    Choices for another model are dropped.

    Args:
        run: folder of the run.
        model: model of the run for which it was made, without what ``setting`` names.
        choice: result of :func:`~sdediff.tuning.choices.choose`.
        setting: what the model was told or changed by beside its weights, in words.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the method is none of those that are chosen from, or there are more than 4,097 nodes.

    >>> model = sdediff.ScoreModel(sdediff.networks.MLP((2,)), sdediff.VPSDE(), data=sdediff.DataInfo((2,)))
    >>> sdediff.save(model, "run")
    >>> sdediff.tuning.save_choice("run", model, sdediff.tuning.choose(model, 3)).name
    'auto.json'
    """
    path, digest = Path(run) / CHOICES_FILE, fingerprint(model)
    try:
        kept = _read_choices(path, digest)
    except ValueError:
        kept = {}
    method = next((name for name, method in METHODS.items() if method == choice.sampler.method), None)
    if method is None:
        raise ValueError(f"only choices among {', '.join(METHODS)} are kept, not {choice.sampler.method}")
    sampler = choice.sampler
    found = {"name": choice.name, "method": method, "times": sampler.times, "free": sampler.free, "score": choice.score}
    made = validated(ChoiceSection, {**found, "setting": setting})
    kept[made.key] = made
    choices = [kept[key].model_dump() for key in sorted(kept)]
    write(path, (json.dumps({"format": CHOICES_FORMAT, "model": digest, "choices": choices}) + "\n").encode())
    return path


def load_choice(
    run: str | Path, model: ScoreModel, steps: int, t_from: float, t_to: float, setting: str = ""
) -> Choice | None:
    """Load the choice for a model, steps, interval and setting; ``None`` where none was kept.

    Raises:
        ValueError: if the file is damaged, or is another model's.

    >>> model = sdediff.ScoreModel(sdediff.networks.MLP((2,)), sdediff.VPSDE(), data=sdediff.DataInfo((2,)))
    >>> sdediff.save(model, "run")
    >>> sdediff.tuning.load_choice("run", model, 3, t_from=1.0, t_to=0.0) is None  # before save_choice
    True
    """
    path = Path(run) / CHOICES_FILE
    if not path.is_file():
        return None
    found = _read_choices(path, fingerprint(model)).get(ChoiceKey(steps, t_from, t_to, setting))
    try:
        return None if found is None else found.choice(model)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _read_choices(path: Path, digest: str) -> dict[ChoiceKey, ChoiceSection]:
    """Read the choices of the file; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = read_document(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    kind, model = content.get("format"), content.get("model")
    if isinstance(kind, int) and kind != CHOICES_FORMAT:
        raise ValueError(f"{path} has format {kind}, not {CHOICES_FORMAT}")
    if isinstance(model, str) and model != digest:
        raise ValueError(f"{path} is of another model, or of before more training")
    try:
        return {each.key: each for each in validated(ChoicesDocument, content).choices}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
