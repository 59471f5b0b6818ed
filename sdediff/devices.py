"""The devices of this machine."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    available = [kind for kind, present in _devices().items() if present]
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # unknown names and missing drivers, as torch reports them
        raise ValueError(f"no device {name!r} here; available: {', '.join(available)}") from None
    return device


def _devices() -> dict[str, bool]:
    """Return which kinds of devices are present, the fastest first."""
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
