r"""Laws of the data given a code, ``p(x | z)``: what a decoder's outputs mean. ``OBSERVATIONS`` is the list.

A decoder returns :meth:`Observation.outputs` tensors like the data, side by side along the channels, in the model's
units. Continuous data have a Gaussian density. Integers have the mass that a Gaussian or a logistic law puts on
their bin, the outermost levels all that lies beyond (Ho et al. 2020, eq. 13; Salimans et al. 2017, eq. 2), a Bernoulli
law for two levels (Kingma & Welling 2014, appendix C.1), or a probability for each of a few levels.

A standard deviation is fixed, or learned: one for all entries, whose optimum is the root mean square error of the
reconstructions (Rybkin et al. 2021), or an output of the decoder for each entry.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdediff.data.levels import bin_width, level_count, plain, to_values
from sdediff.likelihood.discrete.decoder import log_discretised_gaussian, log_gaussian
from sdediff.numerics import choose, log1mexp, sum_features
from sdediff.types import DataInfo

_LOG_STD = (-7.0, 5.0)
"""Bounds of learned log standard deviations, in the model's units: data on a surface would have a density without
bound."""
FEW_LEVELS = 32
"""Largest number of levels for which every level has a probability of its own by default."""


class Observation(nn.Module, ABC):
    """A law of the data given the outputs of a decoder.

    Attributes:
        integers: whether it is a law of integer levels, not of continuous values.
        config: parameters that build it again.
    """

    integers: ClassVar[bool]
    config: dict[str, Any]

    @abstractmethod
    def outputs(self, info: DataInfo) -> int:
        """Return the number of a decoder's outputs for each entry.

        Raises:
            ValueError: if the law does not suit the data.
        """

    @abstractmethod
    def log_prob(self, x: Tensor, outputs: Tensor, info: DataInfo) -> Tensor:
        """Return the log-probability or log-density of items, nats ``(B,)``.

        Args:
            x: levels ``(B, *shape)`` or, for continuous laws, values in the model's units.
            outputs: outputs of the decoder, ``(B, outputs, *shape)``.
            info: description of the data.
        """

    @abstractmethod
    def mean(self, outputs: Tensor, info: DataInfo) -> Tensor:
        """Return the mean of the data in the model's units, ``(B, *shape)``, of outputs ``(B, outputs, *shape)``."""


class _LocationScale(Observation):
    """A law with a location, the decoder's first output, and a standard deviation.

    Args:
        std: the standard deviation in the model's units; learned by default.
        entrywise: whether each entry has one of its own, the decoder's second output.

    Raises:
        ValueError: for a standard deviation that is not positive, or is both given and learned.
    """

    def __init__(self, std: float | None = None, entrywise: bool = False) -> None:
        super().__init__()
        if std is not None and (entrywise or not 0.0 < std < math.inf):
            raise ValueError(f"a fixed standard deviation is positive and one for all entries, not {std}")
        self.config = {"std": std, "entrywise": entrywise}
        self.fixed, self.entrywise = std, entrywise
        self.log_std = nn.Parameter(torch.zeros(())) if std is None and not entrywise else None

    def outputs(self, info: DataInfo) -> int:
        if self.integers:
            level_count(info)
        return 2 if self.entrywise else 1

    def mean(self, outputs: Tensor, info: DataInfo) -> Tensor:
        return outputs[:, 0]

    def std(self, outputs: Tensor) -> Tensor:
        """Return the standard deviation, ``()`` or ``(B, *shape)``."""
        if self.fixed is not None:
            return outputs.new_tensor(self.fixed)
        log_std = outputs[:, 1] if self.log_std is None else self.log_std.to(outputs)
        return log_std.clamp(*_LOG_STD).exp()


class GaussianObservation(_LocationScale):
    """The Gaussian density of continuous data; of dequantised data where they are levels."""

    integers = False

    def log_prob(self, x: Tensor, outputs: Tensor, info: DataInfo) -> Tensor:
        return log_gaussian(x, outputs[:, 0], self.std(outputs))


class DiscretisedGaussian(_LocationScale):
    """The mass of a Gaussian on the bin of each level."""

    integers = True

    def log_prob(self, x: Tensor, outputs: Tensor, info: DataInfo) -> Tensor:
        return log_discretised_gaussian(x, outputs[:, 0], self.std(outputs), info)


class DiscretisedLogistic(_LocationScale):
    """The mass of a logistic law on the bin of each level."""

    integers = True

    def log_prob(self, x: Tensor, outputs: Tensor, info: DataInfo) -> Tensor:
        scale = self.std(outputs).double() * (math.sqrt(3.0) / math.pi)
        offset = (to_values(x, info, dtype=torch.float64) - outputs[:, 0].double()) / scale
        half, levels = 0.5 * bin_width(info) / scale, plain(x)
        below = torch.where(levels <= 0, -math.inf, offset - half)
        above = torch.where(levels >= level_count(info) - 1, math.inf, offset + half)
        # F(b) - F(a) = F(b) F(-a) (1 - exp(a - b)) for F(a) = 1 / (1 + exp(-a)): no difference of near-equals
        return sum_features(functional.logsigmoid(above) + functional.logsigmoid(-below) + log1mexp(below - above))


class Bernoulli(Observation):
    """The law of two levels by the log-odds of the upper one."""

    integers = True

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def outputs(self, info: DataInfo) -> int:
        if info.levels != 2:
            raise ValueError(f"a Bernoulli law is for data of 2 levels, not {info.levels or 'continuous ones'}")
        return 1

    def log_prob(self, x: Tensor, outputs: Tensor, info: DataInfo) -> Tensor:
        sign = 2.0 * plain(x).to(outputs.dtype) - 1.0
        return sum_features(functional.logsigmoid(sign * outputs[:, 0]))

    def mean(self, outputs: Tensor, info: DataInfo) -> Tensor:
        return info.low + (info.high - info.low) * torch.sigmoid(outputs[:, 0])


class Categorical(Observation):
    """A probability for each level, by its logit."""

    integers = True

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def outputs(self, info: DataInfo) -> int:
        return level_count(info)

    def log_prob(self, x: Tensor, outputs: Tensor, info: DataInfo) -> Tensor:
        log_probs = torch.log_softmax(outputs, dim=1)
        return sum_features(log_probs.gather(1, plain(x).long()[:, None])[:, 0])

    def mean(self, outputs: Tensor, info: DataInfo) -> Tensor:
        values = torch.linspace(info.low, info.high, level_count(info), dtype=outputs.dtype, device=outputs.device)
        return torch.einsum("bk...,k->b...", torch.softmax(outputs, dim=1), values)


OBSERVATIONS: dict[str, type[Observation]] = {
    "gaussian": GaussianObservation,
    "discretised-gaussian": DiscretisedGaussian,
    "discretised-logistic": DiscretisedLogistic,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
}
"""Laws of the data given a code, by name."""


def make_observation(name: str, info: DataInfo, **parameters: Any) -> Observation:
    """Return a law by its name, for data that it suits.

    Args:
        name: a name of ``OBSERVATIONS``, or ``"auto"``: a Gaussian with one learned variance for continuous data; for
            integers a Bernoulli law of 2 levels, a categorical one of up to 32, beyond a discretised logistic one with
            a variance for each entry.
        info: description of the data.
        **parameters: parameters of the law.

    Raises:
        ValueError: for an unknown name, or a law that does not suit the data.

    >>> sdediff.latent.make_observation("auto", sdediff.DataInfo((1, 8, 8), levels=17)).outputs(
    ...     sdediff.DataInfo((1, 8, 8), levels=17)
    ... )
    17
    """
    if name == "auto":
        if info.levels is None:
            name = "gaussian"
        elif info.levels == 2:
            name = "bernoulli"
        elif info.levels <= FEW_LEVELS:
            name = "categorical"
        else:
            name, parameters = "discretised-logistic", {"entrywise": True, **parameters}
    observation = choose(OBSERVATIONS, name, "observation")(**parameters)
    observation.outputs(info)  # which refuses data that it does not suit
    return observation
