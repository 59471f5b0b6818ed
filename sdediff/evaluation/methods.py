"""Likelihoods of a batch, as named columns in the unit of the data, by the methods ``LIKELIHOOD_METHODS``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.likelihood import bits_per_dim, elbo, log_likelihood
from sdediff.likelihood.result import EFFECT, ERROR, ErrorBudget
from sdediff.staged import Staged

TensorColumns = dict[str, Tensor]

BatchLikelihood = Callable[..., TensorColumns]
"""Function ``evaluate(model, x, first, **options)`` from items ``(B, *shape)`` to columns, the likelihood first."""

TERM = "term_"
"""Prefix of columns of terms of a sum."""


class LikelihoodMethod(NamedTuple):
    """A method of likelihoods.

    Attributes:
        evaluate: likelihood of a batch.
        options: names of its options.
        integer_options: names of further options, for integer data only.
        description: description in a few words.
    """

    evaluate: BatchLikelihood
    options: tuple[str, ...]
    integer_options: tuple[str, ...]
    description: str


def unit(x: Tensor) -> tuple[str, str, float]:
    """Return the unit for items ``(B, *shape)``, the name of its column, and the value of one nat in it."""
    if x.is_floating_point():
        return "nats", "log_prob", 1.0
    return "bits/dim", "bits_per_dim", 1.0 / (math.log(2.0) * x[0].numel())


def flow(model: Denoiser, x: Tensor, first: int, **options: Any) -> TensorColumns:
    """Return the likelihood through the probability-flow ODE, of integers by dequantisation."""
    name, nat = unit(x)[1:]
    if any(option in options for option in LIKELIHOOD_METHODS["flow"].integer_options):
        draws = bits_per_dim(model, x, first=first, **options)
        single = bool(draws.standard_error.isnan().all())
        error = draws.probe_error if single else draws.standard_error
        return {name: draws.bits_per_dim, "standard_error": error, **_budget_columns(draws.error_budget, nat)}
    result = log_likelihood(model, x, first=first, **options)
    value = result.bits_per_dim if result.discrete else result.log_prob
    return {name: value, "standard_error": result.standard_error * nat, **_budget_columns(result.error_budget, nat)}


def bound(model: Denoiser, x: Tensor, first: int, **options: Any) -> TensorColumns:
    """Return the variational bound, above the bits or below the log-density; in continuous time without a chain."""
    name, nat = unit(x)[1:]
    if model.sde.instants is None:
        options.setdefault("steps", math.inf)
    result = elbo(model, x, first=first, **options)
    value = result.bits_per_dim if result.discrete else -result.total
    terms = {"prior": result.prior, "diffusion": result.diffusion.sum(dim=0), "reconstruction": result.reconstruction}
    error = result.standard_error * nat
    columns = {**_prefixed(TERM, terms, nat), f"{ERROR}draws": error}
    return {name: value, "standard_error": error, **columns}


def two_stages(model: Staged, x: Tensor, first: int, **options: Any) -> TensorColumns:
    """Return the bound of a VAE or a latent model, above the bits or below the log-density."""
    name, nat = unit(x)[1:]
    result = model.bound(x, first=first, **options)
    value = result.bits_per_dim if result.discrete else -result.total
    terms = {name: getattr(result, name) for name in ("reconstruction", "cross_entropy")} | {"entropy": -result.entropy}
    columns = {**_prefixed(TERM, terms, nat), **_budget_columns(result.error_budget, nat)}
    return {name: value, "standard_error": result.standard_error * nat, **columns}


def _budget_columns(budget: ErrorBudget, nat: float) -> TensorColumns:
    """Return the parts of a budget for every item."""
    return _prefixed(ERROR, budget.random, nat) | _prefixed(EFFECT, budget.systematic, nat)


def _prefixed(prefix: str, parts: Mapping[str, Tensor], nat: float) -> TensorColumns:
    return {f"{prefix}{name}": part * nat for name, part in parts.items()}


LIKELIHOOD_METHODS = {
    "flow": LikelihoodMethod(
        flow,
        ("solver", "steps", "rtol", "atol", "grid", "trace", "probes", "noise", "prior", "t_from", "target_error"),
        ("dequantisation", "samples", "bound"),
        "likelihood through the probability-flow ODE",
    ),
    "elbo": LikelihoodMethod(bound, ("steps", "variance", "prior", "samples", "draws"), (), "variational bound"),
    "stages": LikelihoodMethod(
        two_stages,
        ("samples", "bound", "solver", "steps", "rtol", "atol", "grid", "trace", "probes", "noise", "prior", "density"),
        (),
        "bound of both stages",
    ),
}
