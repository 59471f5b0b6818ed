"""The classifier two-sample test (Lopez-Paz & Oquab 2017).

A small network learns to tell samples from data on one half of both and is tested on the other. Its accuracy on items
that it has never seen is 1/2 in expectation if the laws are equal, whatever it has learned, and ``2 accuracy - 1`` is
in expectation at most the total variation distance between the laws. The test's items are independent of the
classifier, so that the number it has right is binomial and the interval exact (Clopper & Pearson 1934).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy
import torch
from torch import Tensor
from torch.nn import functional

from sdediff.quality.measure import Figure, Measure
from sdediff.quality.resampling import Resampling, Stream, generator, random_rows


@dataclass(frozen=True)
class TwoSample(Measure):
    """Accuracy of a small network that tells samples from data.

    Attributes:
        width: width of the two hidden layers.
        epochs: largest number of passes over the training part.
        patience: passes without a lower loss on a fifth of the training part, after which training ends.
        batch: number of items a step.
        rate: learning rate of Adam.
        decay: weight decay.
        most: largest number of samples, and of data.
    """

    width: int = 64
    epochs: int = 60
    patience: int = 12
    batch: int = 64
    rate: float = 1e-2
    decay: float = 1e-2
    most: int = 10_000

    meanings: ClassVar = {
        "classifier": "accuracy of a classifier of samples and data: 0.5 if they are alike, 1 if apart"
    }

    def figures(self, x: Tensor, y: Tensor, resampling: Resampling) -> dict[str, Figure]:
        """Return the accuracy, see :class:`~sdediff.quality.measure.Measure`."""
        rng, size = generator(resampling.seed, Stream.CLASSIFIER), min(len(x), len(y), self.most)
        x, y = (items[random_rows(len(items), size, rng)] for items in (x, y))
        half = size // 2
        items = _Labelled.of(x[:half], y[:half])
        classifier = _fit(self, items, rng)
        tested = items.like(x[half:], y[half:])
        right = int(((classifier(tested.inputs) > 0.0) == (tested.targets > 0.5)).sum())
        value = right / len(tested.inputs)
        low, high = (math.nan, math.nan) if resampling.count == 0 else _ends(right, len(tested.inputs), resampling)
        return {"classifier": Figure(value, value, low, high, 0.5, len(x), len(y))}


def _ends(right: int, count: int, resampling: Resampling) -> tuple[float, float]:
    """Return the ends of the exact interval of a share."""
    tail = 0.5 * (1.0 - resampling.confidence)
    low = float(scipy.stats.beta.ppf(tail, right, count - right + 1)) if right > 0 else 0.0
    high = float(scipy.stats.beta.ppf(1.0 - tail, right + 1, count - right)) if right < count else 1.0
    return low, high


@dataclass(frozen=True)
class _Labelled:
    """Standardised features ``(2 n, D)`` of samples and data, and the class of each."""

    inputs: Tensor
    targets: Tensor
    mean: Tensor
    scale: Tensor

    @staticmethod
    def of(x: Tensor, y: Tensor) -> _Labelled:
        """Standardise by the items themselves, a constant feature by 1."""
        both = torch.cat([x, y])
        scale = both.std(dim=0)
        return _labelled(x, y, both.mean(dim=0), torch.where(scale > 0.0, scale, 1.0))

    def like(self, x: Tensor, y: Tensor) -> _Labelled:
        """Standardise others in the same way."""
        return _labelled(x, y, self.mean, self.scale)

    def part(self, rows: Tensor) -> _Labelled:
        """Return some of the items."""
        return _Labelled(self.inputs[rows], self.targets[rows], self.mean, self.scale)


def _labelled(x: Tensor, y: Tensor, mean: Tensor, scale: Tensor) -> _Labelled:
    inputs = ((torch.cat([x, y]) - mean) / scale).float()
    return _Labelled(inputs, torch.cat([torch.ones(len(x)), torch.zeros(len(y))]), mean, scale)


class _Classifier:
    """A network of two hidden layers, whose weights come from a generator of its own, not from the global one."""

    def __init__(self, dim: int, width: int, rng: np.random.Generator) -> None:
        sizes = [dim, width, width, 1]
        self.weights = [
            torch.from_numpy(rng.standard_normal((b, a)) * math.sqrt(2.0 / a)).float().requires_grad_()
            for a, b in itertools.pairwise(sizes)
        ]
        self.biases = [torch.zeros(size, requires_grad=True) for size in sizes[1:]]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the log-odds of a sample, ``(B,)``."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = functional.linear(x if index == 0 else x.relu(), weight, bias)
        return x[:, 0]

    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]


def _fit(settings: TwoSample, items: _Labelled, rng: np.random.Generator) -> _Classifier:
    """Return the classifier of lowest loss on a fifth of the items that it is not trained on."""
    order = random_rows(len(items.inputs), len(items.inputs), rng)
    held, kept = items.part(order[: len(order) // 5]), items.part(order[len(order) // 5 :])
    classifier = _Classifier(items.inputs.shape[1], settings.width, rng)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=settings.rate, weight_decay=settings.decay)
    best, lowest, waited = classifier, math.inf, 0
    for _ in range(settings.epochs):
        for rows in _batches(len(kept.inputs), settings.batch, rng):
            optimiser.zero_grad()
            _loss(classifier, kept.part(rows)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            loss = float(_loss(classifier, held))
        if loss < lowest:
            best, lowest, waited = copy.deepcopy(classifier), loss, 0
        elif (waited := waited + 1) == settings.patience:
            break
    return best


def _batches(count: int, size: int, rng: np.random.Generator) -> Iterator[Tensor]:
    order = random_rows(count, count, rng)
    for start in range(0, count, size):
        yield order[start : start + size]


def _loss(classifier: _Classifier, items: _Labelled) -> Tensor:
    return functional.binary_cross_entropy_with_logits(classifier(items.inputs), items.targets)
