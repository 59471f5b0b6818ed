"""sdediff: DDPM chains as variance-preserving SDEs; samplers, deterministic encoding and likelihood on top.

The public names are those of ``_HOMES`` and the module ``analytic``; the README has an example. They are imported on
first use, so that the command line answers before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # "as" marks a name as public for type checkers
    from sdediff import analytic as analytic
    from sdediff import checkpoint as checkpoint
    from sdediff import conditioning as conditioning
    from sdediff import data as data
    from sdediff import evaluation as evaluation
    from sdediff import gaussian as gaussian
    from sdediff import interop as interop
    from sdediff import latent as latent
    from sdediff import networks as networks
    from sdediff import noise as noise
    from sdediff import options as options
    from sdediff import plots as plots
    from sdediff import quality as quality
    from sdediff import samplers as samplers
    from sdediff import selftest as selftest
    from sdediff import training as training
    from sdediff import tuning as tuning
    from sdediff.checkpoint import load as load
    from sdediff.checkpoint import save as save
    from sdediff.denoiser import Denoiser as Denoiser
    from sdediff.estimation import moments as moments
    from sdediff.evaluation.comparison import Comparison as Comparison
    from sdediff.evaluation.solvers import compare as compare
    from sdediff.execution import Execution as Execution
    from sdediff.gaussian import Moments as Moments
    from sdediff.generation import sample as sample
    from sdediff.grids import GRIDS as GRIDS
    from sdediff.guidance import Guided as Guided
    from sdediff.likelihood import BitsPerDim as BitsPerDim
    from sdediff.likelihood import Elbo as Elbo
    from sdediff.likelihood import LogLikelihood as LogLikelihood
    from sdediff.likelihood import bits_per_dim as bits_per_dim
    from sdediff.likelihood import elbo as elbo
    from sdediff.likelihood import log_likelihood as log_likelihood
    from sdediff.noise import BrownianPath as BrownianPath
    from sdediff.noise import NoiseSource as NoiseSource
    from sdediff.parametrization import PREDICTIONS as PREDICTIONS
    from sdediff.quality import Quality as Quality
    from sdediff.quality import evaluate as evaluate
    from sdediff.samplers import SAMPLERS as SAMPLERS
    from sdediff.sampling import solve as solve
    from sdediff.score_model import ScoreModel as ScoreModel
    from sdediff.sde import DDPM as DDPM
    from sdediff.sde import SDE as SDE
    from sdediff.sde import SDES as SDES
    from sdediff.sde import VESDE as VESDE
    from sdediff.sde import VPSDE as VPSDE
    from sdediff.sde import CosineVPSDE as CosineVPSDE
    from sdediff.sde import ExponentialVESDE as ExponentialVESDE
    from sdediff.sde import RectifiedFlow as RectifiedFlow
    from sdediff.sde import SubVPSDE as SubVPSDE
    from sdediff.training.entry import train as train
    from sdediff.transport import decode as decode
    from sdediff.transport import encode as encode
    from sdediff.transport import interpolate as interpolate
    from sdediff.types import DataInfo as DataInfo
    from sdediff.types import Level as Level
    from sdediff.types import Solution as Solution
    from sdediff.types import Split as Split
    from sdediff.wrappers import Clip as Clip
    from sdediff.wrappers import Given as Given
    from sdediff.wrappers import Threshold as Threshold
    from sdediff.wrappers import Wrapper as Wrapper

__version__ = "0.2.0"

_HOMES = {
    "checkpoint": ("load", "save"),
    "estimation": ("moments",),
    "evaluation.comparison": ("Comparison",),
    "evaluation.solvers": ("compare",),
    "denoiser": ("Denoiser",),
    "execution": ("Execution",),
    "gaussian": ("Moments",),
    "generation": ("sample",),
    "grids": ("GRIDS",),
    "guidance": ("Guided",),
    "likelihood": ("BitsPerDim", "Elbo", "LogLikelihood", "bits_per_dim", "elbo", "log_likelihood"),
    "noise": ("BrownianPath", "NoiseSource"),
    "parametrization": ("PREDICTIONS",),
    "quality": ("Quality", "evaluate"),
    "samplers": ("SAMPLERS",),
    "sampling": ("solve",),
    "score_model": ("ScoreModel",),
    "sde": ("DDPM", "SDE", "SDES", "VESDE", "VPSDE", "CosineVPSDE", "ExponentialVESDE", "RectifiedFlow", "SubVPSDE"),
    "training.entry": ("train",),
    "transport": ("decode", "encode", "interpolate"),
    "types": ("DataInfo", "Level", "Solution", "Split"),
    "wrappers": ("Clip", "Given", "Threshold", "Wrapper"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "analytic"])

if not TYPE_CHECKING:  # or every misspelt name would have a type

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
