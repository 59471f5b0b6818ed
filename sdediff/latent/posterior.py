"""The diagonal Gaussian of an encoder, ``q(z | x) = N(mu, diag(s^2))``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.gaussian import gaussian_kl
from sdediff.numerics import LOG_2PI, sum_features, wide

_LOG_VARIANCE = (-30.0, 20.0)
"""Bounds of a network's log-variance."""


class Posterior(NamedTuple):
    """Mean and log standard deviation of the codes of each item, ``(B, *code_shape)``.

    >>> posterior = sdediff.latent.Posterior(torch.tensor([[2.0]]), torch.tensor([[0.0]]))
    >>> posterior.kl()
    tensor([[2.]], dtype=torch.float64)
    """

    mean: Tensor
    log_std: Tensor

    @classmethod
    def of(cls, output: Tensor) -> Posterior:
        """Return the law of a network's output ``(B, 2 C, ...)``: means, then log-variances."""
        mean, log_variance = output.chunk(2, dim=1)
        return cls(mean, 0.5 * log_variance.clamp(*_LOG_VARIANCE))

    def draw(self, eps: Tensor) -> Tensor:
        """Return codes ``mu + s eps`` (Kingma & Welling 2014, section 2.4)."""
        return self.mean + self.log_std.exp() * eps

    def kl(self) -> Tensor:
        """Return ``KL(q || N(0, 1))`` of each entry of the codes, nats, float64 ``(B, *code_shape)``."""
        return gaussian_kl(wide(self.mean).square(), 2.0 * wide(self.log_std))

    def entropy(self) -> Tensor:
        """Return the entropy, nats, float64 ``(B,)``."""
        return sum_features(wide(self.log_std) + 0.5 * (1.0 + LOG_2PI))

    def log_prob(self, eps: Tensor) -> Tensor:
        """Return the log-density at ``mu + s eps``, nats, float64 ``(B,)``."""
        return -sum_features(0.5 * (wide(eps).square() + LOG_2PI) + wide(self.log_std))


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    """Return which entries of the codes are in use: those whose mean varies over the data (Burda et al. 2016).

    Args:
        means: means of the posteriors of many items, ``(n, *code_shape)``.
        threshold: variance over the items above which an entry counts.

    >>> sdediff.latent.active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    tensor([False,  True])
    """
    return torch.var(means.double(), dim=0, correction=0) > threshold
