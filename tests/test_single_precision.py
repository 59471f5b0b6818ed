"""Devices without float64, as MPS: no verb makes such a tensor there, and what is on the host stays there.

The device is torch's ``meta``, which holds nothing but shapes and types, told to be one of single precision. Its
tensors do not mix with those of the CPU, so that a coefficient that was left there ends a solve. Adaptive solvers go
where the numbers lead, and have their own test in :mod:`tests.test_synchronisation`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import sdediff
from sdediff import DDPM, SAMPLERS, VPSDE, DataInfo, NoiseSource, ScoreModel
from sdediff.numerics import wide, widest
from tests.test_synchronisation import SHAPE, STEPPING, Network, Traffic, moments

INFO = DataInfo(SHAPE[1:], levels=8)


class Single(Traffic):
    """Notes the operations whose results are float64 on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.wide: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_dispatch__(func, types, args, kwargs)
        made = [value for value in tree_leaves(found) if isinstance(value, Tensor) and value.is_meta]
        self.wide += [func._schema.name] * any(value.dtype == torch.float64 for value in made)
        return found


@pytest.fixture(autouse=True)
def single_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in has single precision; draws on it are of shapes alone, as the generator has tests of its own."""

    def narrow(device: torch.device) -> torch.dtype:
        return torch.float32 if device.type == "meta" else widest(device)

    for name, module in list(sys.modules.items()):
        if name.startswith("sdediff") and vars(module).get("widest") is widest:
            monkeypatch.setattr(module, "widest", narrow)
    for law in ("normal", "uniform"):
        drawn = vars(NoiseSource)[law]

        def draw(self: NoiseSource, step: int, stage: int = 0, drawn: Callable[..., Tensor] = drawn) -> Tensor:
            on_device = self.device.type == "meta"
            return torch.empty(self.shape, dtype=self.dtype, device="meta") if on_device else drawn(self, step, stage)

        monkeypatch.setattr(NoiseSource, law, draw)


def model(known: bool, chain: bool = False) -> ScoreModel:
    sde, conditioning = (DDPM.linear(1000), "label") if chain else (VPSDE(), "logsnr")
    return ScoreModel(
        Network(), sde, "v_prediction", conditioning=conditioning, moments=moments() if known else None, data=INFO
    )


LEVELS, STATE = torch.zeros(SHAPE, dtype=torch.int64, device="meta"), torch.empty(SHAPE, device="meta")

VERBS: dict[str, Callable[[ScoreModel], Any]] = {
    "likelihood, probes": lambda m: sdediff.log_likelihood(m, LEVELS, steps=4, trace="hutchinson", probes=4),
    "likelihood, one probe": lambda m: sdediff.log_likelihood(m, LEVELS, steps=4, trace="hutchinson", probes=1),
    "likelihood, exact": lambda m: sdediff.log_likelihood(m, LEVELS, steps=4, trace="exact"),
    "bits a dimension, normal": lambda m: sdediff.bits_per_dim(m, LEVELS, steps=4, dequantisation="truncated-normal"),
    "bits a dimension, decoder": lambda m: sdediff.bits_per_dim(m, LEVELS, steps=4, dequantisation="decoder"),
    "bound": lambda m: sdediff.elbo(m, LEVELS, steps=4),
    "bound, levels": lambda m: sdediff.elbo(m, LEVELS, steps=4, decoder="levels"),
    "bound, sampled": lambda m: sdediff.elbo(m, LEVELS, steps=8, variance="marginal", draws=4),
    "bound, continuous": lambda m: sdediff.elbo(m, LEVELS, steps=torch.inf),
    "density of samples": lambda m: sdediff.sample(m, SHAPE, steps=4, return_log_prob=True),
    "interpolation": lambda m: sdediff.interpolate(m, STATE, STATE, 3, steps=4),
    "loss": lambda m: m.loss(LEVELS, seed=0),
    **{f"sample, {name}": lambda m, name=name: sdediff.sample(m, SHAPE, name, steps=4) for name in STEPPING},
}


CASES = [
    (verb, chain, known)
    for verb in VERBS
    for chain in (False, True)
    for known in (False, True)
    if not (chain and verb.startswith("sample"))  # a solver sees levels alone
]


@pytest.mark.filterwarnings("ignore:these floats are the levels")  # whatever a test of entries that are not there says
@pytest.mark.parametrize(("verb", "chain", "known"), CASES)
def test_no_verb_makes_double_precision_there(verb, chain, known):
    with Single() as counted:
        VERBS[verb](model(known, chain))
    assert counted.wide == []


def test_double_precision_is_noticed():
    with Single() as counted:
        wide(STATE)
        STATE.double()
    assert counted.wide == ["aten::_to_copy"]


def test_a_coefficient_left_on_the_host_is_noticed():
    with Single(), pytest.raises(RuntimeError):
        STATE * torch.ones(SHAPE)


def test_solvers_are_nearly_all_here():
    assert len(STEPPING) > 0.7 * len(SAMPLERS)
