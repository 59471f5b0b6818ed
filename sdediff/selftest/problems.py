"""The exact problems: data whose law is known at every level of noise."""

from __future__ import annotations

import torch
from torch import Tensor

from sdediff.analytic import Gaussian, GaussianMixture
from sdediff.score_model import ScoreModel
from sdediff.sde import SDE

GAUSSIAN = Gaussian((0.7, -0.4), torch.tensor([[1.3, 0.5], [0.5, 0.4]], dtype=torch.float64))
"""Correlated, away from the origin: on it every linear method is affine in the start and its normals."""

MIXTURE = GaussianMixture(
    ((-1.0, 0.2), (1.0, 0.5), (0.2, -1.1)),
    torch.tensor(
        [[[0.20, 0.05], [0.05, 0.12]], [[0.15, -0.06], [-0.06, 0.25]], [[0.30, 0.0], [0.0, 0.10]]], dtype=torch.float64
    ),
    (0.5, 0.3, 0.2),
)
"""Three unlike components that overlap: no symmetry hides an error term."""

SKEW = GaussianMixture(
    ((-1.0, 0.0, 0.5), (1.0, 0.3, -0.2)),
    torch.tensor(
        [
            [[1.0, 0.4, -0.2], [0.4, 0.5, 0.1], [-0.2, 0.1, 0.3]],
            [[0.3, 0.0, 0.1], [0.0, 0.9, 0.3], [0.1, 0.3, 0.6]],
        ],
        dtype=torch.float64,
    ),
    (2.0, 1.0),
)
"""In three dimensions, for in two a basis of eigenvectors may equal its transpose."""

_CENTRES, _VARIANCES, _SHARES = (-1.0, 0.8), (0.09, 0.16), (0.4, 0.6)

MIXTURE_1D = GaussianMixture([[centre] for centre in _CENTRES], _VARIANCES, _SHARES)
"""Two modes on a line, for densities on a grid."""


def share_below(x: Tensor) -> Tensor:
    """Return the distribution function of ``MIXTURE_1D`` at points ``(n, 1)``, float64 ``(n,)``."""
    centres, variances, shares = (torch.tensor(v, dtype=torch.float64) for v in (_CENTRES, _VARIANCES, _SHARES))
    parts: Tensor = torch.special.ndtr((x.double() - centres) / variances.sqrt())
    return parts @ shares


LINE = Gaussian((0.5,), 0.5)
"""A Gaussian on a line, for quadrature."""


class WithoutMoments(Gaussian):
    """Data whose model does not know their moments: with them some methods are exact, and have no order to measure."""

    def model(self, sde: SDE) -> ScoreModel:
        """Return the exact model, without moments."""
        return super().model(sde).with_moments(None)


BLIND = WithoutMoments(GAUSSIAN.means[0], GAUSSIAN.covariance)
"""``GAUSSIAN`` without its moments."""


def _rough_mixture() -> GaussianMixture:
    """Return three components in 12 dimensions whose axes and sizes have no pattern."""
    rng = torch.Generator().manual_seed(5)
    roots = torch.randn(3, 12, 12, generator=rng, dtype=torch.float64)
    covariances = 0.03 * roots @ roots.mT + 0.05 * torch.eye(12, dtype=torch.float64)
    return GaussianMixture(torch.randn(3, 12, generator=rng, dtype=torch.float64), covariances)


ROUGH = _rough_mixture()
"""Data of more dimensions than a trace is exact in at a small cost."""
