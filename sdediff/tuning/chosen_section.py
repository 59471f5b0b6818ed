"""Section of a document that holds a method on nodes of its own, :class:`~sdediff.samplers.chosen.Chosen`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sdediff.denoiser import Denoiser
from sdediff.documents import Finite, Section, shown
from sdediff.samplers.candidates import METHODS
from sdediff.samplers.chosen import Chosen

_MAX_NODES = 4097


class ChosenSection(Section):
    """A method of :data:`~sdediff.samplers.auto.METHODS` on its nodes."""

    method: str
    times: Annotated[tuple[Finite, ...], Field(min_length=2, max_length=_MAX_NODES)]
    free: bool

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method not in METHODS:
            raise ValueError(f"{shown(self.method)} is no method that is chosen from")
        widths = [there - here for here, there in pairwise(self.times)]
        if not (all(width > 0.0 for width in widths) or all(width < 0.0 for width in widths)):
            raise ValueError("the times must rise or fall throughout")
        if self.steps < 1:
            raise ValueError("at least one step must be the network's")
        return self

    @property
    def steps(self) -> int:
        """Number of forwards."""
        return len(self.times) - 1 - int(self.free)

    def sampler(self, model: Denoiser) -> Chosen:
        """Return the sampler.

        Raises:
            ValueError: if the model's process does not have these times.
        """
        model.sde.levels(self.times)  # refuses times outside the process
        return Chosen(METHODS[self.method], self.times, self.free)


def chosen_values(sampler: Chosen) -> dict[str, Any]:
    """Return the values of a sampler's section.

    Raises:
        ValueError: if the method is none of those that are chosen from.
    """
    method = next((name for name, method in METHODS.items() if method == sampler.method), None)
    if method is None:
        raise ValueError(f"only the methods that are chosen from can be kept, not {sampler.method}")
    return {"method": method, "times": sampler.times, "free": sampler.free}
