"""The exact problems that tests share: every process, and data whose law is known at every noise level."""

from __future__ import annotations

import torch

from sdediff import DDPM, SDE, VESDE, VPSDE, CosineVPSDE, ExponentialVESDE, RectifiedFlow, SubVPSDE
from sdediff.analytic import Gaussian, GaussianMixture


def random_betas(steps: int) -> torch.Tensor:
    """Betas without any pattern, with the total noise of the usual chain."""
    rng = torch.Generator().manual_seed(steps)
    rates = torch.empty(steps, dtype=torch.float64).exponential_(generator=rng)
    return -torch.expm1(-10.0 * rates / rates.sum())


PROCESSES: dict[str, SDE] = {
    "vp": VPSDE(),
    "cosine": CosineVPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "ve-exponential": ExponentialVESDE(),
    "flow": RectifiedFlow(),
    "ddpm": DDPM.linear(1000),
    "ddpm-cosine": DDPM.cosine(1000),
    "ddpm-random": DDPM(random_betas(50)),
}
"""One of each kind; the tests below run over all of them."""

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

MIXTURE_1D = GaussianMixture(((-1.0,), (0.8,)), (0.09, 0.16), (0.4, 0.6))
"""Two modes on a line, for densities on a grid."""
