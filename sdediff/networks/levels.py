r"""The last layer for data of few integer levels, with the known part of the posterior mean in closed form.

A dequantised entry is ``x0 = c_k + u`` with a level k and ``u`` uniform over one bin. Given the noisy
``y = cos x0 + sin eps`` and the level, ``x0`` is a normal truncated to the bin. With ``z = (x0 - y / cos) cos / sin``:

    E[eps | y] = - sum_k P(k | y) g_k,     g_k = E[z | bin k] = (phi(a_k) - phi(b_k)) / (Phi(b_k) - Phi(a_k)),
    P(k | y)  proportional to  exp(logit_k) (Phi(b_k) - Phi(a_k)),

where ``a_k, b_k`` are the edges of the bin in units of z. The network supplies the logits, the information in the other
entries about this one. The sharp edges of the bins, which a smooth network cannot represent, are exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sdediff.numerics import LOG_2PI, expand, log1mexp

_FAR = -5.0  # beyond it phi / Phi is below 1e-11, and erfcx overflows
_NARROW = 0.05  # bins below this width (in standard deviations of the noise) by their series: no cancellation


def bin_moments(lower: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probability and mean of a standard normal in the bins ``[lower, lower + width]``, elementwise."""
    narrow = width < _NARROW
    middle = lower + 0.5 * width
    square = torch.where(narrow, middle, 0.0).square()
    width2 = width.square() / 24.0
    series_mass = torch.log(width) - 0.5 * (square + LOG_2PI) + (square - 1.0) * width2
    series_mean = middle * (1.0 - 2.0 * width2)
    # By symmetry work in the left tail, where log_ndtr is exact.
    a = torch.where(narrow, -1.0, lower)
    b = torch.where(narrow, 1.0, lower + width)
    flip = a + b > 0.0
    low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    mass = log_high + log1mexp(log_low - log_high)
    # (phi(low) - phi(high)) / (Phi(high) - Phi(low)) in ratios that neither overflow nor cancel in the tail
    hazard = math.sqrt(2.0 / math.pi) / torch.special.erfcx((-high / math.sqrt(2.0)).clamp(min=_FAR))
    mean = hazard * torch.expm1(0.5 * (high - low) * (high + low)) / -torch.expm1(log_low - log_high)
    return torch.where(narrow, series_mass, mass), torch.where(narrow, series_mean, torch.where(flip, -mean, mean))


class LevelHead(nn.Module):
    """Layer from logits over the levels to the velocity ``v = cos eps - sin x0`` of the exact posterior mean.

    Args:
        levels: number of levels K.
        low: value of level 0.
        high: value of level ``K - 1``.
    """

    def __init__(self, levels: int, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"data of levels need at least 2 of them, not {levels}")
        if not low < high:
            raise ValueError(f"levels need low < high, not {low} and {high}")
        self.num_levels, self.low, self.delta = levels, low, (high - low) / (levels - 1)

    def forward(self, logits: Tensor, y: Tensor, half_log_snr: Tensor) -> Tensor:
        """Map logits ``(B, K * C, ...)``, states ``(B, C, ...)`` of the variance-preserving frame, lambda ``(B,)``."""
        logits = logits.reshape(y.shape[0], self.num_levels, *y.shape[1:])
        noise_to_signal = torch.exp(-half_log_snr).reshape(-1, *(1,) * y.ndim)
        sin, cos = (expand(torch.sigmoid(sign * 2.0 * half_log_snr).sqrt(), y) for sign in (-1.0, 1.0))
        index = torch.arange(self.num_levels, dtype=y.dtype, device=y.device)
        edges = self.low + (index - 0.5) * self.delta
        lower = (edges.reshape(1, -1, *(1,) * (y.ndim - 1)) - (y / cos).unsqueeze(1)) / noise_to_signal
        mass, mean = bin_moments(lower, self.delta / noise_to_signal)
        mean_z = (torch.softmax(logits + mass, dim=1) * mean).sum(dim=1)
        result: Tensor = -(mean_z + sin * y) / cos
        return result


class Levelled(nn.Module):
    """A network with the exact layer on top: its outputs are the logits of the levels.

    Args:
        network: callable ``network(x, half_log_snr, ...)``, to ``(B, levels * C, ...)`` for states ``(B, C, ...)``.
        levels: the number of levels.
        low: the value of level 0.
        high: the value of the highest level.
    """

    def __init__(self, network: nn.Module, levels: int, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.head = LevelHead(levels, low, high)
        self.config = {"levels": levels, "low": low, "high": high}

    def forward(self, x: Tensor, half_log_snr: Tensor, *condition: Tensor, **named: Tensor) -> Tensor:
        """Map states ``(B, C, ...)`` in the variance-preserving frame and lambda ``(B,)`` to the velocity."""
        result: Tensor = self.head(self.network(x, half_log_snr, *condition, **named), x, half_log_snr)
        return result
