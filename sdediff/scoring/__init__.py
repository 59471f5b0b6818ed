"""A whole data set scored: in batches sized to memory, in several processes, stopped and gone on with at will."""

from sdediff.scoring.methods import METHODS, Method, unit
from sdediff.scoring.part import Part, PartError, identity
from sdediff.scoring.run import Scores, mean_and_error, order, score
from sdediff.scoring.workers import Workers

__all__ = [
    "METHODS",
    "Method",
    "Part",
    "PartError",
    "Scores",
    "Workers",
    "identity",
    "mean_and_error",
    "order",
    "score",
    "unit",
]
