"""Forward processes. ``SDES`` is the list: a new process is one file and one line here."""

from sdediff.sde.base import SDE
from sdediff.sde.ddpm import DDPM
from sdediff.sde.flow import RectifiedFlow
from sdediff.sde.subvp import SubVPSDE
from sdediff.sde.ve import VESDE
from sdediff.sde.ve_exponential import ExponentialVESDE
from sdediff.sde.vp import VPSDE, CosineVPSDE

SDES: dict[str, type[SDE]] = {
    "vp": VPSDE,
    "cosine": CosineVPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "ve-exponential": ExponentialVESDE,
    "flow": RectifiedFlow,
    "ddpm": DDPM,
}

__all__ = ["DDPM", "SDE", "SDES", "VESDE", "VPSDE", "CosineVPSDE", "ExponentialVESDE", "RectifiedFlow", "SubVPSDE"]
