"""Items as features: the choice of a feature space, and its application in batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.numerics import all_finite, choose, widest
from sdediff.quality.features import FEATURES, FeatureFunction, default_features
from sdediff.quality.scripted import SUFFIXES, Scripted
from sdediff.types import DataInfo

AUTO = "auto"

Features = str | Path | Scripted | FeatureFunction
"""A name of ``FEATURES``, ``"auto"``, a TorchScript file, alone or with what its network takes, or a function from
items ``(B, *shape)`` to ``(B, D)``."""


class Space(NamedTuple):
    """A feature space: its name, for the output, and its function on items as floats."""

    name: str
    function: FeatureFunction


def choose_space(features: Features, data: Tensor, info: DataInfo, device: torch.device) -> Space:
    """Return a feature space.

    Args:
        features: see ``Features``.
        data: items of the data ``(m, *shape)``.
        info: levels or range of the data, for networks that take bytes.
        device: device of a network in a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown name or a file that is no TorchScript.
    """
    if callable(features):
        return Space(getattr(features, "__name__", type(features).__name__), features)
    if isinstance(features, Path) or (isinstance(features, str) and Path(features).suffix.lower() in SUFFIXES):
        features = Scripted(Path(features))
    if isinstance(features, Scripted):
        return Space(f"network of {features.path.name}", features.load(_to_bytes(data, info), device))
    table = {AUTO: None, **FEATURES}
    if features not in table:
        raise ValueError(
            f"unknown features {ascii(features)[:80]}; choose one of: {', '.join(table)}, or a TorchScript file "
            f"({', '.join(SUFFIXES)})"
        )
    name = default_features(tuple(data.shape[1:])) if features == AUTO else features
    make = choose(FEATURES, name, "features")
    words = " ".join((make.__doc__ or "").partition("\n")[0].removeprefix("Return ").rstrip(".").split())
    return Space(f"{name} ({words})", make(data))


def _to_bytes(data: Tensor, info: DataInfo) -> Callable[[Tensor], Tensor]:
    """Return a function from items to ``uint8``: levels by their place among all, floats by that in the range."""
    levels = not data.is_floating_point()
    low, high = (0.0, float((info.levels or 256) - 1)) if levels else (info.low, info.high)
    return lambda x: ((x - low) * (255.0 / (high - low))).clamp(0.0, 255.0).round().to(torch.uint8)


@torch.no_grad()
def embed(space: Space, items: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """Return the features of items, float64 ``(n, D)`` on the CPU.

    Raises:
        ValueError: if the features are not one finite row an item.
    """
    parts = []
    for start in range(0, len(items), batch_size):
        part = items[start : start + batch_size]
        wide = part if part.dtype == widest(device) else part.float()
        features = space.function(wide.to(device))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(part):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features must be a tensor ({len(part)}, D), one row an item, not {shape}")
        parts.append(features.cpu().double())
    found = torch.cat(parts)
    if not all_finite(found):
        raise ValueError(f"the features hold NaN or infinite numbers: {space.name}")
    return found
