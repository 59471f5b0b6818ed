"""Turns one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from sdediff.bases.base import Basis, Matrix
from sdediff.bases.blocks import Blocks
from sdediff.bases.cosine import Cosine
from sdediff.tables import subtable

_TURNS: dict[str, type[Basis]] = {"matrix": Matrix, "cosine": Cosine, "blocks": Blocks}


@dataclass(frozen=True, eq=False, repr=False)
class Chain(Basis):
    """Turns one after another: each is of the coordinates that those before it give.

    Attributes:
        parts: the turns, none of them a chain.
    """

    parts: tuple[Basis, ...]

    def rotate(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part.rotate(x)
        return x

    def rotate_back(self, x: Tensor) -> Tensor:
        for part in reversed(self.parts):
            x = part.rotate_back(x)
        return x

    def check(self, shape: Sequence[int]) -> None:
        for part in self.parts:
            part.check(shape)

    def to(self, x: Tensor) -> Self:
        return type(self)(tuple(part.to(x) for part in self.parts))

    def tensors(self) -> dict[str, Tensor]:
        names = {kind: name for name, kind in _TURNS.items()}
        return {
            f"{i}.{names[type(part)]}.{name}": value
            for i, part in enumerate(self.parts)
            for name, value in part.tensors().items()
        }

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tuple(_read_parts(tensors)))


def _read_parts(tensors: Mapping[str, Tensor]) -> Iterator[Basis]:
    numbers = {name.partition(".")[0] for name in tensors}
    for i in range(len(numbers)):
        own = subtable(tensors, f"{i}.")
        kinds = {name.partition(".")[0] for name in own}
        if len(kinds) != 1 or not kinds <= _TURNS.keys():
            raise ValueError(f"part {i} of the basis is none of: {', '.join(_TURNS)}")
        (kind,) = kinds
        yield _TURNS[kind].read(subtable(own, f"{kind}."))
