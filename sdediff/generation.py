"""``sample``: data from noise, and their density where it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from sdediff.data.units import log_scale, to_data
from sdediff.denoiser import Denoiser, check_denoiser
from sdediff.execution import tf32_products
from sdediff.foreign import evaluating
from sdediff.gaussian import prior_moments
from sdediff.likelihood.flow.of_samples import sample_with_density, sampling_path
from sdediff.microbatches import Microbatches
from sdediff.noise import NoiseSource
from sdediff.options import (
    GradientOptions,
    SampleOptions,
    StepOptions,
    TraceOptions,
    check_count,
    check_options,
    subset,
)
from sdediff.progress import reporter
from sdediff.samplers import Sampler
from sdediff.sampling import check_item, check_shape, one_time, resolve, solve, told
from sdediff.staged import Staged


@overload
def sample(
    model: Denoiser | Staged,
    shape: Sequence[int],
    solver: str | Sampler = ...,
    *,
    return_log_prob: Literal[False] = ...,
    **options: Unpack[SampleOptions],
) -> Tensor: ...
@overload
def sample(
    model: Denoiser | Staged,
    shape: Sequence[int],
    solver: str | Sampler = ...,
    *,
    return_log_prob: Literal[True],
    **options: Unpack[SampleOptions],
) -> tuple[Tensor, Tensor]: ...
def sample(
    model: Denoiser | Staged,
    shape: Sequence[int],
    solver: str | Sampler = "ode",
    *,
    return_log_prob: bool = False,
    **options: Unpack[SampleOptions],
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw samples: solve from the prior at ``t_max`` to the data.

    Args:
        model: a denoiser with its process, or a model in two stages (:mod:`sdediff.latent`), whose codes are sampled
            and decoded to the means of their data.
        shape: shape of the samples, ``(n, *shape)``.
        solver: a name from ``SAMPLERS``, ``"auto"`` for one chosen for this model, or a sampler.
        return_log_prob: whether to return the log-density of every sample too, which a deterministic solver of one
            forward a step integrates with it. The solve then ends at ``t_min`` (for a chain at its first instant)
            rather than at 0, the density is that of the data with that much noise, and ``steps`` are 40 by default.
        **options: ``steps``, ``grid``, ``rtol``, ``atol``, ``seed``, ``first``, ``batch_size``, ``prior``, ``t_from``,
            ``dtype``, ``device``, ``progress``, ``condition``, ``execution``, ``guidance``, ``null``,
            ``guidance_interval``, ``differentiable``, ``keep_mode``, and of the density ``trace`` and ``probes``, see
            :class:`~sdediff.options.SampleOptions`.

    Returns:
        Tensor ``(n, *shape)``, in the units of the data; with ``return_log_prob`` that and the log-densities in nats,
        float64 ``(n,)``, in the same units.

    Raises:
        ValueError: for options that are unknown or do not go together.
        FloatingPointError: if the result is not finite.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.sample(model, (1000, 2), steps=10).mean(dim=0).round(decimals=1).abs()
    tensor([2., 0.])
    """
    check_options(options, SampleOptions)
    if isinstance(model, Staged):
        return _sample_codes(model, shape, solver, return_log_prob, options)
    check_denoiser(model)
    moments = prior_moments(options.get("prior", "moments"), model.moments)
    dtype = options.get("dtype") or model.state_dtype
    if not dtype.is_floating_point:
        raise ValueError(f"samples are floats; dtype must be a floating-point type, not {dtype}")
    device, size = options.get("device"), options.get("batch_size")
    n, *item = check_shape(shape)
    check_item(model, item)
    model = told(model, options)
    model.check_batch(n)
    size = n if size is None else size
    check_count("batch_size", size)
    if return_log_prob:
        check_count("probes", options.get("probes", 2))
    steps = subset(options, StepOptions)
    sampler = resolve(solver, **steps)
    gradients, keep_mode = subset(options, GradientOptions), options.get("keep_mode", False)
    t_from = options.get("t_from")
    if t_from is not None and return_log_prob:
        raise ValueError("samples with their density start at t_max: leave t_from out")
    start_time = one_time("t_from", t_from, model.sde.t_max)
    if not return_log_prob:
        with evaluating(model, keep_mode):
            sampler = sampler.for_model(model, (n, *item), steps.get("steps"), (start_time, 0.0))
    if gradients.get("differentiable", False) and return_log_prob:
        raise ValueError("no gradients flow from samples that come with their density: ask log_likelihood for them")
    path = sampling_path(model, sampler, steps.get("steps"), steps.get("grid")) if return_log_prob else None
    seed, progress = options.get("seed", 0), reporter(options.get("progress"), "sampling", "step")
    batches, done = Microbatches(size), 0

    def draw(start: int, end: int) -> tuple[Tensor, ...]:
        first = options.get("first", 0) + start
        source = NoiseSource(
            seed,
            (end - start, *item),
            first=first,
            dtype=torch.promote_types(dtype, torch.float32),
            device=model.device if device is None else device,
        )
        x = model.sde.prior_sample(source.shape, t=start_time, moments=moments, noise=source)
        own, before = model.part(start, end - start, n), done

        def report(step: int, total: int) -> None:
            if progress is not None:
                progress(before * total + step, total * (before - (start - n) // (end - start)))

        if path is None:
            x = solve(
                own,
                x,
                sampler,
                t_from=start_time,
                t_to=0.0,
                seed=seed,
                first=first,
                progress=report,
                keep_mode=keep_mode,
                **steps,
                **gradients,
            ).x
            return (to_data(x, model.data).to(dtype),)
        trace = subset(options, TraceOptions)
        with evaluating(model, keep_mode), tf32_products(bool(model.execution.tf32)):
            found = sample_with_density(own, x, path, source, moments=moments, progress=report, **trace)
        return to_data(found.x, model.data).to(dtype), found.log_prob - log_scale(model.data)

    parts = []
    for part in batches(n, draw):
        parts.append(part)
        done += 1
    samples, *densities = map(torch.cat, zip(*parts, strict=True))
    return (samples, densities[0]) if return_log_prob else samples


def _sample_codes(
    model: Staged, shape: Sequence[int], solver: str | Sampler, return_log_prob: bool, options: SampleOptions
) -> Tensor:
    """Draw codes and return the data that they are decoded to."""
    n, *item = check_shape(shape)
    model.check_shape(item)
    if return_log_prob:
        raise ValueError("the density of data of a model in two stages is bounded, not known: sdediff.elbo bounds it")
    codes = sample(model.prior, (n, *model.code_shape), solver, **options)
    return model.decoded(codes, options.get("batch_size"))
