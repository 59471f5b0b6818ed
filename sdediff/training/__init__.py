"""Training: ``train`` runs a configuration; its tables are of levels, weightings, objectives and schedules."""

from sdediff.training.folder import TrainingWarning
from sdediff.training.loop import TrainResult
from sdediff.training.objective import OBJECTIVES, Objective
from sdediff.training.run import train
from sdediff.training.schedules import SCHEDULES
from sdediff.training.time_laws import TIME_LAWS
from sdediff.training.weightings import WEIGHTINGS

__all__ = [
    "OBJECTIVES",
    "SCHEDULES",
    "TIME_LAWS",
    "WEIGHTINGS",
    "Objective",
    "TrainResult",
    "TrainingWarning",
    "train",
]
