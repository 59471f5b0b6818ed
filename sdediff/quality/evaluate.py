"""``evaluate``: how like the data samples are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdediff.data.entries import levels_of
from sdediff.numerics import all_finite, choose
from sdediff.progress import ProgressLike, reporter
from sdediff.quality.embedding import AUTO, Features, choose_space, embed
from sdediff.quality.frechet import Frechet
from sdediff.quality.measure import Figure, Measure
from sdediff.quality.neighbours import PrecisionRecall
from sdediff.quality.quality import Quality
from sdediff.quality.resampling import Resampling
from sdediff.quality.sliced import SlicedWasserstein
from sdediff.quality.two_sample import TwoSample
from sdediff.types import DataInfo

MEASURES: dict[str, Measure] = {
    "frechet": Frechet(),
    "precision-recall": PrecisionRecall(),
    "sliced-wasserstein": SlicedWasserstein(),
    "classifier": TwoSample(),
}
"""Measures by name."""

LEAST_ITEMS = 20
"""Smallest number of samples, and of data: halves of fewer have too few neighbours."""

RESAMPLES = 50
"""Number of pairs of halves by default: a spread over so many is known to 10 %."""


def evaluate(
    samples: Tensor,
    reference: Tensor,
    *,
    features: Features = AUTO,
    measures: Sequence[str] | None = None,
    info: DataInfo | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: ProgressLike = None,
) -> Quality:
    """Compare samples with data: Fréchet distance, precision, recall, sliced Wasserstein distance, a classifier's test.

    Both become features first. Those of the library are fixed and named in the result; a TorchScript file is loaded and
    run only where it is named, see :mod:`sdediff.quality.scripted` for what that risks.

    Args:
        samples: samples ``(n, *shape)``, integer levels or floats.
        reference: items of the data ``(m, *shape)``, likewise; best those that the model was not trained on.
        features: name of ``FEATURES``, path of a TorchScript network or a function from floats ``(B, *shape)`` to
            ``(B, D)``; by default the values of rows, and random convolutions of anything else.
        measures: names of ``MEASURES``; all by default.
        info: levels or range of the data, for networks that take bytes; by default the levels that the data have, or
            [-1, 1].
        seed: seed of halves, directions and classifier; the global generators are not touched.
        resamples: number of pairs of halves from which intervals come; 0 for none.
        confidence: confidence of the intervals.
        batch_size: number of items that become features at a time.
        device: device of the features; the measures are taken in double precision on the CPU.
        progress: true for a bar, or a function called as ``progress(done, total)``.

    Raises:
        FileNotFoundError: if there is no such file of a network.
        ValueError: for items of different kinds or shapes, fewer than ``LEAST_ITEMS``, numbers that are not finite, or
            unknown names.

    >>> x, y = (sdediff.analytic.Gaussian([0.0, 0.0], 1.0).sample(200, seed=seed) for seed in (0, 1))
    >>> quality = sdediff.evaluate(x + torch.tensor([2.0, 0.0]), y, resamples=10)
    >>> quality.figures["frechet"].low > 2.0, quality.figures["classifier"].value > 0.7
    (True, True)
    """
    _check_items(samples, reference)
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 0 or resamples == 1:
        raise ValueError(f"resamples must be a whole number, 0 or at least 2, not {resamples!r}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    chosen = [choose(MEASURES, name, "measure") for name in (MEASURES if measures is None else measures)]
    if not chosen:
        raise ValueError(f"no measures; choose from: {', '.join(MEASURES)}")
    place = torch.device(device)
    described = DataInfo(tuple(reference.shape[1:]), levels_of(reference)) if info is None else info
    space = choose_space(features, reference, described, place)
    x, y = (embed(space, items, batch_size, place) for items in (samples, reference))
    figures, meanings = dict[str, Figure](), dict[str, str]()
    tell, done = reporter(progress, "evaluating", "resample"), [0]
    total = resamples * len(chosen)

    def report() -> None:
        done[0] += 1
        if tell is not None:
            tell(done[0], total)

    for index, measure in enumerate(chosen):
        done[0] = resamples * index
        figures |= measure.figures(x, y, Resampling(resamples, seed, confidence, report))
        meanings |= measure.meanings
    remarks = _remarks(figures, x, y)
    counts = (len(samples), len(reference))
    return Quality(figures, meanings, space.name, x.shape[1], *counts, resamples, confidence, remarks)


def _check_items(samples: Tensor, reference: Tensor) -> None:
    """Refuse what cannot be compared, in one line."""
    for items, name in ((samples, "samples"), (reference, "the data")):
        if not isinstance(items, Tensor):
            raise ValueError(f"{name} must be a tensor (n, *shape), not {type(items).__name__}")
        if items.ndim < 2 or len(items) < LEAST_ITEMS:
            raise ValueError(f"{name} must be at least {LEAST_ITEMS} items (n, *shape), not {tuple(items.shape)}")
        if items.is_complex() or (items.is_floating_point() and not all_finite(items)):
            raise ValueError(f"{name} hold numbers that are not finite, or complex ones")
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(f"samples have shape {tuple(samples.shape[1:])}, the data {tuple(reference.shape[1:])}")
    if samples.is_floating_point() != reference.is_floating_point():
        kinds = ("floats", "integer levels")
        first, second = kinds if samples.is_floating_point() else kinds[::-1]
        raise ValueError(f"samples are {first}, the data {second}: give both as levels, or both as values")


def _remarks(figures: dict[str, Figure], x: Tensor, y: Tensor) -> tuple[str, ...]:
    """Return what to know of the figures."""
    few, dim = min(len(x), len(y)), x.shape[1]
    if "frechet" in figures and few < 3 * dim:
        return (
            f"{few:,} items for the covariance of {dim:,} features: the Fréchet distance of so few is too large, and "
            f"the estimate takes out a part of that only; compare it at equal numbers, or take at least {3 * dim:,}",
        )
    return ()
