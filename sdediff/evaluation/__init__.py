"""Likelihoods of whole data sets: batches sized to memory, several processes, interruption and resumption."""

from sdediff.evaluation.baselines import BASELINES, Baseline, fit_mixture
from sdediff.evaluation.dataset import Evaluation, evaluate, mean_and_error, order
from sdediff.evaluation.methods import LIKELIHOOD_METHODS, LikelihoodMethod, unit
from sdediff.evaluation.processes import Processes
from sdediff.evaluation.resume import PartialResults, ResumeError, identity
from sdediff.evaluation.roc import Auroc, auroc, auroc_difference

__all__ = [
    "BASELINES",
    "LIKELIHOOD_METHODS",
    "Auroc",
    "Baseline",
    "Evaluation",
    "LikelihoodMethod",
    "PartialResults",
    "Processes",
    "ResumeError",
    "auroc",
    "auroc_difference",
    "evaluate",
    "fit_mixture",
    "identity",
    "mean_and_error",
    "order",
    "unit",
]
