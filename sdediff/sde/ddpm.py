r"""The DDPM chain as an SDE, exactly.

Put ``log alpha(i/N) = 1/2 sum_{j<=i} log(1 - beta_j)``, linear in between: a VP-SDE with piecewise constant rate
``beta(t) = -N log(1 - beta_i)``. Its transition over one step has ratio ``sqrt(1 - beta_i)`` and variance ``beta_i``,
so the chain of Ho et al. (2020, eq. 2) is this SDE watched at the instants ``t = i/N``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdediff.numerics import softplus
from sdediff.sde.base import SDE
from sdediff.sde.vp import CosineVPSDE, VariancePreserving, check_linear_beta

_MOST_SHOWN = 8
_MAX_BETA = 0.999  # Nichol & Dhariwal 2021: a last step of beta = 1 would leave no signal at all
_DARK_BETA = 0.9999  # above every cap, and below what a last step that leaves no signal has
_MOST_STEPS = 1_000_000
_DARKEST = 1e-14  # alpha-bar where a chain's is 0: the process needs a log-SNR, and 1e-7 of signal is below float32


def _double_double_cumsum(values: Iterable[float]) -> tuple[list[float], list[float]]:
    """Return running sums as unevaluated pairs ``high + low`` (Knuth's two-sum), starting with 0."""
    high, low = [0.0], [0.0]
    for value in values:
        total = high[-1] + value
        shadow = total - high[-1]
        error = (high[-1] - (total - shadow)) + (value - shadow) + low[-1]
        high.append(total + error)
        low.append(error - (high[-1] - total))
    return high, low


@dataclass(frozen=True)
class DDPM(VariancePreserving):
    """The discrete chain with transition variances ``betas``.

    Args:
        betas: ``beta_1 .. beta_N``, each in (0, 1): floats, a tensor or an array. The last may be 1, as in schedules of
            zero terminal SNR (Lin et al. 2024); it then leaves 1e-14 of the signal's variance, or a hundredth of what
            is left before, which a float32 state cannot tell from none. What such a network predicts must say
            something about the data there: v or the sample, not epsilon.

    Raises:
        ValueError: if there are none or more than a million, or one is outside (0, 1) or not finite.

    >>> sdediff.DDPM.linear(1000).betas[-1]
    0.02
    """

    betas: tuple[float, ...]

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        try:
            values = torch.as_tensor(betas, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"betas must be a list of numbers, not {betas!r:.80}") from None
        if values.ndim != 1 or values.numel() == 0:
            raise ValueError(f"betas must be a non-empty list of numbers, not shape {tuple(values.shape)}")
        _check_steps(len(values))
        if float(values[-1]) == 1.0 and bool((values[:-1] < 1.0).all()):
            before = float(torch.log1p(-values[:-1]).sum().exp())
            values = torch.cat([values[:-1], 1.0 - values.new_tensor([min(_DARKEST / max(before, _DARKEST), 1e-2)])])
        if not bool(((values > 0.0) & (values < 1.0)).all()):
            raise ValueError(
                f"betas must lie in (0, 1), the last may be 1; came {float(values.min()):g} to {float(values.max()):g}"
            )
        object.__setattr__(self, "betas", tuple(values.tolist()))

    def __repr__(self) -> str:
        """Show all betas of a short chain, the first and last of a long one."""
        shown = [f"{beta:.6g}" for beta in self.betas]
        if self.steps > _MOST_SHOWN:
            shown[2:-1] = ["..."]
        return f"DDPM(betas=({', '.join(shown)}), steps={self.steps})"

    @classmethod
    def linear(cls, steps: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> DDPM:
        """Return the chain of linear betas from ``beta_min / N`` to ``beta_max / N``; Ho et al. have 1e-4 to 0.02.

        The scaling with N keeps the total noise, so that N -> infinity is ``VPSDE(beta_min, beta_max)``. For very
        short chains betas are capped at 0.999.
        """
        check_linear_beta(beta_min, beta_max)
        _check_steps(steps)
        start = beta_min if steps > 1 else beta_max  # a single step goes all the way
        betas = torch.linspace(start, beta_max, steps, dtype=torch.float64) / steps
        return cls(betas.clamp(max=_MAX_BETA))

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008) -> DDPM:
        """Return the cosine chain of Nichol & Dhariwal (2021), betas capped at 0.999."""
        _check_steps(steps)
        process = CosineVPSDE(s)
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        betas = process._transition_variance(times[:-1], times[1:])
        return cls(betas.clamp(max=_MAX_BETA))

    def zero_terminal_snr(self) -> DDPM:
        """Return the chain with its alphas shifted to end at 0 and scaled to keep the first (Lin et al. 2024, alg. 1).

        Networks that predict v or the sample are trained and sampled on all of it, those that predict epsilon up to the
        instant before the last.

        Raises:
            ValueError: for a chain of one step, which has no end besides its start.

        >>> float(sdediff.DDPM.linear(1000).zero_terminal_snr().alpha(1.0))  # 0 but for a share below float32's
        1e-07
        """
        if self.steps < 2:
            raise ValueError("a chain of 1 step cannot keep its first alpha and end at 0: it needs at least 2")
        drops = -self._table[0][:-1].exp() * torch.expm1(self._slope)
        left = drops.flip(0).cumsum(0).flip(0)  # alpha - alpha_N, as a sum of positive terms
        share = (drops / left)[1:]
        return DDPM((self.betas[0], *(share * (2.0 - share)).tolist()))

    @property
    def steps(self) -> int:
        """N, the length of the chain."""
        return len(self.betas)

    @property
    def instants(self) -> Tensor:
        """The chain's instants ``i/N``, i = 0..N, float64."""
        return torch.arange(self.steps + 1, dtype=torch.float64) / self.steps

    @property
    def t_signal(self) -> float:
        """1, or the instant before the last if the last step leaves no signal, as no schedule of capped betas does."""
        return 1.0 if self.betas[-1] <= _DARK_BETA else 1.0 - 1.0 / self.steps

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        # Differences of high + low keep full relative precision where plain running sums lose it.
        high, low = _double_double_cumsum(0.5 * math.log1p(-beta) for beta in self.betas)
        return torch.tensor(high, dtype=torch.float64), torch.tensor(low, dtype=torch.float64)

    @cached_property
    def _slope(self) -> Tensor:
        return 0.5 * torch.log1p(-torch.tensor(self.betas, dtype=torch.float64))

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index of the step that contains ``t``, and the fraction of the step before ``t``."""
        position = t * self.steps
        nearest = position.round()
        position = torch.where((position - nearest).abs() < 1e-9, nearest, position)  # instants are exact
        index = position.floor().long().clamp(0, self.steps - 1)
        return index, position - index

    def _beta(self, t: Tensor) -> Tensor:
        index, passed = self._locate(t)
        index = torch.where(passed == 0.0, index - 1, index).clamp(min=0)  # at an instant, of the step that ends there
        return -2.0 * self.steps * self._slope.to(t.device)[index]

    def _log_alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha_step(torch.zeros_like(t), t)

    def _log_alpha_step(self, s: Tensor, t: Tensor) -> Tensor:
        high, low = (part.to(t.device) for part in self._table)
        slope = self._slope.to(t.device)
        (i, before), (j, passed) = self._locate(s), self._locate(t)
        return (high[j] - high[i]) + (low[j] - low[i]) + (passed * slope[j] - before * slope[i])

    def _time(self, half_log_snr: Tensor) -> Tensor:
        log_alpha = -0.5 * softplus(-2.0 * half_log_snr)
        high = self._table[0].to(log_alpha.device)
        index = (torch.searchsorted(-high, -log_alpha.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        fraction = (log_alpha - high[index]) / self._slope.to(log_alpha.device)[index]
        return (index + fraction) / self.steps


SDE.chain = DDPM


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= _MOST_STEPS:
        raise ValueError(f"a chain has at least 1 step and at most {_MOST_STEPS:,}, not {steps}")
