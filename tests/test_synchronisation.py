"""What a step waits for, or moves to the device, on a stand-in: states on torch's ``meta`` device, which hold nothing.

Whatever reads such a tensor, or makes one of numbers on the CPU, is seen by the dispatcher and counted. The packages
behind ``integrators`` read as they please.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdediff import DDPM, SAMPLERS, VESDE, VPSDE, Moments, NoiseSource, ScoreModel, solve
from sdediff.samplers.external import AdaptiveODE, FixedODE, ReverseSDE

SHAPE = (3, 2, 4, 4)
OWN = {
    name: sampler for name, sampler in SAMPLERS.items() if not isinstance(sampler, AdaptiveODE | FixedODE | ReverseSDE)
}
STEPPING = {name: sampler for name, sampler in OWN.items() if not sampler.adaptive}
ADAPTIVE = {name: sampler for name, sampler in OWN.items() if sampler.adaptive}

MODELS: dict[str, tuple[Any, str]] = {
    "logsnr": (VPSDE(), "logsnr"),
    "time": (VESDE(), "time"),
    "label": (DDPM.linear(1000), "label"),
    "interpolated": (DDPM.linear(1000), "interpolated"),
}


class Traffic(TorchDispatchMode):
    """Counts reads from the device and copies to it; what is copied back is 0.001."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name == "aten::_local_scalar_dense" and args[0].is_meta:
            self.reads += 1
            return args[0].dtype == torch.bool
        if name == "aten::_to_copy" and args[0].is_meta and str(kwargs.get("device", "meta")) == "cpu":
            self.reads += 1
            return torch.full(args[0].shape, 1e-3, dtype=kwargs.get("dtype") or args[0].dtype)
        found = func(*args, **kwargs)
        if name == "aten::_to_copy" and found.is_meta and not args[0].is_meta:
            self.copies += 1
        return found


class Network(nn.Module):
    """A network on the device; ``reads`` makes it one that waits for it."""

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.weight, self.reads = nn.Parameter(torch.ones((), device="meta")), reads

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        if self.reads:
            float(x.sum())
        return self.weight * x


def moments() -> Moments:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64))[0]
    return Moments(torch.ones(SHAPE[1:], dtype=torch.float64), torch.linspace(0.1, 1.0, 32).double(), basis)


def traffic(name: str, network: Network, kind: str, known: bool, **options: Any) -> tuple[Traffic, int]:
    """Count for one solve to the data; also the forwards."""
    sde, conditioning = MODELS[kind]
    model = ScoreModel(network, sde, "v_prediction", conditioning=conditioning, moments=moments() if known else None)
    with Traffic() as counted:
        nfe = solve(model, torch.empty(SHAPE, device="meta"), name, t_to=0.0, **options).nfe
    return counted, nfe


@pytest.fixture(autouse=True)
def drawn_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator has tests of its own."""

    def normal(self: NoiseSource, step: int, stage: int = 0) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    monkeypatch.setattr(NoiseSource, "normal", normal)


@pytest.mark.parametrize("known", [False, True], ids=["", "moments"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", STEPPING)
def test_more_steps_read_and_move_nothing_more(name, kind, known):
    few, _ = traffic(name, Network(), kind, known, steps=10)
    many, _ = traffic(name, Network(), kind, known, steps=16)
    assert many.reads <= few.reads <= 4  # whether the state and the result are finite
    assert many.copies <= few.copies


def test_a_network_that_reads_is_noticed():
    few, _ = traffic("ode", Network(reads=True), "logsnr", True, steps=10)
    many, _ = traffic("ode", Network(reads=True), "logsnr", True, steps=16)
    assert many.reads - few.reads == 6


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_solvers_read_once_a_step(name):
    counted, nfe = traffic(name, Network(), "logsnr", False, rtol=ADAPTIVE[name].rtol)
    assert nfe > 4
    assert counted.reads <= nfe + 1  # with one at the start, and two for finite states
