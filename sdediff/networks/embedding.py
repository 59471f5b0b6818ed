"""Features of the conditioning scalar and of the conditions of an item."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Sines and cosines of a scalar at geometrically spaced frequencies (Vaswani et al. 2017; Tancik et al. 2020).

    Args:
        features: even number of outputs.
        low: lowest angular frequency; ``pi / 20`` is one half turn over a log-SNR range of 20.
        high: highest angular frequency.
    """

    def __init__(self, features: int, low: float = math.pi / 20.0, high: float = 4.0) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"the number of Fourier features must be even and positive, not {features}")
        self.count, self.low, self.high = features // 2, low, high

    def forward(self, scalar: Tensor) -> Tensor:
        """Map ``(B,)`` to ``(B, features)``.

        Raises:
            ValueError: for a level as a whole, of the conditioning ``"level"``.
        """
        if not isinstance(scalar, Tensor):
            raise ValueError(
                f"this network takes a number of each noise level, as of the conditioning 'logsnr' or 'time', not a "
                f"{type(scalar).__name__}"
            )
        exponents = torch.linspace(0.0, 1.0, self.count, dtype=scalar.dtype, device=scalar.device)
        phase = scalar[:, None] * self.low * (self.high / self.low) ** exponents
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class Embedding(nn.Sequential):
    """Embed the conditioning ``(B,)`` as ``(B, features)``: Fourier features through a two-layer perceptron.

    The features are made in the precision of the scalar, then put into that of the weights.
    """

    def __init__(self, features: int) -> None:
        super().__init__(
            FourierFeatures(features),
            nn.Linear(features, features),
            nn.SiLU(),
            nn.Linear(features, features),
            nn.SiLU(),
        )

    def forward(self, scalar: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map ``(B,)``, and an embedded condition ``(B, features)`` added before the last layer, to ``(B, features)``.

        As in ADM (Dhariwal & Nichol 2021), so that the noise level and the condition act together.
        """
        features, first, activation, second, last = self
        hidden: Tensor = second(activation(first(features(scalar).to(first.weight.dtype))))
        result: Tensor = last(hidden if condition is None else hidden + condition)
        return result


class ConditionEmbedding(nn.Module):
    """Embed a label and a vector of each item, with null values for classifier-free guidance (Ho & Salimans 2022).

    Args:
        width: features of the embedding.
        classes: number of labels, 0 to ``classes - 1``; ``classes`` itself is the null label. ``None`` for no labels.
        features: number of features of the vector, ``None`` for no vector.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, width: int, classes: int | None, features: int | None) -> None:
        super().__init__()
        if min(1 if classes is None else classes, 1 if features is None else features) < 1:
            raise ValueError(f"classes and features must be positive or none, not {classes} and {features}")
        self.table = None if classes is None else nn.Embedding(classes + 1, width)
        self.project = None if features is None else nn.Linear(features, width)

    def forward(self, count: int, label: Tensor | None, vector: Tensor | None) -> Tensor | None:
        """Return the embedded conditions ``(B, width)``; ``None`` where there is nothing to embed.

        Args:
            count: number of items.
            label: integers ``(B,)``; the null label if left out.
            vector: ``(B, features)``; rows with a NaN are null, as all are if left out.

        Raises:
            ValueError: for conditions that the network was not built for, or of another kind, shape or range.
        """
        embedded: Tensor | None = None
        if self.table is not None:
            null = self.table.num_embeddings - 1
            known = self._labels(label, count, null) if label is not None else None
            place = self.table.weight.device
            embedded = self.table(torch.full((count,), null, device=place) if known is None else known)
        elif label is not None:
            raise ValueError("the network was built without classes and takes no label: build it with classes=")
        if self.project is not None and vector is not None:
            if vector.shape != (count, self.project.in_features):
                raise ValueError(
                    f"the condition vector has shape ({count}, {self.project.in_features}), not {tuple(vector.shape)}"
                )
            absent = vector.isnan().any(dim=1, keepdim=True)
            projected = self.project(torch.where(absent, 0.0, vector)).masked_fill(absent, 0.0)
            embedded = projected if embedded is None else embedded + projected
        elif vector is not None:
            raise ValueError("the network was built without features and takes no vector: build it with features=")
        return embedded

    @staticmethod
    def _labels(label: Tensor, count: int, null: int) -> Tensor:
        """Return checked labels; their range is read on the CPU alone, elsewhere it would wait for the device."""
        whole = not (label.is_floating_point() or label.is_complex() or label.dtype == torch.bool)
        if label.shape != (count,) or not whole:
            raise ValueError(
                f"labels are whole numbers, one an item: ({count},), not {tuple(label.shape)} of {label.dtype}"
            )
        if label.device.type == "cpu" and not torch.compiler.is_compiling() and count:
            low, high = int(label.min()), int(label.max())
            if low < 0 or high > null:
                raise ValueError(f"labels are 0 to {null - 1}, or {null} for none; came {low} to {high}")
        return label.long()
