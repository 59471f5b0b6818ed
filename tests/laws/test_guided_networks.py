"""Guidance of the library's own networks, which know their null condition: weights 1 and 0 in every verb."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff
from sdediff import VPSDE, Clip, DataInfo, Guided, ScoreModel, tuning
from sdediff.networks import NETWORKS, Levelled
from sdediff.networks.told import Told

SHAPE = (2, 4, 4)
LABELS = torch.tensor([0, 2, 1])
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "blocks": 1},
    "unet": {"width": 8, "multipliers": (1, 2)},
    "dit": {"width": 16, "depth": 1, "heads": 2},
}


def model_of(name: str, **told: int) -> ScoreModel:
    """A small network every weight of which counts."""
    network = NETWORKS[name](SHAPE, **SMALL[name], **told)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return ScoreModel(network, VPSDE(), "v_prediction", conditioning="logsnr", data=DataInfo(SHAPE)).requires_grad_(
        requires_grad=False
    )


def state(seed: int = 1) -> Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed))


VERBS: dict[str, Callable[[sdediff.Denoiser], Tensor]] = {
    "solve": lambda model: sdediff.solve(model, state(), steps=3).x,
    "sample": lambda model: sdediff.sample(model, (3, *SHAPE), "sde", steps=3, batch_size=2),
    "auto": lambda model: sdediff.sample(model, (3, *SHAPE), "auto", steps=3),
    "sample-log-prob": lambda model: sdediff.sample(model, (3, *SHAPE), steps=3, return_log_prob=True)[1],
    "encode": lambda model: sdediff.encode(model, state(), steps=3),
    "decode": lambda model: sdediff.decode(model, state(), steps=3),
    "interpolate": lambda model: sdediff.interpolate(model, state(), state(2), 3, steps=3),
    "log_likelihood": lambda model: sdediff.log_likelihood(model, state(), steps=3).log_prob,
    "elbo": lambda model: sdediff.elbo(model, state(), steps=4).total,
    "compare": lambda model: sdediff.compare(model, (3, *SHAPE), ["ode"], forwards=[3], tolerance=1e-2).rows[0].rms,
    "tune": lambda model: tuning.pilot(model, trajectories=2, held_out=1).learned.clean,
}


SLOW = {"auto", "compare", "tune"}


@pytest.mark.parametrize(
    ("name", "verb"), [(name, verb) for name in SMALL for verb in VERBS if name == "mlp" or verb not in SLOW]
)
def test_weight_one_is_conditional_and_zero_unconditional(name: str, verb: str) -> None:
    """To the bit, and to rounding of single precision; a weight of 2 is neither."""
    model, ask = model_of(name, classes=3), VERBS[verb]
    told, free = (torch.as_tensor(ask(model.given(condition))) for condition in (LABELS, {"label": 3}))
    scale = float((told - free).abs().max())
    assert scale > 1e-4
    one, zero, two = (torch.as_tensor(ask(Guided(model.given(LABELS), weight))) for weight in (1.0, 0.0, 2.0))
    assert torch.equal(one, told)
    torch.testing.assert_close(zero, free, rtol=1e-5, atol=0.02 * scale)
    assert min(float((two - other).abs().max()) for other in (told, free)) > 0.05 * scale


@pytest.mark.parametrize("name", SMALL)
def test_the_null_condition_is_the_networks_own(name: str) -> None:
    """Of a label, a vector, or both, by place or by name, inside the exact layer and inside wrappers; it is the answer
    without a condition."""
    x, vectors = state(), torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    model = model_of(name, classes=3, features=4)
    free = model.denoise(x, 0.5)
    for condition in (LABELS, {"label": LABELS}, {"vector": vectors}, (LABELS, vectors)):
        split = [model.given(condition).denoise(x, 0.5), free]
        for inner in (model.given(condition), Clip(model, -100.0, 100.0).given(condition)):
            found = Guided(inner, 3.0).denoise(x, 0.5)
            torch.testing.assert_close(found, torch.lerp(split[1], split[0], 3.0), rtol=1e-4, atol=1e-4)
        assert float((found - split[0]).abs().max()) > 1e-2
    network = NETWORKS[name](SHAPE, **SMALL[name], classes=3, outputs=5)
    levelled = ScoreModel(Levelled(network, 5), VPSDE(), "v_prediction", conditioning="logsnr")
    assert levelled.told == Told(3)
    assert Guided(levelled.given(LABELS), 2.0).denoise(x, 0.5).shape == x.shape


@pytest.mark.parametrize("name", SMALL)
def test_wrong_conditions_are_one_line(name: str) -> None:
    """Labels beyond the classes are refused when they are given, before the network is asked."""
    model = model_of(name, classes=3)
    for options, message in (
        ({"condition": 4}, "labels are 0 to 2, or 3 for none; came 4"),
        ({"condition": {"label": torch.tensor([0, -1, 1])}}, "labels are 0 to 2, or 3 for none; came -1 to 1"),
        ({"guidance": 2.0}, "guidance needs a model under a condition"),
        ({"condition": {"vector": torch.zeros(1, 4)}, "guidance": 2.0}, "no null condition for vectors"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            sdediff.sample(model, (3, *SHAPE), steps=2, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    model = model_of(name)
    assert model.told == Told()
    for options, message in (
        ({"condition": 1}, "was built without classes and takes no label"),
        ({"condition": 1, "guidance": 2.0}, "guidance needs the null condition"),
    ):
        with pytest.raises(ValueError, match=message):
            sdediff.sample(model, (3, *SHAPE), steps=2, **options)  # type: ignore[arg-type]
