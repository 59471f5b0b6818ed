"""The results of likelihoods: their records, and the parts of their errors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import scipy
import torch
from torch import Tensor

from sdediff.files import json_value
from sdediff.frames import frame
from sdediff.numerics import error_of_mean, wide
from sdediff.types import UndefinedError, brief

if TYPE_CHECKING:
    from sdediff.frames import DataFrame

ERROR, EFFECT = "error_", "effect_"
"""Prefixes of columns of standard errors, and of signed effects of approximations."""

PROBED_PARTS = ("quadrature",)
"""Systematic parts that are differences of divergences, and noisy where the trace is random."""

PATH_PARTS = ("solver", "quadrature")
"""Systematic parts that more steps reduce."""

_REMEDIES = {
    "t_min": "the data are narrower than the noise of the first level, whose density is reported",
    "prior": "the process ends too far from its prior: give it more noise, or its data's moments",
}
"""Remedies against parts of the error; against the other parts it is more steps."""


@dataclass(frozen=True, eq=False)
class ErrorBudget:
    """The parts of the error of every item's log-likelihood.

    Attributes:
        random: standard errors of random draws, nats ``(B,)`` each, independent between items: they average out.
        systematic: signed effects of approximations, nats ``(B,)`` each: they do not average out.
        noise: standard errors of systematic effects that are estimated by random probes, nats ``(B,)`` each.
        of_mean: further standard errors of the mean over the items, nats, such as that of a sample of a population.
        values: numbers whose errors these are, nats ``(B,)``; empty where they are not available.
        scale: number of nats of one ``unit``.
        unit: unit of the table, ``"nats"`` or ``"bits/dim"``.
    """

    random: Mapping[str, Tensor]
    systematic: Mapping[str, Tensor]
    noise: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    of_mean: Mapping[str, float] = field(default_factory=dict)
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    scale: float = 1.0
    unit: str = "nats"

    __repr__ = brief

    @property
    def parts(self) -> dict[str, Tensor]:
        """Random and systematic parts, nats ``(B,)`` each."""
        return {**self.random, **self.systematic}

    def noisy(self, name: str) -> bool:
        """Tell whether a systematic part is estimated by random probes and mostly their noise."""
        return name in PROBED_PARTS and _rms(self.random.get("probes", torch.zeros(1))) > 0.0

    def beyond_noise(self, name: str) -> Tensor:
        """Return the size of a systematic part, nats ``(B,)``; of a noisy one the excess over three standard errors."""
        effect = self.systematic[name]
        if not self.noisy(name):
            return effect.abs()
        error = self.noise.get(name, torch.full_like(effect, math.inf))
        return (effect.square() - (3.0 * error).square()).clamp(min=0.0).sqrt()

    def systematic_size(self) -> Tensor:
        """Return the size of the systematic error, nats ``(B,)``: the solver's part twice, the other parts once."""
        sizes = [self.beyond_noise(name) * (2.0 if name == "solver" else 1.0) for name in self.systematic]
        return sum(sizes, torch.zeros(()))

    @property
    def warning(self) -> str:
        """Warning of numbers without meaning, whose systematic error exceeds them or is not finite; empty for none.

        A density has no natural zero: its errors are compared with 1 nat where its value is smaller.
        """
        effects = [wide(part).abs() for name, part in self.systematic.items() if not self.noisy(name)]
        if not effects or not len(self.values):
            return ""
        size = torch.stack(effects).sum(dim=0)
        lost = int((~(size <= wide(self.values).abs().clamp(min=1.0))).sum())
        if lost == 0:
            return ""
        worst = max(self.systematic, key=lambda name: _rms(self.systematic[name]))
        return (
            f"{lost} of {len(size)} items mean nothing: their systematic error, most of it {worst}, exceeds their "
            f"value; {_REMEDIES.get(worst, 'take more steps')}"
        )

    def check_path(self, dim: int) -> None:
        """Refuse numbers most of which mean nothing: the error of the path exceeds each, and 1 nat a dimension.

        Raises:
            FloatingPointError: naming the cure.
        """
        path = {name: self.beyond_noise(name) for name in PATH_PARTS if name in self.systematic}
        size = wide(sum(path.values(), torch.zeros(())))
        lost = int((~(size <= wide(self.values).abs().clamp(min=dim))).sum())
        if 2 * lost > len(self.values):
            raise FloatingPointError(
                f"{lost} of {len(self.values)} likelihoods mean nothing: the stated error of their path, "
                f"{float(size.median()) / self.scale:.2g} {self.unit} in the median, exceeds their value; take more "
                "steps (none given means 40 and more as needed), or, in Python, end below the noise that nothing "
                "crosses by t_to="
            )

    def columns(self) -> dict[str, Tensor]:
        """Return the parts in ``unit``, ``(B,)`` each, as ``error_NAME`` if random, else ``effect_NAME``."""
        named = {ERROR: self.random, EFFECT: self.systematic}
        return {f"{prefix}{name}": x / self.scale for prefix, parts in named.items() for name, x in parts.items()}

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return every part in ``unit``: the root mean square over items, ``item``, and the effect on their ``mean``.

        For effects that are estimated by probes both are the size of the mean beyond its noise.
        """
        rows = {}
        for name, values in self.random.items():
            rms = _rms(values)
            rows[name] = {"item": rms / self.scale, "mean": rms / math.sqrt(len(values)) / self.scale}
        for name, values in self.systematic.items():
            size, mean = (
                (_beyond_noise(values),) * 2 if self.noisy(name) else (_rms(values), float(wide(values).mean()))
            )
            rows[name] = {"item": size / self.scale, "mean": mean / self.scale}
        for name, value in self.of_mean.items():
            rows[name] = {"item": math.nan, "mean": value / self.scale}
        return rows

    def __str__(self) -> str:
        """Return a table with one line a part, signed effects with their sign, and the warning if there is one."""
        lines = [f"{'error, ' + self.unit:24s} {'an item (RMS)':>14s} {'the mean':>12s}"]
        for name, row in self.to_dict().items():
            item = "" if math.isnan(row["item"]) else f"{row['item']:.1e}"
            mean = f"{row['mean']:+.1e}" if name in self.systematic else f"{row['mean']:.1e}"
            lines.append(f"{name:24s} {item:>14s} {mean:>12s}")
        return "\n".join([*lines, self.warning] if self.warning else lines)


def _rms(values: Tensor) -> float:
    return float(wide(values).square().mean().sqrt())


def _beyond_noise(values: Tensor) -> float:
    """Return the size of the mean of noisy effects beyond its noise."""
    values = wide(values)
    noise = values.var() / len(values) if len(values) > 1 else values.square().mean()
    return float((values.mean().square() - noise).clamp(min=0.0).sqrt())


class Result(ABC):
    """The likelihood of a batch of items: a frozen dataclass with its errors and its cost."""

    nfe: int

    @abstractmethod
    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends of the items' confidence intervals, ``(B,)`` each.

        Raises:
            ValueError: unless ``0 < confidence < 1``.
        """

    @abstractmethod
    def columns(self) -> dict[str, Tensor]:
        """Return the figures of the items by name, ``(B,)`` each: the value first, then its errors and their parts."""

    def to_frame(self) -> DataFrame:
        """Return a table of pandas with a row an item, of :meth:`columns`.

        Raises:
            ValueError: if pandas is not installed.
        """
        return frame(self.columns())

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in JSON's types: tensors as lists, the budget by its parts, NaN and infinity as null."""
        return {field.name: in_json(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


class BoundResult(Result):
    """The bound on ``-log p`` of a batch of items, nats ``(B,)``, as its mean and in bits a dimension."""

    total: Tensor
    dim: int
    discrete: bool

    @property
    def mean(self) -> float:
        """Mean of ``total`` over the items, nats."""
        return float(self.total.mean())

    @property
    def mean_standard_error(self) -> float:
        """Standard error of ``mean`` as an estimate for the data's population; NaN for a single item.

        It follows from the variance over the items, which includes that of their draws, independent between items.
        """
        return error_of_mean(self.total)

    @property
    def bits_per_dim(self) -> Tensor:
        """Bound in bits a dimension, for integer data, ``(B,)``.

        Raises:
            ValueError: for continuous data, whose density has units.
        """
        if not self.discrete:
            raise UndefinedError("bits/dim exist for integer data only; continuous data have total, in nats")
        return self.total / (math.log(2.0) * self.dim)


def in_json(value: Any) -> Any:
    """Return a field of a result in JSON's types."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().tolist()
    elif isinstance(value, ErrorBudget):
        value = value.to_dict()
    return json_value(value)


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that is not between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"the confidence must lie between 0 and 1, not {confidence}")


def normal_quantile(confidence: float) -> float:
    """Return the half-width of an interval of the standard normal distribution with this confidence."""
    check_confidence(confidence)
    return math.sqrt(2.0) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))


def student_quantile(confidence: float, degrees: Tensor) -> Tensor:
    """Return the half-widths of intervals of Student's distributions by their degrees of freedom, float64 ``(B,)``."""
    check_confidence(confidence)
    return torch.as_tensor(scipy.special.stdtrit(degrees.cpu().numpy(), 0.5 * (1.0 + confidence)), dtype=torch.float64)


@dataclass(frozen=True)
class LogLikelihood(Result):
    """The log-likelihoods of a batch.

    Attributes:
        log_prob: log-densities of continuous data, in their units, nats, float64 ``(B,)``; of integer data the
            log-probability by one dequantisation, in the mean a lower bound.
        standard_error: standard errors of the probes, nats ``(B,)``; 0 for the exact trace.
        latent: states at ``t_to``, ``(B, *shape)``, in the model's coordinates.
        nfe: forwards of the network, each for value and divergence.
        products: vector-Jacobian products of all items together.
        error_budget: parts of the error; its ``str()`` is a table.
        discrete: whether the data were integers.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.log_likelihood(model, torch.tensor([[2.0, 0.0]]), steps=20).nfe
    21
    """

    log_prob: Tensor
    standard_error: Tensor
    latent: Tensor
    nfe: int
    products: int
    error_budget: ErrorBudget
    discrete: bool = False

    __repr__ = brief

    @property
    def bits_per_dim(self) -> Tensor:
        """Bits a dimension of integer data, ``(B,)``; smaller is better.

        Raises:
            ValueError: for continuous data, whose density has units.
        """
        if not self.discrete:
            raise UndefinedError("bits/dim exist for integer data only; continuous data have log_prob, in nats")
        return -self.log_prob / (math.log(2.0) * self.latent[0].numel())

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends of the items' confidence intervals, nats ``(B,)`` each.

        The probes' standard error gives the stated coverage. The systematic parts are estimates of a size
        (:meth:`ErrorBudget.systematic_size`), which is added to the standard error in quadrature.
        """
        half = normal_quantile(confidence) * torch.hypot(self.standard_error, self.error_budget.systematic_size())
        return self.log_prob - half, self.log_prob + half

    def columns(self) -> dict[str, Tensor]:
        """Return ``log_prob``, ``standard_error`` and the parts of the error, nats ``(B,)`` each."""
        return {"log_prob": self.log_prob, "standard_error": self.standard_error, **self.error_budget.columns()}
