"""Likelihoods of whole data sets: batches sized to memory, several processes, interruption and resumption."""

from sdediff.evaluation.dataset import Evaluation, evaluate, mean_and_error, order
from sdediff.evaluation.methods import LIKELIHOOD_METHODS, LikelihoodMethod, unit
from sdediff.evaluation.processes import Processes
from sdediff.evaluation.resume import PartialResults, ResumeError, identity

__all__ = [
    "LIKELIHOOD_METHODS",
    "Evaluation",
    "LikelihoodMethod",
    "PartialResults",
    "Processes",
    "ResumeError",
    "evaluate",
    "identity",
    "mean_and_error",
    "order",
    "unit",
]
