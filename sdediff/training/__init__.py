"""Training: ``train`` runs a configuration; ``TIME_LAWS`` and ``WEIGHTINGS`` are the tables of its objective."""

from sdediff.training.loop import TrainResult, train
from sdediff.training.objective import TIME_LAWS, WEIGHTINGS, Objective

__all__ = ["TIME_LAWS", "WEIGHTINGS", "Objective", "TrainResult", "train"]
