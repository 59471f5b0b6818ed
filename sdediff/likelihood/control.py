r"""What a Gaussian denoiser would cost: a control variate whose mean is known.

If the data were ``N(m, C)`` with variances c along the basis of C, the best guess of the noise in
``alpha x0 + sigma eps`` would err, along each direction and with ``gamma = (alpha / sigma)^2``, by

    eps - eps_G = k eps - s z,    k = c gamma / (1 + c gamma),    s = sqrt(gamma) / (1 + c gamma),    z = x0 - m

Over the noise its square has the mean ``k^2 + s^2 z^2``, whose integral over the half log-SNR lambda is
``1/2 [log(1 + c gamma) + (1 + gamma z^2) / (1 + c gamma)]`` where ``c > 0``. A real denoiser sees the same noise and
errs much alike, above all near the data, where neither can tell noise from data and both err by all of it: the
difference of the two errors is small, and what is taken away is given back exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdediff.moments import Moments
from sdediff.numerics import flatten


class GaussianErrors:
    """The errors of the Gaussian denoiser at a batch of items.

    Args:
        x0: the items, ``(B, *shape)``.
        moments: of the Gaussian.
    """

    def __init__(self, x0: Tensor, moments: Moments) -> None:
        self._basis = None if moments.basis is None else moments.basis.to(x0.device, torch.float64)
        self._variances = moments.variances.to(x0.device, torch.float64)
        self._z = self._turn(x0.double() - moments.mean.to(x0.device, torch.float64))

    @classmethod
    def none(cls, x0: Tensor) -> GaussianErrors:
        """No control: each item its own mean, without variance, which a denoiser guesses without error."""
        errors = cls(x0, Moments.zero(x0.shape[1:]))
        errors._z = torch.zeros_like(errors._z)
        return errors

    @property
    def device(self) -> torch.device:
        """Where the errors are."""
        return self._z.device

    def _turn(self, x: Tensor) -> Tensor:
        flat = flatten(x).double()
        return flat if self._basis is None else flat @ self._basis

    def drawn(self, eps: Tensor, half_log_snr: float | Tensor) -> Tensor:
        """``|eps - eps_G|^2`` with the noise ``eps`` ``(B, *shape)`` at one level or one a sample: float64 ``(B,)``."""
        lam = torch.as_tensor(half_log_snr, dtype=torch.float64, device=eps.device).reshape(-1, 1)
        return (self._keep(lam) * self._turn(eps) - self._shrink(lam) * self._z).square().sum(dim=1)

    def mean(self, half_log_snr: Tensor) -> Tensor:
        """Its mean over the noise at levels ``(L,)``: float64 ``(L, B)``."""
        lam = half_log_snr.to(self._z.device).reshape(-1, 1)
        keep = self._keep(lam).square().sum(dim=1, keepdim=True)
        return keep + self._shrink(lam).square() @ self._z.square().T

    def integral(self, half_log_snr: Tensor) -> Tensor:
        """The mean's integral over lambda between neighbours of ``(S + 1,)``, from large to small: ``(S, B)``."""
        lam = half_log_snr.to(self._z.device).reshape(-1, 1)
        keep, shrink = self._keep(lam), self._shrink(lam)
        # With gamma = e^(2 lambda): d keep^2 = d/2 [log(1 + c gamma) - keep], d shrink^2 = d/2 [gamma / (1 + c gamma)]
        own = (torch.log1p(self._variances * torch.exp(2.0 * lam)) - keep).sum(dim=1, keepdim=True)
        primitive = 0.5 * (own + (torch.exp(lam) * shrink) @ self._z.square().T)
        return -primitive.diff(dim=0)

    def _keep(self, lam: Tensor) -> Tensor:
        """``k``, ``(L, D)``."""
        gain = self._variances * torch.exp(2.0 * lam)
        return gain / (1.0 + gain)

    def _shrink(self, lam: Tensor) -> Tensor:
        """``s``, ``(L, D)``."""
        return torch.exp(lam) / (1.0 + self._variances * torch.exp(2.0 * lam))


def unit_moments(moments: Moments | None, shape: tuple[int, ...]) -> Moments:
    """The data's moments where they are known, else those of data of mean 0 and variance 1."""
    if moments is not None:
        return moments
    zero = Moments.zero(shape)
    return Moments(zero.mean, zero.variances + 1.0)
