"""Ways to score a batch, as named columns in the unit that suits the data. ``METHODS`` is the list."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.likelihood import bits_per_dim, elbo, log_likelihood
from sdediff.likelihood.result import ErrorBudget

Columns = dict[str, Tensor]

Work = Callable[..., Columns]
"""``work(model, x, first, **options)``: from items ``(B, *shape)`` to columns ``(B,)``, the likelihood first."""

ERROR, EFFECT, TERM = "error_", "effect_", "term_"
"""How columns begin that are standard errors, signed effects of approximations, or terms of a sum."""


class Method(NamedTuple):
    """A way to score.

    Attributes:
        work: on a batch.
        options: that it takes.
        integers: those of them that only integer data have.
        words: what it is.
    """

    work: Work
    options: tuple[str, ...]
    integers: tuple[str, ...]
    words: str


def unit(x: Tensor) -> tuple[str, str, float]:
    """The unit for items ``(B, *shape)``, the name of its column, and what one nat is in it."""
    if x.is_floating_point():
        return "nats", "log_prob", 1.0
    return "bits/dim", "bits_per_dim", 1.0 / (math.log(2.0) * x[0].numel())


def flow(model: Denoiser, x: Tensor, first: int, **options: Any) -> Columns:
    """Through the probability-flow ODE; integers dequantised."""
    name, nat = unit(x)[1:]
    if any(option in options for option in METHODS["flow"].integers):
        several = bits_per_dim(model, x, first=first, **options)
        single = bool(several.standard_error.isnan().all())
        error = several.probe_error if single else several.standard_error
        return {name: several.bits_per_dim, "standard_error": error, **_budget(several.error_budget, nat)}
    result = log_likelihood(model, x, first=first, **options)
    value = result.bits_per_dim if result.discrete else result.log_prob
    return {name: value, "standard_error": result.standard_error * nat, **_budget(result.error_budget, nat)}


def bound(model: Denoiser, x: Tensor, first: int, **options: Any) -> Columns:
    """The variational bound: at least the bits, at most the log-density; in continuous time where there is no chain."""
    name, nat = unit(x)[1:]
    if model.sde.instants is None:
        options.setdefault("steps", math.inf)
    result = elbo(model, x, first=first, **options)
    value = result.bits_per_dim if result.discrete else -result.total
    terms = {"prior": result.prior, "diffusion": result.diffusion.sum(dim=0), "reconstruction": result.reconstruction}
    error = result.standard_error * nat
    columns = {**_prefixed(TERM, terms, nat), f"{ERROR}draws": error}
    return {name: value, "standard_error": error, **columns}


def _budget(budget: ErrorBudget, nat: float) -> Columns:
    """Its parts of every item."""
    return _prefixed(ERROR, budget.random, nat) | _prefixed(EFFECT, budget.systematic, nat)


def _prefixed(prefix: str, parts: Mapping[str, Tensor], nat: float) -> Columns:
    return {f"{prefix}{name}": part * nat for name, part in parts.items()}


METHODS = {
    "flow": Method(
        flow,
        ("solver", "steps", "rtol", "atol", "grid", "trace", "probes", "noise", "prior", "t_from", "target_error"),
        ("dequantisation", "samples", "bound"),
        "likelihood through the probability-flow ODE",
    ),
    "elbo": Method(bound, ("steps", "variance", "prior", "samples", "draws"), (), "variational bound"),
}
