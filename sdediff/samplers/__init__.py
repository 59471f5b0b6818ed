"""Samplers. ``SAMPLERS`` is the list: a new sampler is one file and one line here.

The command line's choices, the README's table and the law tests are generated from it.
"""

from sdediff.samplers.ancestral import Ancestral
from sdediff.samplers.base import Sampler, StepSampler
from sdediff.samplers.ddim import DDIM
from sdediff.samplers.engines import AdaptiveODE, FixedODE, ReverseSDE
from sdediff.samplers.euler_maruyama import EulerMaruyama
from sdediff.samplers.heun import Heun
from sdediff.samplers.multistep import AdamsBashforth
from sdediff.samplers.predictor_corrector import PredictorCorrector

SAMPLERS: dict[str, Sampler] = {
    "ode": AdamsBashforth(),
    "sde": EulerMaruyama(),
    "ancestral": Ancestral(),
    "ancestral-marginal": Ancestral("marginal"),
    "ddim": DDIM(),
    "euler-maruyama": EulerMaruyama(),
    "pc": PredictorCorrector(),
    "heun": Heun(),
    "ab2": AdamsBashforth(2),
    "ab4": AdamsBashforth(4),
    "dopri5": AdaptiveODE("dopri5"),
    "rk4": FixedODE("rk4"),
    "torchsde-euler": ReverseSDE("euler"),
    "torchsde-srk": ReverseSDE("srk"),
}
"""Every solver by name; ``"ode"``, ``"sde"`` and ``"ancestral"`` are the defaults of their kinds."""

ADAPTIVE: dict[str, str] = {"ode": "dopri5"}
"""The adaptive solver that stands in where a tolerance is given instead of a number of steps."""

__all__ = ["ADAPTIVE", "SAMPLERS", "Sampler", "StepSampler"]
