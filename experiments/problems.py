"""The exact-score problems that benchmarks share.

``digits-mixture``: a ten-component mixture fitted to the 8x8 digits (64-D), covariances shrunk to 0.9 S + 0.1 v I.
``smoothed-digits``: 500 digits, each with std 0.05 (nearly singular). ``ring``: 8 Gaussians of std 0.1 on a circle.
``power-law-images``: 8 components on 12x12 pixels whose correlations are those of photographs, a spectrum 1/k^2.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

from sdediff.analytic import GaussianMixture as Exact


def digits() -> np.ndarray:
    """All 1,797 scans in [-1, 1], float64 ``(1797, 64)``."""
    return load_digits().data / 8.0 - 1.0


@cache
def digits_mixture(components: int = 10) -> Exact:
    fitted = GaussianMixture(components, covariance_type="full", reg_covar=1e-3, random_state=0).fit(digits())
    spherical = np.trace(fitted.covariances_, axis1=1, axis2=2)[:, None, None] / 64.0 * np.eye(64)
    covariances = 0.9 * fitted.covariances_ + 0.1 * spherical
    return Exact(torch.from_numpy(fitted.means_), torch.from_numpy(covariances), torch.from_numpy(fitted.weights_))


@cache
def smoothed_digits(count: int = 500, std: float = 0.05) -> Exact:
    chosen = np.random.default_rng(0).choice(1797, size=count, replace=False)
    return Exact(torch.from_numpy(digits()[chosen]), std**2)


@cache
def ring(std: float = 0.1) -> Exact:
    angle = torch.arange(8, dtype=torch.float64) * (2.0 * torch.pi / 8.0)
    return Exact(torch.stack([angle.cos(), angle.sin()], dim=1), std**2)


@cache
def power_law_images(size: int = 12, components: int = 8) -> Exact:
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    k[0, 0] = 1.0 / size
    spectrum = 0.25 * k**-2.0 / np.mean(k**-2.0)
    waves = np.fft.fft2(np.eye(size**2).reshape(-1, size, size)).reshape(size**2, -1) / size
    covariance = (waves.conj().T * spectrum.ravel() @ waves).real
    normals = np.random.default_rng(0).standard_normal((components, size**2))
    means = normals @ np.linalg.cholesky(covariance).T
    within = 0.25 * covariance + 1e-4 * np.eye(size**2)
    return Exact(torch.from_numpy(means), torch.from_numpy(within).expand(components, -1, -1).clone())


PROBLEMS = {
    "digits-mixture": digits_mixture,
    "smoothed-digits": smoothed_digits,
    "ring": ring,
    "power-law-images": power_law_images,
}
