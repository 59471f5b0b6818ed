"""sdediff: DDPM chains as variance-preserving SDEs; samplers, deterministic encoding and likelihood on top.

The public names are these; see the README for an example.
"""

from sdediff import analytic
from sdediff.checkpoint import load, save
from sdediff.denoiser import Clip, Denoiser, ScoreModel, Threshold
from sdediff.grids import GRIDS
from sdediff.likelihood import BitsPerDim, Elbo, LogLikelihood, bits_per_dim, elbo, log_likelihood
from sdediff.moments import Moments
from sdediff.noise import BrownianPath, NoiseSource
from sdediff.predictions import PREDICTIONS
from sdediff.samplers import SAMPLERS
from sdediff.sde import DDPM, SDE, SDES, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
from sdediff.solve import sample, solve
from sdediff.transport import decode, encode, interpolate
from sdediff.types import DataInfo, Level, Solution, Split

__version__ = "0.1.0"

__all__ = [
    "DDPM",
    "GRIDS",
    "PREDICTIONS",
    "SAMPLERS",
    "SDE",
    "SDES",
    "VESDE",
    "VPSDE",
    "BitsPerDim",
    "BrownianPath",
    "Clip",
    "CosineVPSDE",
    "DataInfo",
    "Denoiser",
    "Elbo",
    "Level",
    "LogLikelihood",
    "Moments",
    "NoiseSource",
    "RectifiedFlow",
    "ScoreModel",
    "Solution",
    "Split",
    "SubVPSDE",
    "Threshold",
    "analytic",
    "bits_per_dim",
    "decode",
    "elbo",
    "encode",
    "interpolate",
    "load",
    "log_likelihood",
    "sample",
    "save",
    "solve",
]
