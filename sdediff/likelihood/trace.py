r"""What an integrator carries besides the state to know the integral of the divergence.

A trace has components of its own: their start, their rates along the path, how closely they are watched, and what
they say in the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.likelihood.divergence import Field, ProbeLaw, value_and_divergence, value_and_products
from sdediff.noise import NoiseSource
from sdediff.numerics import flatten

_STAGE = 3  # of the noise source: apart from the solvers' and the dequantisation's


def accumulator(x: Tensor) -> torch.dtype:
    """Densities are summed in float64, on devices that have it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


class Trace(ABC):
    """A way to integrate ``div v`` along a path."""

    @abstractmethod
    def start(self, y: Tensor) -> tuple[Tensor, ...]:
        """The components at the start, each ``(B, ...)``."""

    @abstractmethod
    def tolerances(self, atol: float, dim: int) -> tuple[float, ...]:
        """Absolute tolerance of each component, given that of the log-density a dimension."""

    @abstractmethod
    def rates(self, field: Field, y: Tensor) -> tuple[Tensor, ...]:
        """The field's value and each component's rate at ``y``; one forward."""

    @abstractmethod
    def finish(self, components: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The integral of ``div v`` and its standard error, each ``(B,)``."""


@dataclass(frozen=True)
class ExactTrace(Trace):
    """The exact divergence; one component, ``(B,)``."""

    def start(self, y: Tensor) -> tuple[Tensor, ...]:
        return (torch.zeros(len(y), dtype=accumulator(y), device=y.device),)

    def tolerances(self, atol: float, dim: int) -> tuple[float, ...]:
        return (atol * dim,)

    def rates(self, field: Field, y: Tensor) -> tuple[Tensor, ...]:
        value, divergence = value_and_divergence(field, y)
        return value, divergence.to(accumulator(y))

    def finish(self, components: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        (integral,) = components
        return integral, torch.zeros_like(integral)


@dataclass(frozen=True, eq=False)
class HutchinsonTrace(Trace):
    """Probes kept along the path, so that the integral is ``e . (A^T e)`` of one matrix A, the integral of J.

    The components are ``A^T e`` of every probe ``(B, K, D)``, unwatched, and the estimate ``(B,)``, watched.
    """

    probes: Tensor
    law: ProbeLaw

    @classmethod
    def draw(cls, law: ProbeLaw, count: int, noise: NoiseSource, first: int = 0) -> HutchinsonTrace:
        """``count`` probes a sample, numbers ``first, first + 1, ...`` of the source."""
        normals = torch.stack([flatten(noise.normal(first + k, stage=_STAGE)) for k in range(count)], dim=1)
        return cls(law.draw(normals), law)

    def start(self, y: Tensor) -> tuple[Tensor, ...]:
        dtype = accumulator(y)
        return torch.zeros_like(self.probes, dtype=dtype), torch.zeros(len(y), dtype=dtype, device=y.device)

    def tolerances(self, atol: float, dim: int) -> tuple[float, ...]:
        return torch.inf, atol * dim

    def rates(self, field: Field, y: Tensor) -> tuple[Tensor, ...]:
        value, products = value_and_products(field, y, self.probes)
        products = products.to(accumulator(y))
        return value, products, self._estimates(products).mean(dim=1)

    def finish(self, components: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        products, integral = components
        variance = self.law.variance(self.probes.to(products), products)
        return integral, (variance / self.probes.shape[1]).sqrt()

    def _estimates(self, products: Tensor) -> Tensor:
        """``(B, K)``."""
        return (self.probes.to(products) * products).sum(dim=2)
