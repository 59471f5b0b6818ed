"""A whole data set scored: in batches sized to memory, in several processes, stopped and gone on with at will."""

from sdediff.evaluation.dataset import Evaluation, evaluate, mean_and_error, order
from sdediff.evaluation.methods import METHODS, Method, unit
from sdediff.evaluation.processes import Processes
from sdediff.evaluation.resume import PartialResults, ResumeError, identity

__all__ = [
    "METHODS",
    "Evaluation",
    "Method",
    "PartialResults",
    "Processes",
    "ResumeError",
    "evaluate",
    "identity",
    "mean_and_error",
    "order",
    "unit",
]
