"""Training: ``train`` runs a configuration; ``TIME_LAWS``, ``WEIGHTINGS`` and ``SCHEDULES`` are its tables."""

from sdediff.training.folder import TrainingWarning
from sdediff.training.loop import TrainResult, train
from sdediff.training.objective import TIME_LAWS, WEIGHTINGS, Objective
from sdediff.training.schedules import SCHEDULES

__all__ = ["SCHEDULES", "TIME_LAWS", "WEIGHTINGS", "Objective", "TrainResult", "TrainingWarning", "train"]
