"""The description of data in a model's file, validated before anything of it is used."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from sdediff.data.units import check_units
from sdediff.documents import Finite, Section
from sdediff.types import DataInfo

MOST_ENTRIES = 1 << 28
"""Largest number of entries in an item."""


def _sensible(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > MOST_ENTRIES:
        raise ValueError(f"an item of shape {shape} has more than {MOST_ENTRIES} entries")
    return shape


class Data(Section):
    """The description of the data, :class:`~sdediff.types.DataInfo`."""

    shape: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=8), AfterValidator(_sensible)
    ]
    levels: Annotated[int, Field(ge=2, le=1 << 32)] | None
    low: Finite
    high: Finite
    name: Annotated[str, Field(max_length=4096)]
    shift: tuple[Finite, ...] | None = None  # older files have neither
    scale: tuple[Finite, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_units(self.info())
        return self

    def info(self) -> DataInfo:
        """Return the description as a :class:`~sdediff.types.DataInfo`."""
        return DataInfo(**self.model_dump())


def data_entries(info: DataInfo) -> dict[str, Any]:
    """Return the description of data as JSON values, without the shift and the scale where there are none."""
    return {key: value for key, value in info._asdict().items() if value is not None or key == "levels"}
