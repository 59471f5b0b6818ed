"""Solvers for one model: learned by :func:`tune`, or chosen among the known ones by :func:`choose`.

Learned ones are written to the model's run by :func:`save` and read from it by :func:`load`; choices, which are made
again where there is none to read, by :func:`save_choice` and :func:`load_choice`.
"""

from sdediff.evaluation.distances import Errors
from sdediff.samplers.candidates import Choice
from sdediff.samplers.chosen import Chosen
from sdediff.tuning.choice_store import CHOICES_FILE, load_choice, save_choice
from sdediff.tuning.choices import ForIntervals, choose
from sdediff.tuning.store import FILE, load, save, tuned_setting
from sdediff.tuning.tuner import Trajectories, Tuning, pilot, tune

__all__ = [
    "CHOICES_FILE",
    "FILE",
    "Choice",
    "Chosen",
    "Errors",
    "ForIntervals",
    "Trajectories",
    "Tuning",
    "choose",
    "load",
    "load_choice",
    "pilot",
    "save",
    "save_choice",
    "tune",
    "tuned_setting",
]
