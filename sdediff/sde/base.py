r"""Forward processes: linear Gaussian SDEs ``dx = f(t) x dt + g(t) dW``.

Everything follows from two functions of time, ``log alpha`` and ``log sigma``:

    x_t | x_0  ~  N(alpha_t x_0, sigma_t^2 I)
    x_t | x_s  ~  N((alpha_t / alpha_s) x_s, sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)       (s < t)
    x_s | x_t, x_0  ~  N(alpha_s x_0 + exp(lambda_t - lambda_s) sigma_s eps, -expm1(2 (lambda_t - lambda_s)) sigma_s^2)

with lambda = log(alpha / sigma). Scalars are float64 and no two near-equal numbers are subtracted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sdediff.gaussian import Moments
from sdediff.noise import NoiseSource
from sdediff.numerics import as_float64, expand, softplus
from sdediff.types import Level, Time

_SLACK = 1e-12  # rounding of a time that a caller computed


class SDE(ABC):
    """A forward process on ``[t_min, t_max]``.

    A subclass is a frozen dataclass and supplies the five methods that begin with an underscore; they may assume
    float64 tensors inside the domain. ``t_min`` and ``t_max`` bound what solvers cross by default. The exact ends
    ``t = 0`` (the data: sigma = 0 in every process) and ``t = 1`` are always allowed; any other time outside the
    interval is a ``ValueError``.

    >>> sde = sdediff.VPSDE()
    >>> (sde.alpha(0.5) ** 2 + sde.sigma(0.5) ** 2).round(decimals=6)
    tensor(1., dtype=torch.float64)
    """

    t_min: ClassVar[float] = 1e-5
    t_max: ClassVar[float] = 1.0

    chain: ClassVar[Callable[[Sequence[float]], SDE]]
    """Constructor of the discrete chain from its betas: :class:`~sdediff.sde.ddpm.DDPM`, which sets it."""

    @abstractmethod
    def _log_alpha(self, t: Tensor) -> Tensor:
        """Return the log of the signal coefficient."""

    @abstractmethod
    def _log_sigma(self, t: Tensor) -> Tensor:
        """Return the log of the noise standard deviation."""

    @abstractmethod
    def _time(self, half_log_snr: Tensor) -> Tensor:
        """Return the time of a half log-SNR: the inverse of ``half_log_snr``."""

    @abstractmethod
    def _drift_rate(self, t: Tensor) -> Tensor:
        """Return the textbook ``f(t) = d log alpha / dt``."""

    @abstractmethod
    def _diffusion(self, t: Tensor) -> Tensor:
        """Return the textbook ``g(t)``, with ``g^2 = -2 sigma^2 d lambda / dt``."""

    def _half_log_snr_step(self, s: Tensor, t: Tensor) -> Tensor:
        """Return ``lambda_t - lambda_s``; a process overrides it where it can avoid the cancellation."""
        return (self._log_alpha(t) - self._log_alpha(s)) - (self._log_sigma(t) - self._log_sigma(s))

    def _log_alpha_step(self, s: Tensor, t: Tensor) -> Tensor:
        """Return ``log(alpha_t / alpha_s)``."""
        return self._log_alpha(t) - self._log_alpha(s)

    def _transition_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the variance of ``x_t | x_s``."""
        step = torch.where(s == 0.0, -math.inf, self._half_log_snr_step(torch.where(s == 0.0, t, s), t))
        return -torch.expm1(2.0 * step) * torch.exp(2.0 * self._log_sigma(t))

    # ---- derived once ----------------------------------------------------------------------------------------

    def _domain(self, t: Time) -> Tensor:
        """Return ``t`` as float64; refuse times outside the domain."""
        t64 = as_float64(t)
        inside = (t64 >= self.t_min - _SLACK) & (t64 <= self.t_max + _SLACK)
        if not bool((inside | (t64 == 0.0) | (t64 == 1.0)).all()):
            low, high = float(t64.min()), float(t64.max())
            came = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            raise ValueError(
                f"time {came} is outside [{self.t_min:g}, {self.t_max:g}] of {type(self).__name__} "
                "(besides it, exactly 0 and 1 are allowed)"
            )
        return torch.where(inside, t64.clamp(self.t_min, self.t_max), t64)

    def _log_sigma_from_zero(self, t: Tensor) -> Tensor:
        """Return ``_log_sigma`` of a time in the domain, with sigma = 0 at ``t = 0`` in every process."""
        return torch.where(t == 0.0, -math.inf, self._log_sigma(torch.where(t == 0.0, self.t_max, t)))

    def log_alpha(self, t: Time) -> Tensor:
        """Return the log of the signal coefficient, float64, shape of ``t``."""
        return self._log_alpha(self._domain(t))

    def log_sigma(self, t: Time) -> Tensor:
        """Return the log of the noise standard deviation, float64, shape of ``t``; ``-inf`` at ``t = 0``."""
        return self._log_sigma_from_zero(self._domain(t))

    @property
    def t_data(self) -> float:
        """The time of the data's end in likelihoods: ``t_min``, or a chain's first instant, the least in training."""
        return self.t_min if self.instants is None else float(self.instants[1])

    @property
    def t_signal(self) -> float:
        """The last time with signal: ``t_max``, or the instant before the end of a chain of zero terminal SNR."""
        return self.t_max

    def alpha(self, t: Time) -> Tensor:
        """Return the signal coefficient, float64, shape of ``t``."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        """Return the noise standard deviation, float64, shape of ``t``."""
        return self.log_sigma(t).exp()

    def half_log_snr(self, t: Time) -> Tensor:
        """Return ``lambda = log(alpha / sigma)``, float64, which falls from large (data) to small (noise)."""
        t = self._domain(t)
        return self._log_alpha(t) - self._log_sigma_from_zero(t)

    def time(self, half_log_snr: Time) -> Tensor:
        """Return the time of a half log-SNR, float64: the inverse of :meth:`half_log_snr`."""
        return self._time(as_float64(half_log_snr))

    def level(self, t: Time) -> Level:
        """Return the :class:`Level` at ``t``, of float64 tensors with the shape of ``t``."""
        t = self._domain(t)
        log_alpha, log_sigma = self._log_alpha(t), self._log_sigma_from_zero(t)
        alpha, sigma = log_alpha.exp(), log_sigma.exp()
        return Level(t, alpha, sigma, log_alpha - log_sigma, torch.hypot(alpha, sigma), torch.atan2(sigma, alpha))

    def levels(self, times: Tensor | Sequence[float]) -> list[Level[float]]:
        """Return the levels of a grid of times ``(N + 1,)`` as plain floats, ready for a solver's loop."""
        fields: list[Tensor] = [as_float64(f) for f in self.level(torch.as_tensor(times, dtype=torch.float64))]
        return [Level(*row) for row in zip(*(field.tolist() for field in fields), strict=True)]

    def level_at(self, half_log_snr: Time) -> Level:
        """Return the level with a given half log-SNR, the nearest one where it is out of reach."""
        t = self.time(half_log_snr)
        return self.level(t.clamp(self.t_min, self.t_max))

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return the drift ``f(t) x``, shape of ``x``."""
        return expand(self._drift_rate(self._domain(t)), x) * x

    def diffusion(self, t: Time) -> Tensor:
        """Return ``g(t)``, float64, shape of ``t``."""
        return self._diffusion(self._domain(t))

    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Return the mean (shape of ``x0``) and standard deviation (shape of ``t``) of ``x_t | x_0``."""
        return expand(self.alpha(t), x0) * x0, self.sigma(t)

    def transition(self, x_s: Tensor, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of ``x_t | x_s``, ``s <= t`` (Kingma et al. 2021, eq. 23).

        Raises:
            ValueError: if ``s > t`` or either is outside the domain.
        """
        s, t = self._ordered(s, t)
        # No time passes between equal times, not even at the ends, where the formulas have 0 / 0.
        ratio = torch.where(s == t, 1.0, self._log_alpha_step(s, t).exp())
        variance = torch.where(s == t, 0.0, self._transition_variance(s, t))
        return expand(ratio, x_s) * x_s, variance.sqrt()

    def bridge(self, x_t: Tensor, x0: Tensor, t: Time, s: Time) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of ``x_s | x_t, x_0``, ``s <= t`` (Ho et al. 2020, eq. 6-7, any step).

        Raises:
            ValueError: if ``s > t``, either is outside the domain, or the states differ in shape.
        """
        _same_shape(x_t, x0)
        s, t = self._ordered(s, t)
        log_sigma_s, log_sigma_t = self.log_sigma(s), self.log_sigma(t)
        variance_ratio = torch.exp(2.0 * (log_sigma_s - log_sigma_t))
        # Written with x_t in place of eps: (alpha_t / alpha_s) (sigma_s / sigma_t)^2 x_t + ... x0
        variance = self._transition_variance(s, t)
        from_x_t = self._log_alpha_step(s, t).exp() * variance_ratio
        from_x0 = self.alpha(s) * variance * torch.exp(-2.0 * log_sigma_t)
        from_x_t, from_x0 = torch.where(s == t, 1.0, from_x_t), torch.where(s == t, 0.0, from_x0)
        variance = torch.where(s == t, 0.0, variance * variance_ratio)
        mean = expand(from_x_t, x_t) * x_t + expand(from_x0, x_t) * x0
        return mean, variance.sqrt()

    def _ordered(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        s64, t64 = self._domain(s), self._domain(t)
        if bool((s64 > t64).any()):
            raise ValueError(f"s must not be after t (s is the less noisy time); came s = {s}, t = {t}")
        return s64, t64

    def perturb(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """Return ``alpha_t x0 + sigma_t eps``: a draw of ``x_t | x_0`` when ``eps`` is standard normal.

        Raises:
            ValueError: if ``t`` is outside the domain, or ``x0`` and ``eps`` differ in shape.
        """
        _same_shape(x0, eps)
        return self.level(t).perturb(x0, eps)

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        t: float | None = None,
        moments: Moments | None = None,
        noise: NoiseSource | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw states at ``t`` (default ``t_max``): ``N(0, sigma^2)``, or Gaussian with the data's ``moments``.

        Args:
            shape: ``(B, *shape)``.
            t: the time of the draw.
            moments: if given, the draw has mean ``alpha m`` and covariance ``alpha^2 C + sigma^2``.
            noise: source of the normals; by default made from ``seed``, ``dtype`` and ``device``.
            seed: sample k is a function of ``(seed, k)`` alone, whatever the batch.
            dtype: dtype of the state.
            device: device of the state.
        """
        noise = noise or NoiseSource(seed, shape, dtype=dtype, device=device)
        level = self.levels([self.t_max if t is None else t])[0]
        z = noise.normal(NoiseSource.START)
        return moments.sample(z, level) if moments is not None else z * level.sigma

    def prior_log_prob(self, x: Tensor, *, t: float | None = None, moments: Moments | None = None) -> Tensor:
        """Return the log-density (nats, ``(B,)``) of the law from which :meth:`prior_sample` draws."""
        level = self.levels([self.t_max if t is None else t])[0]
        return (moments or Moments.zero(x.shape[1:])).log_prob(x, level)

    @property
    def instants(self) -> Tensor | None:
        """The times, from 0 up, at which networks of a discrete chain are trained; ``None`` for all times."""
        return None

    def discretize(self, steps: int) -> SDE:
        """Return the :class:`~sdediff.sde.ddpm.DDPM` with this process's log-SNR at the instants ``t_max i / N``."""
        if steps < 1:
            raise ValueError(f"a chain needs at least 1 step, not {steps}")
        times = torch.linspace(0.0, self.t_max, steps + 1, dtype=torch.float64)[1:]
        times = times.clamp(max=self.t_max)
        if float(times[0]) < self.t_min:
            raise ValueError(f"{steps} steps put the first instant below t_min = {self.t_min:g}")
        log_cos = -0.5 * softplus(-2.0 * self.half_log_snr(times))
        return SDE.chain(tuple((-torch.expm1(2.0 * torch.diff(log_cos, prepend=log_cos.new_zeros(1)))).tolist()))


def _same_shape(x: Tensor, other: Tensor) -> None:
    if x.shape != other.shape:
        raise ValueError(f"both states must have one shape; came {tuple(x.shape)} and {tuple(other.shape)}")
