"""Models in two stages: codes of the data, and a score model whose data are the codes.

The verbs of the library take such a model like a denoiser: they sample, encode, decode or interpolate the codes, and
the first stage stands between codes and data. Codes are in the coordinates of the prior.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdediff.score_model import ScoreModel
from sdediff.types import DataInfo


class Staged(nn.Module, ABC):
    """A model of data by codes and their law.

    Attributes:
        data: shape, levels, range and units of the data.
    """

    data: DataInfo

    @property
    @abstractmethod
    def prior(self) -> ScoreModel:
        """The law of the codes, a score model that knows their shape.

        Raises:
            ValueError: if the codes have no law.
        """

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of the codes of an item."""
        info = self.prior.data
        assert info is not None  # of every prior
        return tuple(info.shape)

    @abstractmethod
    def to_codes(self, x: Tensor) -> Tensor:
        """Return the codes ``(B, *code_shape)`` of data ``(B, *shape)``, floats in their units or levels."""

    @abstractmethod
    def from_codes(self, z: Tensor) -> Tensor:
        """Return the means of the data ``(B, *shape)``, floats in their units, of codes ``(B, *code_shape)``."""

    @abstractmethod
    def bound(self, x: Tensor, **options: Any) -> Any:
        """Return the variational bound of data; see :func:`sdediff.latent.elbo`."""

    def check_shape(self, item: Sequence[int]) -> None:
        """Refuse the shape of an item that is not the model's.

        Raises:
            ValueError: naming both shapes.
        """
        if tuple(item) != tuple(self.data.shape):
            raise ValueError(f"the model's items have shape {tuple(self.data.shape)}, not {tuple(item)}")

    def decoded(self, z: Tensor, batch_size: int | None = None) -> Tensor:
        """Return the data of codes, some items at a time; of several states of a reversible solve, those of the first.

        Args:
            z: codes ``(B, *code_shape)`` or states ``(B, k, *code_shape)``.
            batch_size: number of items at a time; all by default.
        """
        codes = z if tuple(z.shape[1:]) == self.code_shape else z[:, 0]
        size = len(codes) if batch_size is None else batch_size
        parts = [codes[first : first + size] for first in range(0, len(codes), size)]
        return torch.cat([self.from_codes(part) for part in parts])
