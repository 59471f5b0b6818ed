"""The record of a comparison of solvers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sdediff.frames import frame
from sdediff.types import brief

if TYPE_CHECKING:
    from sdediff.frames import DataFrame


class ComparisonRow(NamedTuple):
    """One solver at one cost.

    Attributes:
        solver: name of the solver.
        budget: number of forwards allowed; ``None`` for an adaptive solver.
        rtol: tolerance of an adaptive solver, else ``None``.
        steps: number of steps of its grid; ``None`` for an adaptive solver.
        nfe: number of forwards (for an adaptive solver a sample, on average over the batches).
        rms: root mean square, over starts and entries, of the distance from the reference; ``None`` for a stochastic
            solver, infinite where the solve is not finite.
        median: median over the starts of the root mean square over the entries.
        distance: energy distance of its samples from the reference's, a share in [0, 1]; the estimate is unbiased and
            may therefore be negative.
        distance_error: standard error of the distance.
    """

    solver: str
    budget: int | None
    rtol: float | None
    steps: int | None
    nfe: float
    rms: float | None
    median: float | None
    distance: float
    distance_error: float


class ReferenceSolve(NamedTuple):
    """The reference solve.

    Attributes:
        rtol: tolerance of the solve.
        nfe: number of forwards a sample.
        rms: estimated root mean square error: the distance from a solve at ten times the tolerance that ends the ODE at
            ``2 t_min`` instead of ``t_min``.
        median: median over the starts of that error.
    """

    rtol: float
    nfe: float
    rms: float
    median: float


class Comparison(NamedTuple):
    """The result of :func:`compare`.

    Attributes:
        rows: rows of the solvers in the order asked for, each by rising cost.
        reference: reference solve.
        starts: number of starts.

    >>> sdediff.Comparison._fields
    ('rows', 'reference', 'starts')
    """

    rows: tuple[ComparisonRow, ...]
    reference: ReferenceSolve
    starts: int

    def __repr__(self) -> str:
        """Show shapes and means."""
        return brief(self)

    def to_frame(self) -> DataFrame:
        """Return the rows as a table of pandas.

        Raises:
            ValueError: if pandas is not installed.
        """
        return frame(row._asdict() for row in self.rows)
