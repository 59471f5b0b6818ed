r"""The variational bound of a model in two stages, with the terms of both.

With q(z | x) the encoder's law and p(z) that of the codes, ``N(0, I)`` of a VAE or a score model's,

    -log p(x)  <=  E_q[-log p(x | z)]  +  E_q[-log p(z)]  -  H(q)
                     reconstruction        cross-entropy     entropy

(Kingma & Welling 2014, eq. 3; Vahdat et al. 2021, eq. 3), and the last two are ``KL(q || p)``. The gap is
``KL(q(z | x) || p(z | x))``: Jensen's inequality loses what the encoder's law misses of the posterior. From K draws
there is also ``-log(1/K sum p(x, z_k) / q(z_k | x))`` (Burda et al. 2016), never above the former in the mean, and
tighter with every draw.

Entropies are closed forms, so is the divergence from ``N(0, I)``; the rest is a mean over draws of z. A score model's
``log p(z)`` is that of its probability-flow ODE, with its own error, or its continuous variational bound.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.data.levels import place
from sdediff.data.units import log_scale
from sdediff.foreign import evaluating
from sdediff.latent.code_laws import CodeLaw
from sdediff.latent.first_stage import FirstStage
from sdediff.likelihood.bits_per_dim import BOUNDS
from sdediff.likelihood.discrete.dequantization import check_items, integer_data, log_bin_volume
from sdediff.likelihood.result import BoundResult, ErrorBudget, normal_quantile, student_quantile
from sdediff.noise import NoiseSource, Stage
from sdediff.numerics import choose, error_of_mean, single, wide
from sdediff.options import check_count
from sdediff.progress import ProgressLike, reporter
from sdediff.staged import Staged
from sdediff.types import brief


@dataclass(frozen=True)
class LatentBound(BoundResult):
    """The bound of each item, nats; smaller is better.

    Attributes:
        total: bounds on ``-log p``, ``(B,)``: of continuous data minus a log-density in their units.
        reconstruction: mean reconstruction terms, ``(B,)``.
        cross_entropy: mean cross-entropies ``E_q[-log p(z)]``, ``(B,)``.
        entropy: entropies of the posteriors, ``(B,)``.
        standard_error: standard errors of ``total`` over the draws of the codes, ``(B,)``; NaN for a single draw. That
            of an importance bound is from the delta method.
        samples: number of draws K.
        kind: ``"mean"``, or ``"importance"`` for the importance-weighted bound of K draws.
        nfe: forwards of the prior's network.
        dim: number of entries of an item.
        discrete: whether the data were integers.
        error_budget: parts of the error; its ``str()`` is a table.

    >>> info = sdediff.DataInfo((6,))
    >>> vae = sdediff.latent.VAE(torch.nn.Linear(6, 4), torch.nn.Linear(2, 6), data=info)
    >>> sdediff.latent.elbo(vae, torch.zeros(5, 6), samples=2).kl.shape
    torch.Size([5])
    """

    total: Tensor
    reconstruction: Tensor
    cross_entropy: Tensor
    entropy: Tensor
    standard_error: Tensor
    samples: int
    kind: str
    nfe: int
    dim: int
    discrete: bool
    error_budget: ErrorBudget

    __repr__ = brief

    @property
    def kl(self) -> Tensor:
        """Divergence of the posterior from the law of the codes, nats ``(B,)``."""
        return self.cross_entropy - self.entropy

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the ends of the bounds' confidence intervals, nats ``(B,)`` each; NaN for a single draw."""
        degrees = torch.full_like(self.standard_error, self.samples - 1)
        random = student_quantile(confidence, degrees).to(self.standard_error) * self.standard_error
        half = torch.hypot(random, normal_quantile(confidence) * self.error_budget.systematic_size().to(random))
        return self.total - half, self.total + half

    def columns(self) -> dict[str, Tensor]:
        """Return the bounds, their standard errors, terms and the parts of the error, nats ``(B,)`` each."""
        names = ("total", "standard_error", "reconstruction", "cross_entropy", "entropy")
        return {**{name: getattr(self, name) for name in names}, **self.error_budget.columns()}


class _Draws(NamedTuple):
    """The terms of a batch: ``(K, B)`` of each draw, and ``(B,)``."""

    reconstruction: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    probe_error: Tensor
    kl: Tensor | None
    entropy: Tensor
    systematic: dict[str, Tensor]
    nfe: int


class Bounded(Staged):
    """A model in two stages whose codes have a law, so that the data's likelihood has a bound."""

    @abstractmethod
    def parts(self, **density: Any) -> tuple[FirstStage, CodeLaw]:
        """Return the first stage, and the law of its codes in a bound, evaluated as the options say.

        Raises:
            ValueError: for options that do not fit.
        """

    def bound(self, x: Tensor, **options: Any) -> LatentBound:
        return elbo(self, x, **options)


def elbo(
    model: Bounded,
    x: Tensor,
    *,
    samples: int = 1,
    bound: str = "mean",
    seed: int = 0,
    first: int = 0,
    batch_size: int | None = None,
    progress: ProgressLike = None,
    **density: Any,
) -> LatentBound:
    """Return the variational bound of a VAE or a latent model, term by term.

    Args:
        model: a :class:`~sdediff.latent.VAE`, or a :class:`~sdediff.latent.LatentModel` on one.
        x: items ``(B, *shape)``; integers are levels, floats continuous data in their own units. Levels whose
            observation is continuous are dequantised uniformly in every draw, and the bound is on the levels'
            probability.
        samples: number of draws K of the codes of each item.
        bound: ``"mean"``, or ``"importance"`` for the importance-weighted bound of the draws.
        seed: seed of all random numbers; those of item k are functions of ``(seed, first + k)`` alone.
        first: index of the first item.
        batch_size: items at a time; all by default.
        progress: function called as ``progress(done, total)``, or true for a bar.
        **density: of a latent model ``density``, ``"flow"`` or ``"continuous"``, and the options of
            :func:`~sdediff.log_likelihood` or :func:`~sdediff.elbo` for the prior; see
            :meth:`~sdediff.latent.LatentModel.law`.

    Raises:
        ValueError: for a model without a law of its codes or of its data, options that do not fit, data that are not
            finite or not of the model's shape, or an importance bound whose densities are estimated by random probes.
        FloatingPointError: if a term is not finite.

    >>> info = sdediff.DataInfo((6,), levels=2)
    >>> vae = sdediff.latent.VAE(torch.nn.Linear(6, 4), torch.nn.Linear(2, 6), data=info)
    >>> sdediff.latent.elbo(vae, torch.ones(5, 6, dtype=torch.int64), samples=8, bound="importance").mean < 20.0
    True
    """
    estimate = choose(BOUNDS, bound, "bound")
    check_count("samples", samples)
    if not isinstance(model, Bounded):
        raise TypeError(f"this bound is of a VAE or a latent model on one, not of a {type(model).__name__}")
    stage, law = model.parts(**density)
    if bound == "importance" and not law.exact:
        raise ValueError("the importance bound needs exact densities: give the prior trace='exact' and density='flow'")
    check_items(x, stage.data)
    discrete = not x.is_floating_point()
    if discrete:
        integer_data(x, stage.data)
    elif stage.observation.integers:
        raise ValueError(
            f"the model's observation, {type(stage.observation).__name__}, is a law of levels: give integers, not "
            f"{x.dtype}"
        )
    size = len(x) if batch_size is None else batch_size
    check_count("batch_size", size)
    parts, report = [], reporter(progress, "bound", "item")
    for begin in range(0, len(x), size):
        parts.append(_draws(stage, law, single(x[begin : begin + size]), samples, seed, first + begin))
        if report is not None:
            report(min(begin + size, len(x)), len(x))
    return _summarise(_joined(parts), estimate, bound, discrete, _constant(stage, x), x[0].numel())


@torch.no_grad()
def _draws(stage: FirstStage, law: CodeLaw, x: Tensor, samples: int, seed: int, first: int) -> _Draws:
    """Return the terms of one batch."""
    noise = NoiseSource(seed, (len(x), *stage.code_shape), first=first, dtype=stage.dtype, device=stage.device)
    dither = NoiseSource(seed, x.shape, first=first, dtype=stage.dtype, device=stage.device)
    rows: list[tuple[Tensor, ...]] = []
    systematic: dict[str, Tensor] = {}
    nfe, x = 0, x.to(stage.device)
    dequantised = not x.is_floating_point() and not stage.observation.integers
    with evaluating(stage):
        values = stage.values(x)
        posterior = stage.posterior(values)
        kl, entropy = law.kl(posterior), posterior.entropy()
        for draw in range(samples):
            if dequantised:  # and so encoded, as the bound is on the density of the values
                values = place(x, stage.data, dither.uniform(draw, Stage.CODE_VALUES), stage.dtype)
                posterior = stage.posterior(values)
                drawn_kl, drawn_entropy = law.kl(posterior), posterior.entropy()
                share = 1.0 / (draw + 1)
                entropy = entropy + share * (drawn_entropy - entropy) if draw else drawn_entropy
                if kl is not None and drawn_kl is not None:
                    kl = kl + share * (drawn_kl - kl) if draw else drawn_kl
            eps = noise.normal(draw, Stage.CODES)
            z = posterior.draw(eps)
            density = law.log_prob(z, seed, first, draw)
            cost = wide(stage.reconstruction(x, values, z))
            rows.append((cost, density.log_prob, posterior.log_prob(eps), density.standard_error))
            for name, effect in density.systematic.items():
                systematic[name] = systematic.get(name, torch.zeros_like(effect)) - effect / samples
            nfe += density.nfe
    reconstruction, log_prior, log_posterior, error = (torch.stack(column) for column in zip(*rows, strict=True))
    return _Draws(reconstruction, log_prior, log_posterior, error, kl, entropy, systematic, nfe)


def _joined(parts: list[_Draws]) -> _Draws:
    """Return the terms of all batches."""
    kls = [part.kl for part in parts if part.kl is not None]

    def rows(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=-1)

    return _Draws(
        rows("reconstruction"),
        rows("log_prior"),
        rows("log_posterior"),
        rows("probe_error"),
        torch.cat(kls) if kls else None,
        rows("entropy"),
        {name: torch.cat([part.systematic[name] for part in parts]) for name in parts[0].systematic},
        sum(part.nfe for part in parts),
    )


def _constant(stage: FirstStage, x: Tensor) -> float:
    """Return what is added to a bound in the model's units, nats."""
    if x.is_floating_point():
        return log_scale(stage.data)
    return 0.0 if stage.observation.integers else -log_bin_volume(stage.data, x.shape[1:])


def _summarise(
    terms: _Draws,
    estimate: Callable[[Tensor], tuple[Tensor, Tensor]],
    kind: str,
    discrete: bool,
    constant: float,
    dim: int,
) -> LatentBound:
    samples = len(terms.reconstruction)
    cross_entropy = -terms.log_prior.mean(dim=0) if terms.kl is None else terms.kl + terms.entropy
    if kind == "importance":
        log_weights = -terms.reconstruction + terms.log_prior - terms.log_posterior
    elif terms.kl is None:
        log_weights = -terms.reconstruction + terms.log_prior + terms.entropy
    else:
        log_weights = -terms.reconstruction - terms.kl
    value, error = estimate(log_weights)
    total = constant - value
    if not bool(torch.isfinite(total).all()):
        raise FloatingPointError("a term of the bound is not finite; check the data and the networks' outputs")
    of_mean = error_of_mean(total)
    probes = (terms.probe_error.square().mean(dim=0) / samples).sqrt()
    scale = math.log(2.0) * dim if discrete else 1.0
    budget = ErrorBudget(
        {"draws": error} if samples > 1 else {"probes": probes},  # the draws' scatter has that of the probes in it
        terms.systematic,
        of_mean={} if math.isnan(of_mean) else {"population": of_mean},
        values=total,
        scale=scale,
        unit="bits/dim" if discrete else "nats",
    )
    return LatentBound(
        total,
        terms.reconstruction.mean(dim=0) + constant,
        cross_entropy,
        terms.entropy,
        error,
        samples,
        kind,
        terms.nfe,
        dim,
        discrete,
        budget,
    )
