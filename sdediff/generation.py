"""``sample``: from noise to data, with the density of what was drawn where it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from sdediff.conditions import ConditionLike
from sdediff.data.units import log_scale, to_data
from sdediff.denoiser import Denoiser
from sdediff.foreign import evaluating
from sdediff.gaussian import prior_moments
from sdediff.likelihood.flow.of_samples import sample_with_density, sampling_path
from sdediff.noise import NoiseSource
from sdediff.samplers import Sampler
from sdediff.samplers.base import Progress
from sdediff.sampling import GridLike, check_item, resolve, solve


@overload
def sample(
    model: Denoiser,
    shape: Sequence[int],
    solver: str | Sampler = ...,
    *,
    steps: int | None = ...,
    grid: GridLike | None = ...,
    rtol: float | None = ...,
    atol: float | None = ...,
    seed: int = ...,
    first: int = ...,
    prior: str = ...,
    batch_size: int | None = ...,
    dtype: torch.dtype | None = ...,
    device: torch.device | str | None = ...,
    progress: Progress | None = ...,
    return_log_prob: Literal[False] = ...,
    trace: str = ...,
    probes: int = ...,
    condition: ConditionLike = ...,
    differentiable: bool = ...,
    keep_mode: bool = ...,
) -> Tensor: ...
@overload
def sample(
    model: Denoiser,
    shape: Sequence[int],
    solver: str | Sampler = ...,
    *,
    steps: int | None = ...,
    grid: GridLike | None = ...,
    rtol: float | None = ...,
    atol: float | None = ...,
    seed: int = ...,
    first: int = ...,
    prior: str = ...,
    batch_size: int | None = ...,
    dtype: torch.dtype | None = ...,
    device: torch.device | str | None = ...,
    progress: Progress | None = ...,
    return_log_prob: Literal[True],
    trace: str = ...,
    probes: int = ...,
    condition: ConditionLike = ...,
    differentiable: bool = ...,
    keep_mode: bool = ...,
) -> tuple[Tensor, Tensor]: ...
def sample(
    model: Denoiser,
    shape: Sequence[int],
    solver: str | Sampler = "ode",
    *,
    steps: int | None = None,
    grid: GridLike | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    first: int = 0,
    prior: str = "moments",
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    return_log_prob: bool = False,
    trace: str = "auto",
    probes: int = 2,
    condition: ConditionLike = None,
    differentiable: bool = False,
    keep_mode: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw samples: from the prior at ``t_max`` to the data.

    Args:
        model: a denoiser with its process.
        shape: ``(n, *shape)``.
        solver: a name from ``SAMPLERS`` or a sampler.
        steps: see :func:`~sdediff.sampling.solve`.
        grid: see :func:`~sdediff.sampling.solve`.
        rtol: see :func:`~sdediff.sampling.solve`.
        atol: see :func:`~sdediff.sampling.solve`.
        seed: sample k is a function of ``(seed, first + k)`` alone, whatever the batch size.
        first: index of the first sample.
        prior: ``"moments"`` starts from the Gaussian with the data's mean and covariance where the model knows them
            (else the standard one), ``"standard"`` from ``N(0, sigma^2)``.
        batch_size: samples solved at a time; all by default.
        dtype: of the states; the network's, single precision at least, or torch's default where it has none.
        device: of the states; the network's by default.
        progress: called as ``progress(done, total)``, over all batches.
        return_log_prob: also return the log-density of every sample, found along the way by a deterministic solver of
            one forward a step. The way then ends at ``t_min`` (for a chain at its first instant) rather than at 0, the
            density is that of the data with that much noise, and ``steps`` are 40 by default: a density asks for more
            of them than a picture.
        trace: of the divergence; see :func:`~sdediff.likelihood.log_likelihood.log_likelihood`.
        probes: of the divergence; see :func:`~sdediff.likelihood.log_likelihood.log_likelihood`.
        condition: what the network is told about each item, a tensor or a tuple or dict of tensors: one row an item, or
            one for all; the network is called ``network(x, t, *condition)`` or ``network(x, t, **condition)``.
        differentiable: let gradients flow from the samples to the model's parameters, every forward kept in memory for
            them; by default none flow.
        keep_mode: leave the network in its own mode, dropout and batch statistics included, rather than putting it into
            evaluation mode for the call.

    Returns:
        Tensor ``(n, *shape)``, in the units of the data; with ``return_log_prob`` that and the log-densities in nats,
        float64 ``(n,)``, in the same units.

    Raises:
        ValueError: for options that are unknown or do not go together.
        FloatingPointError: if the result is not finite.
    """
    moments = prior_moments(prior, model.moments)
    dtype = dtype or model.state_dtype
    place_on = model.device if device is None else device
    n, *item = shape
    check_item(model, item)
    model = model.given(condition)
    model.check_batch(n)
    size = n if batch_size is None else batch_size
    if n < 1 or size < 1:
        raise ValueError(f"the number of samples and the batch size must be at least 1, not {n} and {size}")
    sampler = resolve(solver, steps=steps, rtol=rtol, atol=atol, grid=grid)
    if differentiable and return_log_prob:
        raise ValueError("no gradients flow from samples that come with their density: ask log_likelihood for them")
    way = sampling_path(model, sampler, steps, grid) if return_log_prob else None
    parts, densities = [], []
    for start in range(0, n, size):
        wide = torch.promote_types(dtype, torch.float32)
        source = NoiseSource(seed, (min(size, n - start), *item), first=first + start, dtype=wide, device=place_on)
        x = model.sde.prior_sample(source.shape, moments=moments, noise=source)
        own = model.part(start, size, n)

        def report(done: int, total: int, batch: int = start // size) -> None:
            if progress is not None:
                progress(batch * total + done, total * -(-n // size))

        if way is not None:
            with evaluating(model, keep_mode):
                found = sample_with_density(
                    own, x, way, source, moments=moments, trace=trace, probes=probes, progress=report
                )
            densities.append(found.log_prob - log_scale(model.data))
            parts.append(to_data(found.x, model.data).to(dtype))
            continue
        solution = solve(
            own,
            x,
            sampler,
            t_from=model.sde.t_max,
            t_to=0.0,
            steps=steps,
            grid=grid,
            seed=seed,
            first=first + start,
            progress=report,
            differentiable=differentiable,
            keep_mode=keep_mode,
        )
        parts.append(to_data(solution.x, model.data).to(dtype))
    return torch.cat(parts) if way is None else (torch.cat(parts), torch.cat(densities))
