"""Solvers tuned for one model by :func:`tune`, written to its run by :func:`save`, read from it by :func:`load`."""

from sdediff.evaluation.distances import Errors
from sdediff.tuning.store import FILE, load, save
from sdediff.tuning.tuner import Trajectories, Tuning, pilot, tune

__all__ = ["FILE", "Errors", "Trajectories", "Tuning", "load", "pilot", "save", "tune"]
