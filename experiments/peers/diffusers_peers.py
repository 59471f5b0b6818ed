"""Schedulers of diffusers, through ``step()``.

The multistep schedulers read ``sigmas`` alone, which are set. DDIM and PNDM read ``alphas_cumprod`` at integer
timesteps: they get a chain whose instants are the levels. IPNDM reads ``alphas`` and ``betas``, set likewise.
EulerDiscrete is DDIM; HeunDiscrete, LMSDiscrete and KDPM2Discrete are k-diffusion's ``heun``, ``lms`` and ``dpm_2`` and
are measured there. ``use_lu_lambdas`` is, with its fixed rho = 1, the exponential grid. ``DPMSolverMultistep`` on the
grid "quadratic" is LuChengTHU's dpm-solver with ``skip_type="time_quadratic"``, whose formulas it shares.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

import sdediff
from sdediff.dynamics import Frame, velocity

from .adapter import Levels, Peer, Rule, by_sigma, ratio

warnings.filterwarnings("ignore", module="diffusers")
import diffusers  # noqa: E402

diffusers.utils.logging.set_verbosity_error()


def _own(convert: str) -> Rule:
    scheduler = diffusers.DPMSolverMultistepScheduler()
    make = getattr(scheduler, convert)
    return by_sigma(lambda count, low, high: torch.as_tensor(make(torch.tensor([high, low]).double(), count)))


GRIDS: dict[str, Rule] = {
    "time": sdediff.GRIDS["time"],
    "karras": _own("_convert_to_karras"),
    "exponential": _own("_convert_to_exponential"),
    "beta": _own("_convert_to_beta"),
}
QUADRATIC: dict[str, Rule] = {"quadratic": sdediff.GRIDS["quadratic"]}


def _by_sigmas(make: Callable[[], Any], frame: Frame, y: Tensor, levels: Levels) -> Tensor:
    scheduler, steps = make(), len(levels) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = ratio(levels), torch.arange(steps, 0, -1)
    for timestep, level in zip(scheduler.timesteps, levels, strict=False):
        y = scheduler.step(frame(y, level).eps, timestep, y).prev_sample.to(y.dtype)
    return y


def _by_chain(
    name: str, order: Callable[[int], list[int]], options: dict[str, Any], frame: Frame, y: Tensor, levels: Levels
) -> Tensor:
    steps = len(levels) - 1
    scheduler = getattr(diffusers, name)(num_train_timesteps=steps + 1, **options)
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = torch.tensor([level.cos**2 for level in reversed(levels)], dtype=torch.float64)
    for timestep in order(steps):
        y = scheduler.step(frame(y, levels[steps - timestep]).eps, timestep, y).prev_sample
    return y


def _ipndm(frame: Frame, y: Tensor, levels: Levels) -> Tensor:
    scheduler, steps = diffusers.IPNDMScheduler(), len(levels) - 1
    scheduler.set_timesteps(steps)
    scheduler.alphas = torch.tensor([level.cos for level in levels], dtype=torch.float64)
    scheduler.betas = torch.tensor([level.sin for level in levels], dtype=torch.float64)
    scheduler.timesteps = torch.arange(steps, 0, -1)
    for timestep, level in zip(scheduler.timesteps, levels, strict=False):
        y = scheduler.step(velocity(frame(y, level), level), timestep, y).prev_sample
    return y


def _scheduler(name: str, grids: dict[str, Rule], most: int = 10**9, **options: Any) -> Peer:
    label = " ".join(str(value) for value in options.values() if not callable(value))
    solve = partial(_by_sigmas, partial(getattr(diffusers, name), **options))
    return Peer(f"diffusers {name.removesuffix('Scheduler')} {label}", solve, grids, most=most)


def _never(_timestep: Any) -> int:
    return 0


def peers() -> list[Peer]:
    """Every scheduler with every combination of its options that changes a deterministic solve."""
    made = [
        Peer("diffusers DDIM", partial(_by_chain, "DDIMScheduler", lambda n: list(range(n, 0, -1)),
                                       {"clip_sample": False}), {"time": GRIDS["time"], **QUADRATIC}),
        Peer("diffusers PNDM", partial(_by_chain, "PNDMScheduler", lambda n: [n, n - 1, *range(n - 1, 0, -1)],
                                       {"skip_prk_steps": True}), {"time": GRIDS["time"]}, extra=1),
        Peer("diffusers IPNDM", _ipndm, {"time": GRIDS["time"]}),
    ]  # fmt: skip
    methods = ((2, "midpoint"), (2, "heun"), (3, "midpoint"))
    for kind, (order, how), lower in product(("dpmsolver", "dpmsolver++"), methods, (False, True)):
        common = {"algorithm_type": kind, "solver_order": order, "solver_type": how}
        made.append(_scheduler("DPMSolverMultistepScheduler", GRIDS | QUADRATIC, 14 if lower else 10**9, **common,
                               lower_order_final=lower, final_sigmas_type="sigma_min"))  # fmt: skip
        if lower:
            made.append(_scheduler("DPMSolverSinglestepScheduler", GRIDS | QUADRATIC, **common, lower_order_final=True,
                                   final_sigmas_type="sigma_min"))  # fmt: skip
    for order, how, sample, lower in product((2, 3, 4), ("bh1", "bh2"), (False, True), (False, True)):
        made.append(_scheduler("UniPCMultistepScheduler", GRIDS, solver_order=order, solver_type=how,
                               predict_x0=sample, lower_order_final=lower))  # fmt: skip
    for order, lower in product((2, 3), (False, True)):
        most = 14 if lower else 10**9
        made.append(_scheduler("DEISMultistepScheduler", GRIDS, most, solver_order=order, lower_order_final=lower))
    for order, kind in product((2, 3, 4), ("data_prediction", "noise_prediction")):
        made.append(_scheduler("SASolverScheduler", GRIDS, predictor_order=order, corrector_order=order,
                               algorithm_type=kind, tau_func=_never))  # fmt: skip
    return made
