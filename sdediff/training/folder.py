"""The folder of a run: what it holds, whether it may be written to, and what a resumed run may change."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdediff import checkpoint
from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.data.held_out import HELD_OUT
from sdediff.training.averages import PATTERN, SNAPSHOTS
from sdediff.training.record import BOARD, METRICS
from sdediff.training.schedules import rate_factor
from sdediff.training.state import ASIDE, states

CONFIG, SAMPLES, PICTURE, BEST = "config.json", "samples", "step_", "best"
AUTOENCODER = "autoencoder"
"""Folder of the run of a latent model's VAE, in that of the model."""
_MAY_CHANGE = {
    "steps",
    "log_every",
    "held_out_every",
    "bits_every",
    "bits_items",
    "sample_every",
    "checkpoint_every",
    "keep",
    "shard",
    "trackers",
}


class TrainingWarning(UserWarning):
    """A remark on a run that goes on, such as from another checkpoint than the last one."""


def check_folder(folder: Path, config: Config, *, resume: bool, force: bool) -> None:
    """Refuse a folder that holds another run, or none to resume.

    Raises:
        FileExistsError: if it holds a run and neither ``resume`` nor ``force`` is set.
        FileNotFoundError: if there is nothing to resume.
        ValueError: if the run there was started with other settings.
    """
    if resume and force:
        raise ValueError("resume and force exclude each other: go on with the run, or replace it")
    if not resume:
        if (folder / CONFIG).exists() and not force:
            raise FileExistsError(f"{folder} already holds a run; resume goes on with it, force replaces it")
        return
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"nothing to resume in {folder}: {CONFIG} is missing")
    before, now = map(_settings, (Config.load(folder / CONFIG), config))
    changed = [
        f"{section}.{key}"
        for section in now
        for key in {**before[section], **now[section]}
        if before[section].get(key) != now[section].get(key) and not (section == "training" and key in _MAY_CHANGE)
    ]
    if changed:
        raise ValueError(f"the run in {folder} was started with other settings: {', '.join(changed)}")


def _settings(config: Config) -> dict[str, Any]:
    """Return all settings by section, the weighting by its name, also where it is chosen."""
    training = config.training.model_copy(update={"weighting": config.weighting})
    return config.model_copy(update={"training": training}).model_dump()


def schedule_remark(before: Config, now: Config, step: int) -> str:
    """Return a line on how the learning rate changes at a step where a run is extended; empty if it does not."""
    rates = [
        run.training.learning_rate
        * rate_factor(run.training.schedule, run.training.warmup, min(step, run.training.steps), run.training.steps)
        for run in (before, now)
    ]
    if rates[0] == rates[1]:
        return ""
    return (
        f"the schedule of the learning rate now ends at step {now.training.steps:,}, not {before.training.steps:,}: "
        f"the rate goes on at {rates[1]:.3g} after {step:,} steps, where it was {rates[0]:.3g}"
    )


def in_saved_units(data: Dataset, folder: Path) -> Dataset:
    """Return the data in the coordinates of the model saved in a run's folder, whatever a new fit would give."""
    saved = checkpoint.read_info(folder) if (folder / checkpoint.DESCRIPTION).is_file() else None
    return data if saved is None else replace(data, info=data.info._replace(shift=saved.shift, scale=saved.scale))


def clear_folder(folder: Path) -> None:
    """Remove the files of an earlier run, and only those."""
    folder.mkdir(parents=True, exist_ok=True)
    places = (folder, folder / BEST)
    stages = [place / part for place in places for part in (checkpoint.FIRST, checkpoint.SECOND)]
    own = [folder / name for name in (CONFIG, METRICS, ASIDE, HELD_OUT)]
    own += [place / name for place in (*places, *stages) for name in (checkpoint.DESCRIPTION, checkpoint.TENSORS)]
    own += [*states(folder), *(folder / SNAPSHOTS).glob(PATTERN)]
    for path in [*own, *(folder / SAMPLES).glob(f"{PICTURE}*")]:  # files that users wrote there stay
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / BOARD, ignore_errors=True)
