"""Samplers. ``SAMPLERS`` lists them: a new sampler is one file and one line here.

The choices of the command line, the README's table and the law tests are generated from it.
"""

from collections import ChainMap
from collections.abc import Mapping

from sdediff.samplers.adaptive import Adaptive
from sdediff.samplers.adaptive_sde import AdaptiveSDE
from sdediff.samplers.ancestral import Ancestral
from sdediff.samplers.auto import Auto
from sdediff.samplers.base import Sampler, StepSampler
from sdediff.samplers.churn import EDM_HEUN, Churn
from sdediff.samplers.ddim import DDIM
from sdediff.samplers.euler_maruyama import EulerMaruyama
from sdediff.samplers.external import AdaptiveODE, FixedODE, ReverseSDE
from sdediff.samplers.heun import Heun
from sdediff.samplers.multistep import Multistep
from sdediff.samplers.predictor_corrector import PredictorCorrector
from sdediff.samplers.relative import Relative
from sdediff.samplers.reversible import Reversible
from sdediff.samplers.singlestep import Singlestep

SAMPLERS: dict[str, Sampler] = {
    "ode": Relative(),
    "sde": Relative(2, None, eta=0.5),
    "ancestral": Ancestral(),
    "ancestral-marginal": Ancestral("marginal"),
    "ddim": DDIM(),
    "sde-dpm++2m": Multistep("sample", "logsnr", 2, "middle", eta=1.0),
    "sde-dpm++3m": Multistep("sample", "logsnr", 3, "half", eta=1.0),
    "exponential-em": Multistep("epsilon", "logsnr", 1, eta=1.0),
    "edm-churn": Churn(),
    "euler-maruyama": EulerMaruyama(),
    "pc": PredictorCorrector(),
    "heun": Heun(),
    "ab2": Multistep("velocity", "asinh", 2),
    "ab4": Multistep("velocity", "asinh", 4),
    "dpm2": Multistep("epsilon", "logsnr", 2, "middle"),
    "dpm3": Multistep("epsilon", "logsnr", 3, "halved"),
    "dpm++2m": Multistep("sample", "logsnr", 2, "middle"),
    "dpm++3m": Multistep("sample", "logsnr", 3, "halved"),
    "dpm2s": Singlestep("epsilon", "logsnr", (1 / 2,), "middle"),
    "dpm3s": Singlestep("epsilon", "logsnr", (1 / 3, 2 / 3)),
    "dpm++2s": Singlestep("sample", "logsnr", (1 / 2,), "middle"),
    "dpm++3s": Singlestep("sample", "logsnr", (1 / 3, 2 / 3)),
    "edm": EDM_HEUN,
    "deis2": Multistep("epsilon", "logsnr", 2),
    "deis3": Multistep("epsilon", "logsnr", 3),
    "unipc2": Multistep("sample", "logsnr", 2, "middle", correct_from=1),
    "unipc3": Multistep("sample", "logsnr", 3, "middle", correct_from=1),
    "reversible": Reversible(),
    "adaptive": Adaptive(),
    "adaptive-sde": AdaptiveSDE(),
    "dopri5": AdaptiveODE("dopri5"),
    "rk4": FixedODE("rk4"),
    "torchsde-euler": ReverseSDE("euler"),
    "torchsde-srk": ReverseSDE("srk"),
}
"""Every solver by name; ``"ode"``, ``"sde"`` and ``"ancestral"`` are the defaults of their kinds."""

AUTO = "auto"
"""Name of the solver that is chosen for the model it meets."""

SOLVERS: Mapping[str, Sampler] = ChainMap({AUTO: Auto()}, SAMPLERS)
"""Every solver by name, and ``"auto"``, which is made of others."""

ADAPTIVE: dict[str, str] = {"ode": "adaptive", "sde": "adaptive-sde"}
"""Adaptive solvers that replace those named where a tolerance is given instead of a number of steps."""

__all__ = ["ADAPTIVE", "AUTO", "SAMPLERS", "SOLVERS", "Sampler", "StepSampler"]
