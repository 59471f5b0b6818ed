"""Storage of choices: ``auto.json`` in the run of the model, by steps, interval and setting.

The file names its format and the fingerprint of the model. It is a cache: whoever cannot use it chooses anew, and the
next choice replaces it, in one step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from sdediff.documents import Finite, Section, validated
from sdediff.files import write
from sdediff.samplers.candidates import Choice
from sdediff.score_model import ScoreModel
from sdediff.tuning.chosen_section import ChosenSection, chosen_values
from sdediff.tuning.store import fingerprint, read_of_model

CHOICES_FORMAT = 1
CHOICES_FILE = "auto.json"


class ChoiceKey(NamedTuple):
    """Identify a choice in the file.

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


class ChoiceSection(ChosenSection):
    """One choice, :class:`~sdediff.samplers.auto.Choice`."""

    name: str
    score: Finite
    setting: str = ""

    @property
    def key(self) -> ChoiceKey:
        """Return the key of the choice."""
        return ChoiceKey(self.steps, self.times[0], self.times[-1], self.setting)


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
    found = {"name": choice.name, "score": choice.score, **chosen_values(choice.sampler)}
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
        return None if found is None else Choice(found.name, found.sampler(model), found.score)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _read_choices(path: Path, digest: str) -> dict[ChoiceKey, ChoiceSection]:
    """Read the choices of the file; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        other = "is of another model, or of before more training"
        found = read_of_model(path, digest, ChoicesDocument, CHOICES_FORMAT, other=other)
    except OSError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return {each.key: each for each in found.choices}
