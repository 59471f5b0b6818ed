"""Classifier-free guidance: a conditional denoiser moved away from its unconditional one.

A network that was told nothing of some of its training items, by a null condition in place of theirs, has both answers.
With them, for a weight w,

    eps = eps_null + w (eps_condition - eps_null)

(Ho & Salimans 2022, with w for their 1 + w): 0 is the unconditional model, 1 the conditional one, more than 1 goes
beyond it. The guided score belongs to no diffusion of data: likelihoods of it are those of its own flow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdediff.conditions import Condition, ConditionLike
from sdediff.denoiser import Denoiser
from sdediff.networks.told import Told
from sdediff.numerics import expand
from sdediff.types import Level, Scalar, Split
from sdediff.wrappers import Around


class Guided(Around):
    """A denoiser under classifier-free guidance.

    Where it guides, a batch is asked twice in one forward of double size, under its conditions and under the null one,
    which counts as two forwards; where it does not, by a weight of 1 or outside the interval, it is the conditional
    denoiser in one.

    Args:
        inner: the denoiser, under a condition or to be given one. Clip and threshold around the guided one.
        weight: the weight w of the conditional answer.
        null: condition that stands for none, one row for all items; by default that of the network, if it has
            parameters ``classes`` or ``features``: the label ``classes``, or a vector of NaN.
        interval: times between which it guides (Kynkaanniemi et al. 2024), ``(low, high)``; everywhere by default.

    Raises:
        ValueError: for a weight that is not finite, an empty interval, or a null condition of several rows; in use, if
            the denoiser has no condition.

    >>> network = lambda x, t, label: torch.where(label < 2, label, 0.0)[:, None].to(x).expand_as(x)
    >>> model = sdediff.ScoreModel(network, sdediff.VPSDE(), "sample").given(torch.tensor([0, 1]))
    >>> sdediff.Guided(model, 3.0, null=2).denoise(torch.zeros(2, 1), 0.5)
    tensor([[0.],
            [3.]])
    """

    def __init__(
        self,
        inner: Denoiser,
        weight: float,
        *,
        null: ConditionLike = None,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(inner)
        if not math.isfinite(weight):
            raise ValueError(f"the weight of guidance must be a finite number, not {weight}")
        low, high = (-math.inf, math.inf) if interval is None else interval
        if not low < high:
            raise ValueError(f"guidance needs an interval of times low < high, not {low} and {high}")
        self.weight, self.low, self.high = float(weight), low, high
        self.null = None if null is None else Condition.of(null)
        if (inner.told == Told()) if self.null is None else (not self.null or self.null.count is not None):
            raise ValueError(
                "guidance needs the null condition, one row for all items: null=K for a network that was trained with "
                "the label K for no condition (the library's know theirs, if trained with classes)"
            )

    def nfe(self, level: Level) -> int:
        """Return the number of forwards: twice those of the denoiser inside where it guides."""
        return self.inner.nfe(level) * (2 if self._guides(level) else 1)

    def forward(self, x: Tensor, level: Level) -> Split:
        """Split the state by both answers."""
        if not self._guides(level):
            conditional: Split = self.inner(x, level)
            return conditional
        twice = Level(*(torch.cat([f, f]) if isinstance(f, Tensor) and f.ndim else f for f in level))
        both: Split = self.inner.paired(self.null, len(x))(torch.cat([x, x]), twice)
        (x0, x0_null), (eps, eps_null) = both.x0.chunk(2), both.eps.chunk(2)
        weight = self._weights(level, x)
        split = Split(torch.lerp(x0_null, x0, weight), torch.lerp(eps_null, eps, weight))
        split.fraction = None if both.fraction is None else both.fraction.chunk(2)[0]
        return split

    def _guides(self, level: Level) -> bool:
        """Tell whether the null condition is asked; levels of one number an item are not read back to find out."""
        if self.weight == 1.0:
            return False
        return isinstance(level.t, Tensor) or self.low <= level.t <= self.high

    def _weights(self, level: Level, x: Tensor) -> Scalar:
        """Return the weight, for levels of one number an item ``(B, 1, ...)``: 1 where the time is outside."""
        if not isinstance(level.t, Tensor):
            return self.weight
        inside = (self.low <= level.t) & (level.t <= self.high)
        return expand(torch.where(inside, self.weight, 1.0).to(x), x)


def guided(
    model: Denoiser, weight: float | None, null: ConditionLike = None, interval: tuple[float, float] | None = None
) -> Denoiser:
    """Return a model under guidance, inside its wrappers; the model itself without a weight.

    Raises:
        ValueError: as :class:`Guided`, and for a null condition or an interval without a weight.
    """
    if weight is None:
        if null is not None or interval is not None:
            raise ValueError("a null condition and an interval belong to guidance: guidance=2.0")
        return model
    if isinstance(model, Around) and not isinstance(model, Guided):
        return model.around(guided(model.inner, weight, null, interval))
    return Guided(model, weight, null=null, interval=interval)
