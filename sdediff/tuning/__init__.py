"""Solvers tuned for one model: found by :func:`tune`, kept in its run by :func:`save`, found there by :func:`load`."""

from sdediff.tuning.store import FILE, load, save
from sdediff.tuning.trajectories import Errors
from sdediff.tuning.tuner import Trajectories, Tuning, pilot, tune

__all__ = ["FILE", "Errors", "Trajectories", "Tuning", "load", "pilot", "save", "tune"]
