"""Samplers of k-diffusion, in its own frame ``x / alpha`` and on its own sigmas.

Install it with ``pip install --no-deps k-diffusion``: its declared requirements would replace the CPU build of torch,
and its package imports more than it needs, so ``sampling.py`` is loaded alone. Ancestral and SDE samplers run at
eta = 0, where they are the deterministic solvers DPM-Solver++ 2S, 2M and 3M.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sdediff.dynamics import Frame

from .adapter import Levels, Peer, Rule, by_sigma, ratio


def _load() -> Any:
    found = importlib.util.find_spec("k_diffusion")
    if found is None or found.origin is None:
        raise ImportError("k-diffusion is missing: pip install --no-deps k-diffusion")
    folder = Path(found.origin).parent
    package = types.ModuleType("_k_diffusion")
    package.__path__ = [str(folder)]
    package.utils = types.ModuleType("_k_diffusion.utils")  # type: ignore[attr-defined]
    package.utils.append_dims = _append_dims  # type: ignore[attr-defined]
    sys.modules |= {"_k_diffusion": package, "_k_diffusion.utils": package.utils}  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("_k_diffusion.sampling", folder / "sampling.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def _append_dims(x: Tensor, dims: int) -> Tensor:
    """The one function of the package's ``utils`` that ``sampling`` uses."""
    return x.reshape(*x.shape, *(1,) * (dims - x.ndim))


def _model(frame: Frame) -> Callable[..., Tensor]:
    def denoised(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        level = frame.at_half_log_snr(-float(sigma.flatten()[0].double().log()))
        return frame(x * level.cos, level).x0

    return denoised


def _solve(sampler: Callable[..., Tensor], options: dict[str, Any], frame: Frame, y: Tensor, levels: Levels) -> Tensor:
    x = sampler(_model(frame), y / levels[0].cos, ratio(levels), disable=True, **options)
    return x * levels[-1].cos


def _fast(sampler: Callable[..., Tensor], frame: Frame, y: Tensor, levels: Levels) -> Tensor:
    sigmas = ratio(levels)
    low, high = float(sigmas[-1]), float(sigmas[0])
    return sampler(_model(frame), y / levels[0].cos, low, high, len(levels) - 1, disable=True) * levels[-1].cos


def _silent(*_: Any) -> float:
    return 0.0


def peers() -> list[Peer]:
    """Every fixed-step sampler on each of the package's grids."""
    k = _load()
    exponential = by_sigma(lambda n, low, high: k.get_sigmas_exponential(n, low, high)[:-1])
    grids: dict[str, Rule] = {
        "karras": by_sigma(lambda n, low, high: k.get_sigmas_karras(n, low, high)[:-1]),
        "exponential": exponential,
        "polyexponential 2": by_sigma(lambda n, low, high: k.get_sigmas_polyexponential(n, low, high, rho=2.0)[:-1]),
        "polyexponential 1/2": by_sigma(lambda n, low, high: k.get_sigmas_polyexponential(n, low, high, rho=0.5)[:-1]),
        "vp": by_sigma(lambda n, _low, _high: k.get_sigmas_vp(n)[:-1]),
    }
    still = {"eta": 0.0, "noise_sampler": _silent}
    table: list[tuple[str, str, int, dict[str, Any]]] = [
        ("euler", "sample_euler", 1, {}),
        ("heun", "sample_heun", 2, {}),
        ("dpm_2", "sample_dpm_2", 2, {}),
        ("lms 2", "sample_lms", 1, {"order": 2}),
        ("lms 3", "sample_lms", 1, {"order": 3}),
        ("lms 4", "sample_lms", 1, {"order": 4}),
        ("dpmpp_2m", "sample_dpmpp_2m", 1, {}),
        ("dpmpp_2m_sde heun eta 0", "sample_dpmpp_2m_sde", 1, {**still, "solver_type": "heun"}),
        ("dpmpp_3m_sde eta 0", "sample_dpmpp_3m_sde", 1, still),
        ("dpmpp_2s_ancestral eta 0", "sample_dpmpp_2s_ancestral", 2, still),
        ("dpmpp_sde eta 0", "sample_dpmpp_sde", 2, still),
    ]
    made = [
        Peer(f"k-diffusion {name}", partial(_solve, getattr(k, function), options), grids, forwards=forwards)
        for name, function, forwards, options in table
    ]
    return [*made, Peer("k-diffusion dpm_fast", partial(_fast, k.sample_dpm_fast), {"own": exponential}, handed=False)]
