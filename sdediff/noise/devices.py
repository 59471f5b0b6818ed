"""Draws on accelerators: in one kernel where CUDA and Triton allow, by operations of torch everywhere else."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module, util
from types import ModuleType

import torch
from torch import Tensor

from sdediff.noise.laws import device_normals, device_uniforms
from sdediff.noise.words import Key

_TRIAL = 2, 3  # samples and entries; odd, so that the last pair is cut


def draw_normals(key: Key, samples: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return ``size`` normals of every sample, ``(B, size)``, on the device of the indices ``samples``."""
    kernels = _kernels(samples.device)
    if kernels is None:
        return device_normals(key, samples, size, dtype)
    with torch.cuda.device(samples.device):
        drawn: Tensor = kernels.kernel_normals(key, samples, size, dtype)
    return drawn


def draw_uniforms(key: Key, samples: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return ``size`` uniforms in [0, 1) of every sample, ``(B, size)``, on the device of the indices ``samples``."""
    kernels = _kernels(samples.device)
    if kernels is None:
        return device_uniforms(key, samples, size, dtype)
    with torch.cuda.device(samples.device):
        drawn: Tensor = kernels.kernel_uniforms(key, samples, size, dtype)
    return drawn


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """Return the module of the kernels if they compile on the device and draw what torch draws there.

    Triton fails in many ways, such as without a C compiler or on devices that it does not know: any of them costs
    speed, which is said once, and no result.
    """
    if device.type != "cuda" or util.find_spec("triton") is None:
        return None
    try:
        kernels = import_module("sdediff.noise.kernels")
        with torch.cuda.device(device):
            check_kernels(kernels, device)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        warnings.warn(f"noise on {device} is drawn without a kernel, slowly: {reason}", stacklevel=2)
        return None
    return kernels


def check_kernels(kernels: ModuleType, device: torch.device) -> None:
    """Compare a small draw of the kernels with that of torch's own operations.

    Raises:
        RuntimeError: if they differ.
    """
    key, (count, size) = Key(1, 2), _TRIAL
    samples = torch.arange(count, device=device)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        ours, plain = kernels.kernel_normals(key, samples, size, dtype), device_normals(key, samples, size, dtype)
        uniform = kernels.kernel_uniforms(key, samples, size, dtype)
        if not torch.allclose(ours, plain, rtol=0.0, atol=tolerance):
            raise RuntimeError("its normals are others")
        if not torch.equal(uniform, device_uniforms(key, samples, size, dtype)):
            raise RuntimeError("its uniforms are others")
