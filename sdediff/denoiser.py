r"""Denoisers: callables ``(x, level) -> Split``.

A :class:`Denoiser` is everything that a solver needs: the split itself, its cost in forwards, the network's prediction
and preferred times, the rows of some items, the data's moments. ``score``, ``epsilon`` and ``denoise`` follow from the
split. :class:`~sdediff.score_model.ScoreModel` is built from a network; :mod:`sdediff.wrappers` change the clean half
of another.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from sdediff.conditions import Condition, ConditionLike, Rows
from sdediff.denoising import Learner
from sdediff.execution import Execution
from sdediff.foreign import twin_of
from sdediff.gaussian import Moments
from sdediff.networks.told import Told
from sdediff.numerics import expand
from sdediff.parametrization import PREDICTIONS, Prediction
from sdediff.sde import SDE
from sdediff.types import DataInfo, Level, Split, Time


class Denoiser(nn.Module, Learner):
    """A denoiser of one process, with all that a solver needs.

    Attributes:
        sde: the forward process whose states it splits.
        moments: mean and covariance of the data where known, else ``None``.
        data: shape, levels, range and units of the data where known, else ``None``. States are in the model's
            coordinates, ``(x - data.shift) / data.scale``.
        prediction: parametrisation of the network, which gives its errors in the velocity; the velocity by default.
        execution: how the network is run.
        told: what the network can be told of each item.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> model.denoise(torch.zeros(1, 2), 1.0).round(decimals=2)  # pure noise: the mean of the data
    tensor([[2., 0.]])
    """

    sde: SDE
    moments: Moments | None
    data: DataInfo | None
    prediction: Prediction = PREDICTIONS["v_prediction"]
    execution: Execution = Execution()
    told: Told = Told()

    @abstractmethod
    def forward(self, x: Tensor, level: Level) -> Split:
        """Split the state ``x`` ``(B, *shape)`` at ``level``; neither is changed."""

    def nfe(self, level: Level) -> int:
        """Return the number of forwards of the network that a split at ``level`` takes."""
        return 1

    def snap(self, times: Tensor) -> Tensor:
        """Move the inner nodes of a grid ``(N + 1,)`` to the network's own times."""
        return times

    def given(self, condition: ConditionLike) -> Denoiser:
        """Return the denoiser under a condition: a tensor, tuple or dict of tensors, one row an item or one for all.

        Raises:
            ValueError: if the denoiser takes none, or for an invalid condition.
        """
        if Condition.of(condition):
            raise ValueError(f"{type(self).__name__} takes no condition")
        return self

    def with_moments(self, moments: Moments | None) -> Self:
        """Return the denoiser with other moments of its data, as :func:`sdediff.moments` finds them, or none."""
        twin = twin_of(self)
        twin.moments = moments
        return twin

    def with_execution(self, execution: Execution | None) -> Denoiser:
        """Return the denoiser whose network is run in another way, with the same parameters; ``None`` for the present.

        Raises:
            ValueError: if the denoiser has no network that can be run so.
        """
        if execution is not None and execution != self.execution:
            raise ValueError(f"{type(self).__name__} has no network whose precision or compilation could be chosen")
        return self

    def rows(self, index: Rows) -> Denoiser:
        """Return the denoiser of some items of its batch, with their conditions.

        Args:
            index: selection of the items: indices, with repeats or without, a mask, or a slice.
        """
        return self

    def paired(self, null: Condition | None, count: int) -> Denoiser:
        """Return the denoiser of ``count`` items twice, under their conditions and under ``null``, if it has any.

        Args:
            null: condition that stands for none, one row for all; the network's own by default.
            count: number of items.

        Raises:
            ValueError: without a condition, or a null one, or if they do not fit together.
        """
        raise ValueError(f"{type(self).__name__} takes no condition, and cannot be guided")

    def part(self, first: int, size: int, count: int) -> Denoiser:
        """Return the denoiser of up to ``size`` items from ``first`` on, of a batch of ``count``."""
        return self if first == 0 and size >= count else self.rows(slice(first, first + size))

    def check_batch(self, count: int) -> None:
        """Refuse a batch of ``count`` items if the condition belongs to another number of them.

        Raises:
            ValueError: naming both numbers of items.
        """

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's parameters; torch's default where there are none."""
        parameter = self._parameter()
        return torch.get_default_dtype() if parameter is None else parameter.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of states for the network: its own, at least single precision."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters; the CPU where there are none."""
        parameter = self._parameter()
        return torch.device("cpu") if parameter is None else parameter.device

    def _parameter(self) -> Tensor | None:
        """Return the first parameter of floats."""
        return next((parameter for parameter in self.parameters() if parameter.is_floating_point()), None)

    def split(self, x: Tensor, t: Time) -> Split:
        """Split the state ``x`` at time ``t``, a float or ``(B,)``."""
        result: Split = self(x, self.sde.level(t))
        return result

    def denoise(self, x: Tensor, t: Time) -> Tensor:
        """Return ``E[x0 | x_t = x]``, shape of ``x``."""
        return self.split(x, t).x0

    def epsilon(self, x: Tensor, t: Time) -> Tensor:
        """Return ``E[eps | x_t = x]``, shape of ``x``."""
        return self.split(x, t).eps

    def score(self, x: Tensor, t: Time) -> Tensor:
        """Return ``grad log p_t(x) = -E[eps | x] / sigma``, shape of ``x``.

        Raises:
            ValueError: at ``t = 0``, where sigma = 0.
        """
        sigma = self.sde.sigma(t)
        if bool((sigma == 0.0).any()):
            raise ValueError(f"the score -eps / sigma has no value at t = 0; ask from t_min = {self.sde.t_min:g} up")
        return -self.epsilon(x, t) / expand(sigma, x)


def check_denoiser(model: object) -> None:
    """Refuse what is no denoiser.

    Raises:
        TypeError: naming the cure.
    """
    if not isinstance(model, Denoiser):
        raise TypeError(f"the model must be a denoiser, as ScoreModel(network, sde) is, not {type(model).__name__}")
