"""sdediff: DDPM chains as variance-preserving SDEs; samplers, deterministic encoding and likelihood on top.

The public names are these; see the README for an example. They are imported when first asked for, so that the command
line answers before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdediff import analytic
    from sdediff.checkpoint import load, save
    from sdediff.denoiser import Denoiser, ScoreModel
    from sdediff.evaluation.solvers import Comparison, compare
    from sdediff.gaussian import Moments
    from sdediff.generation import sample
    from sdediff.grids import GRIDS
    from sdediff.likelihood import BitsPerDim, Elbo, LogLikelihood, bits_per_dim, elbo, log_likelihood
    from sdediff.noise import BrownianPath, NoiseSource
    from sdediff.parametrization import PREDICTIONS
    from sdediff.samplers import SAMPLERS
    from sdediff.sampling import solve
    from sdediff.sde import DDPM, SDE, SDES, VESDE, VPSDE, CosineVPSDE, RectifiedFlow, SubVPSDE
    from sdediff.transport import decode, encode, interpolate
    from sdediff.types import DataInfo, Level, Solution, Split
    from sdediff.wrappers import Clip, Given, Threshold, Wrapper

__version__ = "0.1.0"

_HOMES = {
    "checkpoint": ("load", "save"),
    "evaluation.solvers": ("Comparison", "compare"),
    "denoiser": ("Denoiser", "ScoreModel"),
    "gaussian": ("Moments",),
    "generation": ("sample",),
    "grids": ("GRIDS",),
    "likelihood": ("BitsPerDim", "Elbo", "LogLikelihood", "bits_per_dim", "elbo", "log_likelihood"),
    "noise": ("BrownianPath", "NoiseSource"),
    "parametrization": ("PREDICTIONS",),
    "samplers": ("SAMPLERS",),
    "sampling": ("solve",),
    "sde": ("DDPM", "SDE", "SDES", "VESDE", "VPSDE", "CosineVPSDE", "RectifiedFlow", "SubVPSDE"),
    "transport": ("decode", "encode", "interpolate"),
    "types": ("DataInfo", "Level", "Solution", "Split"),
    "wrappers": ("Clip", "Given", "Threshold", "Wrapper"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

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
    "Comparison",
    "CosineVPSDE",
    "DataInfo",
    "Denoiser",
    "Elbo",
    "Given",
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
    "Wrapper",
    "analytic",
    "bits_per_dim",
    "compare",
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


def __getattr__(name: str) -> Any:
    """Import a public name, or a module, on first use (PEP 562)."""
    if name in _HOME:
        value = getattr(import_module(f"sdediff.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    try:
        return import_module(f"sdediff.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"sdediff.{name}":
            raise
        raise AttributeError(f"module 'sdediff' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
