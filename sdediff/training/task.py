"""What a run trains: a model, its loss, its samples and its likelihood. ``TASKS`` in ``tasks.py`` is the list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from sdediff.conditions import Condition
from sdediff.execution import Execution
from sdediff.networks.told import Told
from sdediff.score_model import ScoreModel
from sdediff.staged import Staged
from sdediff.training.batches import Batch

Model = ScoreModel | Staged
"""A model that is trained."""


class HeldOut(NamedTuple):
    """The likelihood of held-out items: its name, mean and standard error of the mean."""

    name: str
    mean: float
    error: float


class Task(ABC):
    """A model to train, and what is computed of it during a run.

    Attributes:
        model: the untrained model.
        noise_shape: shape of the standard normals that the loss of an item takes.
        told: what the model can be told of each item.
    """

    model: Any
    noise_shape: tuple[int, ...]
    told: Told = Told()

    @abstractmethod
    def executed(self, execution: Execution) -> Any:
        """Return the model, with the same parameters, as it is run in training.

        Raises:
            ValueError: for an execution that it does not have.
        """

    @abstractmethod
    def loss(self, model: Any, batch: Batch, condition: Condition, step: int | None) -> Tensor:
        """Return the loss of each item, ``(B,)``, about 1 of a model that knows nothing.

        Args:
            model: the model, a copy of :attr:`model` with other weights.
            batch: the items and their random numbers.
            condition: condition of the items.
            step: number of optimiser steps before this one, for losses that change; ``None`` for the last form.
        """

    @abstractmethod
    def sample(self, model: Any, count: int, seed: int, condition: Condition) -> Tensor:
        """Return samples ``(count, *shape)`` in the units of the data."""

    @abstractmethod
    def likelihood(self, model: Any, x: Tensor, seed: int, condition: Condition) -> HeldOut:
        """Return the mean likelihood of items ``(B, *shape)``, or its bound, with its error."""

    def averaged(self, model: Any) -> nn.Module:
        """Return the part of the model of which averages of any width are kept.

        Raises:
            ValueError: if there are none for such models.
        """
        raise ValueError("averages of any width (training.averages) are kept of score models alone")
