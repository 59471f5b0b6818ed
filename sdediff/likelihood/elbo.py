r"""The variational bound of a discrete chain (Ho et al. 2020, eq. 5) and of its continuous-time limit.

    -log p(x0)  <=  KL(q(x_T | x0) || prior)  +  sum_i E KL(q(x_s | x_t, x0) || p(x_s | x_t))  -  E log p(x0 | x_1)

over the instants ``t_1 < ... < t_N`` with ``s = t_{i-1}``, ``t = t_i``, ``i = 2 .. N``. The reverse step p is the
bridge with the denoiser's x0 in place of the data and a variance of choice. In the limit the sum is an integral over
the noise levels (Kingma et al. 2021, eq. 17-19). The sum is taken exactly or, like the integral, from sampled terms.

The gap between bound and likelihood as N grows depends on the first instants, whose steps in log-SNR stay long.
On continuous data with ``beta(0) > 0`` the "marginal" variance reaches the likelihood at order 1 in ``1/N``; the
"posterior" one stays ``gamma / 2 = 0.289`` nats a dimension above it (gamma is Euler's constant).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from sdediff.data.levels import bin_width, to_values
from sdediff.data.units import log_scale
from sdediff.denoiser import Denoiser
from sdediff.execution import tf32_products
from sdediff.foreign import evaluating
from sdediff.gaussian import GaussianErrors, Moments, prior_moments
from sdediff.likelihood.bound.chain import BoundBatch, Terms
from sdediff.likelihood.bound.selection import BoundOptions, select_terms
from sdediff.likelihood.discrete.decoder import make_decoder
from sdediff.likelihood.discrete.dequantization import prepare_items
from sdediff.likelihood.result import BoundResult, in_json, student_quantile
from sdediff.microbatches import Microbatches
from sdediff.noise import NoiseSource
from sdediff.numerics import choose
from sdediff.options import ElboOptions, check_count, check_options
from sdediff.progress import reporter
from sdediff.staged import Staged
from sdediff.types import DataInfo, brief

CONTROLS: dict[str, Callable[[Tensor, Moments], GaussianErrors]] = {
    "moments": GaussianErrors,
    "none": lambda x0, _: GaussianErrors.none(x0),
}
"""Control variates of the denoiser's errors."""


@dataclass(frozen=True)
class Elbo(BoundResult):
    """The terms of the bound for each item, nats; smaller is better.

    Attributes:
        prior: terms L_T, ``(B,)``, exact.
        diffusion: terms L_{t-1}, ``(rows, B)``: row i is the part between ``times[i]`` and ``times[i + 1]``, one step
            of a chain or one stratum of the continuous bound. Where steps were sampled each is an unbiased estimate,
            and ``diffusion.mean(dim=1)`` one of the mean over the items.
        reconstruction: terms L_0, ``(B,)``; for continuous data minus a log-density in their units.
        standard_error: standard errors of the sum over the draws of noise and levels, ``(B,)``; NaN for a single draw.
        degrees: degrees of freedom of the standard error, ``(B,)``.
        nfe: forwards of the network.
        dim: number of entries of an item.
        discrete: whether the data were integers.
        times: times at the ends of the rows, ``(rows + 1,)``, from ``t_1`` up.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.elbo(model, torch.tensor([[2.0, 0.0]]), steps=100).diffusion.shape
    torch.Size([99, 1])
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    standard_error: Tensor
    degrees: Tensor
    nfe: int
    dim: int
    discrete: bool
    times: Tensor

    __repr__ = brief

    @property
    def total(self) -> Tensor:  # type: ignore[override]  # a field of other bounds
        """Bound on ``-log p``, nats ``(B,)``."""
        return self.prior + self.diffusion.sum(dim=0) + self.reconstruction

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the ends of the exact sums' confidence intervals by Student's distribution, nats ``(B,)`` each."""
        half = student_quantile(confidence, self.degrees).to(self.total) * self.standard_error
        return self.total - half, self.total + half

    def columns(self) -> dict[str, Tensor]:
        """Return the bounds, their standard errors and terms, nats ``(B,)`` each, the diffusion's summed over rows."""
        terms = {"prior": self.prior, "diffusion": self.diffusion.sum(dim=0), "reconstruction": self.reconstruction}
        return {"total": self.total, "standard_error": self.standard_error, **terms}

    def to_dict(self) -> dict[str, Any]:
        """Return the total and all fields in JSON's types."""
        return {"total": in_json(self.total), **super().to_dict()}


def elbo(
    model: Denoiser,
    x: Tensor,
    *,
    steps: float | None = None,
    times: Sequence[float] | Tensor | None = None,
    variance: str = "posterior",
    decoder: str | None = None,
    draws: int | None = None,
    samples: int | None = None,
    law: str = "moments",
    control: str = "moments",
    data: DataInfo | None = None,
    **options: Unpack[ElboOptions],
) -> Elbo:
    """Return the variational bound, term by term.

    Args:
        model: denoiser with its process. A model in two stages gets the bound of :func:`sdediff.latent.elbo`, which
            has the types of its options and of its result.
        x: items, ``(B, *shape)``; integers are levels, floats are continuous data, in their own units, and have a
            Gaussian density at the end, in these units.
        steps: length of the chain; by default a chain's own. Fewer stride it; other processes need it.
            ``math.inf`` is the continuous-time bound, which every process has.
        times: instants ``t_1 < ... < t_N`` themselves, instead; with ``steps=math.inf`` the two ends, by default
            ``t_min`` (a chain's first instant) and ``t_max``; with integers the first noise is 0.4 bins wide at least,
            for networks trained on dequantised values do not resolve a bin. One that does has a sharper bound from
            ``t_min``.
        variance: variance of the reverse steps, ``"posterior"``, ``"marginal"``, or ``"learned"`` by the network,
            between the two; without effect in continuous time. The decoder about the denoiser's x0 has that of the
            first step, ``sin^2`` (beta_1 of a chain); the learned one lies between it and the second step's posterior
            variance.
        decoder: decoder of integers, ``"discretised"`` about the denoiser's x0 (the default), or ``"levels"``, by the
            noisy state alone.
        draws: number of steps from which the sum is estimated, even, for each item its own; by default all steps are
            summed. The continuous bound is always sampled, 64 times by default.
        samples: number of draws of the noise at every instant, by default 1; where steps are sampled, of the
            reconstruction term alone, by default 2.
        law: distribution of the sampled steps, ``"moments"`` or ``"logsnr"`` (see ``stratified.LAWS``), unbiased both.
        control: control variate: ``"moments"`` is the error of the Gaussian denoiser with the data's moments (of mean 0
            and variance 1 where the model has none), whose mean is given: less noise, the same expectation; ``"none"``
            leaves the terms as drawn.
        data: levels and range of integer data; the model's own by default.
        **options: ``prior`` at the last instant, ``seed``, ``first``, ``batch_size``, ``progress``, ``condition``,
            ``execution`` and ``keep_mode``, see :class:`~sdediff.options.ElboOptions`.

    Raises:
        ValueError: for options that are unknown or do not go together; for data that are not finite or not of the
            model's shape; for integers outside the levels, or whose levels are unknown; for a variance that the model
            has not learned.
        FloatingPointError: if a term is not finite.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.elbo(model, torch.tensor([[2.0, 0.0]]), steps=100).total > 0.452  # minus the log-density
    tensor([True])
    """
    if isinstance(model, Staged):
        staged: Elbo = model.bound(x, samples=1 if samples is None else samples, **options)
        return staged
    check_options(options, ElboOptions)
    model, x, info = prepare_items(model, x, data, options)
    make_decoder(decoder, x, info)
    prior_law = prior_moments(options.get("prior", "moments"), model.moments)
    data_moments = Moments.unit(x.shape[1:]) if model.moments is None else model.moments
    make_control = choose(CONTROLS, control, "control")
    size = options.get("batch_size")
    size = len(x) if size is None else size
    check_count("batch_size", size)
    if samples is not None:
        check_count("samples", samples)
    width = 0.0 if info is None else bin_width(info)
    selected = select_terms(model, BoundOptions(steps, times, variance, law, draws, samples, width), data_moments)
    seed, first = options.get("seed", 0), options.get("first", 0)
    progress = reporter(options.get("progress"), "bound", "item")

    def bound(begin: int, end: int) -> Elbo:
        batch = x[begin:end]
        x0 = batch if info is None else to_values(batch, info, dtype=model.state_dtype)
        noise = NoiseSource(seed, x0.shape, first=first + begin, dtype=x0.dtype, device=x0.device)
        items = BoundBatch(x0, noise, make_decoder(decoder, batch, info), make_control(x0, data_moments))
        with evaluating(model, options.get("keep_mode", False)), tf32_products(bool(model.execution.tf32)):
            terms = selected.run(model.part(begin, end - begin, len(x)), items)
        if info is None:
            terms = terms._replace(reconstruction=terms.reconstruction + log_scale(model.data))
        cost = (Moments.zero(x.shape[1:]) if prior_law is None else prior_law).kl(x0, selected.last)
        if progress is not None:
            progress(end, len(x))
        return _batch_elbo(cost, terms, x[0].numel(), info is not None, selected.times)

    return _join([*Microbatches(size)(len(x), bound)])


def _batch_elbo(prior: Tensor, terms: Terms, dim: int, discrete: bool, times: Tensor) -> Elbo:
    error, degrees = terms.variance.variance.sqrt(), terms.variance.degrees
    result = Elbo(prior, terms.diffusion, terms.reconstruction, error, degrees, terms.nfe, dim, discrete, times)
    if not bool(torch.isfinite(result.total).all()):
        raise FloatingPointError("a term of the bound is not finite; check the data and the model's output")
    return result


def _join(results: Sequence[Elbo]) -> Elbo:
    def columns(name: str) -> Tensor:
        return torch.cat([getattr(result, name) for result in results], dim=-1)

    return replace(
        results[0],
        prior=columns("prior"),
        diffusion=columns("diffusion"),
        reconstruction=columns("reconstruction"),
        standard_error=columns("standard_error"),
        degrees=columns("degrees"),
        nfe=sum(result.nfe for result in results),
    )
