"""Training: ``train`` runs a configuration; its objective is of ``TIME_LAWS``, ``WEIGHTINGS`` and ``OBJECTIVES``."""

from sdediff.training.loop import TrainResult, train
from sdediff.training.objective import OBJECTIVES, Objective
from sdediff.training.time_laws import TIME_LAWS
from sdediff.training.weightings import WEIGHTINGS

__all__ = ["OBJECTIVES", "TIME_LAWS", "WEIGHTINGS", "Objective", "TrainResult", "train"]
