"""``moments``: mean and covariance for models that come without, from data or from samples of their own."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor
from typing_extensions import Unpack

from sdediff.conditions import ConditionLike
from sdediff.data.units import fit_moments, to_model
from sdediff.denoiser import Denoiser, check_denoiser
from sdediff.gaussian import Moments
from sdediff.generation import sample
from sdediff.options import check_options
from sdediff.progress import ProgressLike
from sdediff.sampling import check_item

SAMPLES, STEPS = 256, 20
"""Number of pilot samples, and of the steps that each takes."""


class PilotOptions(TypedDict, total=False):
    """Samples of the model from which its moments are taken.

    Attributes:
        shape: shape of an item, for a model that does not say what its data are.
        n: number of samples, 256 by default. Few tell little of a covariance, which is then shrunk.
        steps: number of steps of the default solver, 20 by default.
        seed: seed of the samples.
        batch_size: number of samples solved at a time; all by default.
        condition: condition of the samples: a tensor, tuple or dict of tensors, one row a sample or one for all.
        progress: true for a bar, or a function called with the number of steps done and their total.
    """

    shape: tuple[int, ...]
    n: int
    steps: int
    seed: int
    batch_size: int | None
    condition: ConditionLike
    progress: ProgressLike


def moments(model: Denoiser, data: Tensor | None = None, **options: Unpack[PilotOptions]) -> Moments:
    """Estimate mean and covariance of a model's data, in the model's coordinates.

    ``model.with_moments(...)`` is the model that has them: its default solver is exact on their Gaussian, and starts
    and likelihoods are from the prior matched to it.

    Args:
        model: the denoiser.
        data: items ``(n, *shape)`` of the data: integers where the model's data have levels, else floats in the data's
            units. By default samples of the model itself take their place, ``n * steps`` forwards of an item; those of
            data with levels are clipped to their range.
        **options: ``shape``, ``n``, ``steps``, ``seed``, ``batch_size``, ``condition`` and ``progress`` of the
            samples, see :class:`PilotOptions`.

    Raises:
        ValueError: if the shape of the items is unknown or another, for options of samples beside data, or for
            integers where the model does not know their levels.
        FloatingPointError: if samples are not finite.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE()).with_moments(None)
    >>> sdediff.moments(model, n=4000).mean.round(decimals=1).abs()
    tensor([2., 0.], dtype=torch.float64)
    """
    check_options(options, PilotOptions)
    check_denoiser(model)
    if data is not None:
        if options:
            raise ValueError(f"moments are of the data or of samples: {', '.join(options)} are for samples")
        return _of_data(model, data)
    shape = options.get("shape", None if model.data is None else model.data.shape)
    if shape is None:
        raise ValueError("the model does not say what its data are: give the shape of an item, shape=(3, 32, 32)")
    samples = sample(
        model,
        (options.get("n", SAMPLES), *shape),
        steps=options.get("steps", STEPS),
        seed=options.get("seed", 0),
        batch_size=options.get("batch_size"),
        condition=options.get("condition"),
        progress=options.get("progress"),
    )
    samples = to_model(samples, model.data).cpu()
    if model.data is not None and model.data.levels is not None:
        samples = samples.clamp(model.data.low, model.data.high)
    return Moments.fit(samples)


def _of_data(model: Denoiser, data: Tensor) -> Moments:
    check_item(model, list(data.shape[1:]))
    data = data.cpu()
    if model.data is not None:
        return fit_moments(data, model.data)
    if not data.is_floating_point():
        raise ValueError("the model does not say what its levels are: give floats, or a model with data=DataInfo(...)")
    return Moments.fit(data)
