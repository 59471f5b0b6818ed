"""Wrappers: denoisers that change the clean half of another.

``Clip``, ``Threshold`` and ``Given`` wrap any denoiser and compose. With the clean half changed by ``d``, the noise
half changes by ``-d cos / sin``, so that the two remain halves of the state; where nothing is changed both are equal to
the bit. The clean half, like every state, is in the model's coordinates, not in the data's units.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from sdediff.conditions import Condition, ConditionLike, Rows
from sdediff.data.units import has_units
from sdediff.denoiser import Denoiser
from sdediff.execution import Execution
from sdediff.foreign import twin_of
from sdediff.gaussian import Moments
from sdediff.numerics import expand, flatten
from sdediff.types import DataInfo, Level, Scalar, Split


class Around(Denoiser):
    """A denoiser around another, from which it takes all but the split."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner

    # Properties, not copies: they follow changes of the denoiser inside.
    sde = property(lambda self: self.inner.sde)
    moments = property(lambda self: self.inner.moments)
    data = property(lambda self: self.inner.data)
    prediction = property(lambda self: self.inner.prediction)
    dtype = property(lambda self: self.inner.dtype)
    device = property(lambda self: self.inner.device)
    execution = property(lambda self: self.inner.execution)
    told = property(lambda self: self.inner.told)

    def nfe(self, level: Level) -> int:
        """Return the number of forwards of the denoiser inside."""
        return self.inner.nfe(level)

    def snap(self, times: Tensor) -> Tensor:
        """Move the nodes of a grid as the denoiser inside does."""
        return self.inner.snap(times)

    def given(self, condition: ConditionLike) -> Self:
        """Return the wrapper around the conditioned denoiser."""
        return self.around(self.inner.given(condition))

    def with_moments(self, moments: Moments | None) -> Self:
        """Return the wrapper around the denoiser with other moments."""
        return self.around(self.inner.with_moments(moments))

    def with_execution(self, execution: Execution | None) -> Self:
        """Return the wrapper around the denoiser that is run in another way."""
        return self.around(self.inner.with_execution(execution))

    def rows(self, index: Rows) -> Self:
        """Return the wrapper around the denoiser of some items."""
        return self.around(self.inner.rows(index))

    def paired(self, null: Condition | None, count: int) -> Self:
        """Return the wrapper around the paired denoiser."""
        return self.around(self.inner.paired(null, count))

    def check_batch(self, count: int) -> None:
        """Refuse a batch that the denoiser inside refuses."""
        self.inner.check_batch(count)

    def around(self, inner: Denoiser) -> Self:
        """Return the same wrapper around another denoiser."""
        if inner is self.inner:
            return self
        twin = twin_of(self)
        twin.inner = inner
        return twin


class Wrapper(Around):
    """A denoiser that changes the clean half of another, from which it takes all else.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> class Halve(sdediff.Wrapper):
    ...     def change(self, x0, x, level):
    ...         return 0.5 * x0
    >>> Halve(model).denoise(torch.zeros(1, 2), 1.0).round(decimals=1)
    tensor([[1., 0.]])
    """

    @abstractmethod
    def change(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        """Return the new clean half.

        Args:
            x0: the clean half, ``(B, *shape)``, not to be written to.
            x: the state, ``(B, *shape)``, not to be written to.
            level: the level of the state.
        """

    def forward(self, x: Tensor, level: Level) -> Split:
        """Split the state, with the clean half changed."""
        inner: Split = self.inner(x, level)
        x0 = self.change(inner.x0, x, level)
        if x0 is inner.x0:
            return inner
        split = Split(x0, inner.eps + expand(_ratio(level), x) * (inner.x0 - x0))
        split.fraction = inner.fraction
        return split


def _ratio(level: Level) -> Scalar:
    """Return ``cos / sin``; 0 without noise, where the noise half has no value."""
    if isinstance(level.sin, Tensor):
        return torch.where(level.sin > 0.0, level.cos / level.sin, 0.0)
    return level.cos / level.sin if level.sin > 0.0 else 0.0


class Given(Wrapper):
    """A denoiser under a condition, the same in every call.

    Args:
        inner: the denoiser.
        condition: tensor, or tuple or dict of tensors, with one row an item or one for all.

    >>> network = lambda x, t, label: x * label[:, None]
    >>> model = sdediff.Given(sdediff.ScoreModel(network, sdediff.VPSDE(), "sample"), torch.tensor([0.0, 1.0]))
    >>> model.denoise(torch.ones(2, 2), 0.5)
    tensor([[0., 0.],
            [1., 1.]])
    """

    def __init__(self, inner: Denoiser, condition: ConditionLike) -> None:
        super().__init__(inner.given(condition))

    def change(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        """Leave the clean half as it is."""
        return x0


class Clip(Wrapper):
    """Clamp the clean half to the range of the data (Ho et al. 2020's implementation).

    Args:
        inner: the denoiser.
        low: the least value, in the model's coordinates; that of the model's data by default, -1 if unknown.
        high: the largest value; that of the model's data by default, 1 if unknown.

    Raises:
        ValueError: for an empty range, or none where the data are in units of their own.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.Clip(model, high=1.5).denoise(torch.zeros(1, 2), 1.0).max()
    tensor(1.5000)
    """

    def __init__(self, inner: Denoiser, low: float | None = None, high: float | None = None) -> None:
        super().__init__(inner)
        self.low, self.high = _data_range(inner, low, high)
        if not self.low < self.high:
            raise ValueError(f"clipping needs low < high, not {self.low} and {self.high}")

    def change(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        """Clamp the clean half to the range."""
        return x0.clamp(self.low, self.high)


class Threshold(Wrapper):
    """Clamp each sample to a quantile of its magnitudes and rescale it to the range (Saharia et al. 2022).

    Magnitudes are taken about the middle of the range, in units of half its width.

    Args:
        inner: the denoiser.
        quantile: the quantile of the magnitudes of a sample's entries.
        most: the largest divisor; 1 is plain clamping.
        low: the least value, as for :class:`Clip`.
        high: the largest value, as for :class:`Clip`.

    Raises:
        ValueError: as for :class:`Clip`, and for a quantile outside (0, 1] or a divisor below 1.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> float(sdediff.Threshold(model, low=-1.0, high=1.0).denoise(torch.zeros(1, 2), 1.0).max())
    1.0
    """

    def __init__(
        self,
        inner: Denoiser,
        quantile: float = 0.995,
        most: float = math.inf,
        *,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__(inner)
        if not 0.0 < quantile <= 1.0:
            raise ValueError(f"the quantile must lie in (0, 1], not {quantile}")
        if not most >= 1.0:
            raise ValueError(f"no sample is divided by less than 1, so that its most cannot be {most}")
        self.low, self.high = _data_range(inner, low, high)
        if not self.low < self.high:
            raise ValueError(f"thresholding needs low < high, not {self.low} and {self.high}")
        self.quantile, self.most = quantile, most

    def change(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        """Clamp each sample to its own quantile, at least 1 and at most ``most``, and divide by it."""
        middle, half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        centred = (x0 - middle) / half
        divisor = _quantile(flatten(centred).abs(), self.quantile).clamp(1.0, self.most)
        return (centred / expand(divisor, x0)).clamp(-1.0, 1.0) * half + middle


def _data_range(inner: Denoiser, low: float | None, high: float | None) -> tuple[float, float]:
    """Return the range as given, or that of a denoiser's data."""
    info = DataInfo(()) if inner.data is None else inner.data
    if has_units(info) and (low is None or high is None):
        raise ValueError(
            "continuous rows in units of their own have no usual range: give low and high in the model's coordinates, "
            "(x - shift) / scale"
        )
    return info.low if low is None else low, info.high if high is None else high


def _quantile(values: Tensor, share: float) -> Tensor:
    """Return the quantile of every row of ``(B, D)``, linear between order statistics, for any length and dtype.

    (torch's own refuses half precision and more than 16 million entries.)
    """
    ordered = values.to(torch.promote_types(values.dtype, torch.float32)).sort(dim=1).values
    place = share * (values.shape[1] - 1)
    below = math.floor(place)
    above = min(below + 1, values.shape[1] - 1)
    return ordered[:, below].lerp(ordered[:, above], place - below)
