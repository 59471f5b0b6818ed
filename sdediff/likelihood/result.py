"""What a log-likelihood is answered with, and results put together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdediff.likelihood import budget
from sdediff.likelihood.budget import ErrorBudget
from sdediff.types import UndefinedError, brief


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch.

    Attributes:
        log_prob: nats, float64 ``(B,)``: the log-density of continuous data; of integer data the log-probability
            seen by one dequantisation, in the mean a lower bound.
        standard_error: nats ``(B,)``, of the probes; 0 for the exact trace.
        latent: the states at ``t_to``, ``(B, *shape)``.
        nfe: forwards of the network, each of them serving value and divergence.
        products: vector-Jacobian products spent on all items together.
        error_budget: the parts of the error; its ``str()`` is a table.
        discrete: whether the data were integers.
    """

    log_prob: Tensor
    standard_error: Tensor
    latent: Tensor
    nfe: int
    products: int
    error_budget: ErrorBudget
    discrete: bool = False

    __repr__ = brief

    @property
    def bits_per_dim(self) -> Tensor:
        """Bits a dimension of integer data, ``(B,)``; smaller is better.

        Raises:
            ValueError: for continuous data, whose density has units.
        """
        if not self.discrete:
            raise UndefinedError("bits/dim exist for integer data only; continuous data have log_prob, in nats")
        return -self.log_prob / (math.log(2.0) * self.latent[0].numel())

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end, nats ``(B,)`` each, by all parts of the budget.

        By the probes' standard error it covers what it says. The systematic parts are estimates of a size: that of the
        solver counts twice, the others once; what is mostly noise in a single item does not count.

        Raises:
            ValueError: unless ``0 < confidence < 1``.
        """
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"the confidence must lie in (0, 1), not {confidence}")
        sigmas = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
        size = torch.zeros_like(self.log_prob)
        for name, effect in self.error_budget.systematic.items():
            if not self.error_budget.noisy(name):
                size = size + effect.abs() * (2.0 if name == "solver" else 1.0)
        half = sigmas * torch.hypot(self.standard_error, size)
        return self.log_prob - half, self.log_prob + half


def replace_rows(whole: LogLikelihood, rows: list[int], part: LogLikelihood) -> LogLikelihood:
    """With the figures of some items taken from another result; what was spent on both counts."""

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_put((torch.tensor(rows, device=old.device),), new)

    def put_all(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: put(values, new[name]) for name, values in old.items()}

    old, new = whole.error_budget, part.error_budget
    parts = replace(
        old,
        random=put_all(old.random, new.random),
        systematic=put_all(old.systematic, new.systematic),
        values=put(old.values, new.values),
    )
    return replace(
        whole,
        log_prob=put(whole.log_prob, part.log_prob),
        standard_error=put(whole.standard_error, part.standard_error),
        latent=put(whole.latent, part.latent),
        nfe=whole.nfe + part.nfe,
        products=whole.products + part.products,
        error_budget=parts,
    )


def join(parts: Sequence[LogLikelihood]) -> LogLikelihood:
    """Several batches as one."""
    return LogLikelihood(
        torch.cat([part.log_prob for part in parts]),
        torch.cat([part.standard_error for part in parts]),
        torch.cat([part.latent for part in parts]),
        sum(part.nfe for part in parts),
        sum(part.products for part in parts),
        budget.join([part.error_budget for part in parts]),
        parts[0].discrete,
    )
