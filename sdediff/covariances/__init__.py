"""Estimates of covariances ``U diag(v) U^T`` from items of data: diagonal, whole, or structured."""

from __future__ import annotations

from collections.abc import Callable

from sdediff.covariances.items import Covariance, Items
from sdediff.covariances.plain import diagonal, full
from sdediff.covariances.structured import structured

FULL_UP_TO = 1024
"""Dimensions up to which the covariance is estimated whole."""


def automatic(items: Items, shrink: bool) -> Covariance:
    """Estimate the whole covariance up to ``FULL_UP_TO`` dimensions, a structured one beyond."""
    return (full if items.dim <= FULL_UP_TO else structured)(items, shrink)


COVARIANCES: dict[str, Callable[[Items, bool], Covariance]] = {
    "auto": automatic,
    "full": full,
    "structured": structured,
    "diagonal": diagonal,
}
"""Estimators by name: functions of the items, and of whether to shrink what few items cannot tell."""
