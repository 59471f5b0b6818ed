"""Laws of codes, as a bound on the data's likelihood needs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.latent.posterior import Posterior
from sdediff.numerics import standard_normal_log_prob, wide


class CodeDensity(NamedTuple):
    """Log-densities of codes, with their errors.

    Attributes:
        log_prob: log-densities, or lower bounds, nats, float64 ``(B,)``.
        standard_error: standard errors of random probes or levels, nats ``(B,)``.
        systematic: signed systematic errors by name, nats ``(B,)`` each.
        nfe: forwards of the prior's network.
    """

    log_prob: Tensor
    standard_error: Tensor
    systematic: Mapping[str, Tensor]
    nfe: int


class CodeLaw(ABC):
    """The law of the codes in a bound."""

    exact: bool
    """Whether log-densities are exact, as the importance bound needs them."""

    def kl(self, posterior: Posterior) -> Tensor | None:
        """Return ``KL(q || p)`` in nats ``(B,)`` where it has a closed form, else ``None``."""
        return None

    @abstractmethod
    def log_prob(self, z: Tensor, seed: int, first: int, draw: int) -> CodeDensity:
        """Return the log-densities of codes ``(B, *code_shape)``.

        Args:
            z: codes.
            seed: seed of the random numbers.
            first: index of the first item.
            draw: number of the draw.
        """


class StandardNormal(CodeLaw):
    """The law ``N(0, I)``."""

    exact = True

    def kl(self, posterior: Posterior) -> Tensor | None:
        return posterior.kl().flatten(1).sum(dim=1)

    def log_prob(self, z: Tensor, seed: int, first: int, draw: int) -> CodeDensity:
        log_prob = standard_normal_log_prob(wide(z))
        return CodeDensity(log_prob, torch.zeros_like(log_prob), {}, 0)
