"""Experiment trackers, by accelerate: the metrics of a run wherever a user collects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdediff.config import Config
from sdediff.extras import extra

PROJECT = "sdediff"
"""The project under which runs are filed."""


class Trackers:
    """The trackers of a run.

    Args:
        names: names that accelerate knows, as ``wandb`` or ``mlflow``.

    Raises:
        ValueError: for a name that accelerate does not know, or whose package is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        if not self.names:
            return
        with extra("train"):
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        known = [name for name in LOGGER_TYPE_TO_CLASS if name != "tensorboard"]  # which every run has
        available = {str(getattr(each, "value", each)) for each in get_available_trackers()}
        for name in self.names:
            if name not in known:
                raise ValueError(f"unknown tracker {name!r}; choose one of: {', '.join(known)}")
            if name not in available:
                raise ValueError(f"the tracker {name} is not installed: pip install {name.replace('_', '-')}")

    def start(self, workers: Any, config: Config) -> None:
        """Begin a run, with its settings."""
        if self.names:
            settings = {
                f"{section}.{key}": value if isinstance(value, int | float | str | bool) else str(value)
                for section, values in config.model_dump().items()
                for key, value in values.items()
            }
            workers.init_trackers(PROJECT, config=settings)

    def log(self, workers: Any, step: int, numbers: Mapping[str, float]) -> None:
        """Send a line of metrics."""
        if self.names:
            workers.log(dict(numbers), step=step)

    def end(self, workers: Any) -> None:
        """Finish the run."""
        if self.names:
            workers.end_training()
