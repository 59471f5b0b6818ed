"""Classifier-free guidance on conditional mixtures, whose both answers are exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdediff
from catalogue import PROCESSES
from sdediff import SAMPLERS, SDE, Clip, DataInfo, Guided, Level, ScoreModel
from sdediff.analytic import GaussianMixture

CLASSES = (
    GaussianMixture([[-1.5, 0.3], [-0.5, 1.1]], [0.03, 0.2]),
    GaussianMixture([[1.0, -0.2], [0.2, 1.0]], [0.1, 0.3], [0.7, 0.3]),
)
NULL = 2
"""The label of no condition: both classes alike."""
ALL = GaussianMixture(
    [[-1.5, 0.3], [-0.5, 1.1], [1.0, -0.2], [0.2, 1.0]], [0.03, 0.2, 0.1, 0.3], [0.25, 0.25, 0.35, 0.15]
)
LABELS = torch.tensor([0, 1, 1, 0, 1])
OTHER = {"dtype": torch.float64, "seed": 3}


class Labelled(nn.Module):
    """The exact velocities of both classes and of all data, each item's by its label; counts its calls."""

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.parts = nn.ModuleList(kind.model(sde) for kind in (*CLASSES, ALL))
        self.asked: list[int] = []

    def forward(self, x: Tensor, level: Level, label: Tensor) -> Tensor:
        self.asked.append(len(x))
        found = torch.stack([part(x, level).mix(-level.sin, level.cos) for part in self.parts])
        return found[label, torch.arange(len(x))]


def labelled(sde: SDE, data: DataInfo | None = None) -> ScoreModel:
    return ScoreModel(Labelled(sde), sde, "v_prediction", conditioning="level", data=data)


def states(sde: SDE, t: float | Tensor) -> Tensor:
    return sde.perturb(
        ALL.sample(len(LABELS), seed=1),
        t,
        torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )


@pytest.mark.parametrize("process", ["vp", "ve", "flow", "ddpm"])
@pytest.mark.parametrize("weight", [-1.0, 0.0, 0.5, 1.0, 2.0, 7.5])
def test_the_guided_score_is_its_formula(process: str, weight: float) -> None:
    """Of the exact scores, at one time and at one an item."""
    sde = PROCESSES[process]
    model = Guided(labelled(sde).given(LABELS), weight, null=NULL)
    for t in (0.5, torch.tensor([0.1, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)):
        x = states(sde, t)
        own = torch.stack([kind.model(sde).score(x, t) for kind in CLASSES])[LABELS, torch.arange(5)]
        free = ALL.model(sde).score(x, t)
        torch.testing.assert_close(model.score(x, t), free + weight * (own - free), rtol=1e-9, atol=1e-9)
        split, level = model.split(x, t), sde.level(t)
        torch.testing.assert_close(level.perturb(split.x0, split.eps), x, rtol=0.0, atol=1e-8 * float(x.abs().max()))


@pytest.mark.parametrize("name", SAMPLERS)
def test_weight_one_is_conditional_and_zero_unconditional(name: str) -> None:
    """To the bit and to rounding; a weight of 2 is neither."""
    sde, given = PROCESSES["vp"], {"rtol": 0.3} if SAMPLERS[name].adaptive else {"steps": 5}

    def drawn(label: Any, **options: Any) -> Tensor:
        return sdediff.sample(labelled(sde), (5, 2), name, condition=label, **OTHER, **given, **options)

    assert torch.equal(drawn(LABELS, guidance=1.0, null=NULL), drawn(LABELS))
    free = drawn(torch.tensor([NULL]))
    torch.testing.assert_close(drawn(LABELS, guidance=0.0, null=NULL), free, rtol=0.0, atol=1e-9)
    assert float((drawn(LABELS, guidance=2.0, null=NULL) - free).abs().max()) > 0.05


def test_it_guides_within_its_interval() -> None:
    """Outside it is the conditional model in one forward; inside it asks once, of double size, and counts two."""
    sde = PROCESSES["vp"]
    plain = labelled(sde).given(LABELS)
    model = Guided(plain, 3.0, null=NULL, interval=(0.3, 0.6))
    whole = Guided(plain, 3.0, null=NULL)
    asked = plain.network.asked
    for t, inside in ((0.1, False), (0.3, True), (0.5, True), (0.7, False)):
        x, (level,) = states(sde, t), sde.levels([t])
        asked.clear()
        found = model(x, level)
        assert asked == [10 if inside else 5]
        assert model.nfe(level) == (2 if inside else 1)
        assert torch.equal(found.eps, (whole if inside else plain)(x, level).eps)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    mixed, one, three = (m.denoise(states(sde, t), t) for m in (model, plain, whole))
    inside = torch.tensor([False, True, True, False, False])[:, None]
    torch.testing.assert_close(mixed, torch.where(inside, three, one), rtol=0.0, atol=1e-12)


def test_a_solve_counts_both_answers() -> None:
    """It asks at 1.00, 0.84, 0.68, 0.53, 0.37 and 0.21."""
    sde, x = PROCESSES["vp"], ALL.sample(5, seed=2)
    for interval, extra in ((None, 6), ((0.0, 0.5), 2), ((2.0, 3.0), 0)):
        found = sdediff.solve(
            labelled(sde), x, "ddim", steps=6, grid=torch.linspace(1.0, 0.05, 7), condition=LABELS, guidance=2.0,
            null=NULL, guidance_interval=interval, t_to=0.05,
        )  # fmt: skip
        assert found.nfe == 6 + extra


def test_guidance_sharpens() -> None:
    """The odds of the class rise with the weight: guided samples of class 0 are more surely of it."""
    sde, label = PROCESSES["vp"], torch.tensor([0])
    odds = []
    for weight in (0.0, 1.0, 3.0):
        x = sdediff.sample(labelled(sde), (400, 2), steps=30, condition=label, guidance=weight, null=NULL, **OTHER)
        own, other = (kind.model(sde) for kind in CLASSES)
        a, b = (sdediff.log_likelihood(model, x, steps=20).log_prob for model in (own, other))
        odds.append(float((a - b).clamp(-20.0, 20.0).mean()))
    assert odds[0] + 1.0 < odds[1] < odds[2]


def test_the_learned_variance_is_the_conditional_one() -> None:
    """Guidance moves the mean; the spread is that of the conditional answer."""

    def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        spread = torch.where(label == NULL, -0.5, 0.25).to(x)[:, None]
        return torch.cat([x, spread.expand_as(x)], dim=1)

    sde = PROCESSES["ddpm"]
    model = ScoreModel(network, sde, learned_variance=True).given(LABELS)
    x = states(sde, 0.5)
    for weight in (0.0, 1.0, 3.0):
        fraction = Guided(model, weight, null=NULL).split(x, 0.5).fraction
        assert fraction is not None
        assert torch.equal(fraction, torch.full_like(x, 0.625))


def test_items_keep_their_conditions_and_wrappers_stay_outside() -> None:
    """Batches, transport and interpolation; a clip of the model clips what is guided."""
    sde = PROCESSES["vp"]
    guide: dict[str, Any] = {"condition": LABELS, "guidance": 2.0, "null": NULL}
    whole = sdediff.sample(labelled(sde), (5, 2), steps=5, **OTHER, **guide)
    torch.testing.assert_close(sdediff.sample(labelled(sde), (5, 2), steps=5, batch_size=2, **OTHER, **guide), whole)
    x = ALL.sample(5, seed=4)
    z = sdediff.encode(labelled(sde), x, **guide)
    torch.testing.assert_close(sdediff.decode(labelled(sde), z, **guide), x, rtol=0.0, atol=1e-3)
    path = sdediff.interpolate(labelled(sde), x, x.flip(0), points=3, steps=10, **guide)
    assert path.shape == (3, 5, 2)
    model = Clip(labelled(sde), -0.1, 0.1).given(LABELS)
    clipped = sdediff.sample(model, (5, 2), steps=5, guidance=2.0, null=NULL, **OTHER)
    outside = sdediff.sample(
        Clip(Guided(labelled(sde).given(LABELS), 2.0, null=NULL), -0.1, 0.1), (5, 2), steps=5, **OTHER
    )
    assert torch.equal(clipped, outside)


def test_named_conditions_and_structures() -> None:
    sde = PROCESSES["vp"]
    x = states(sde, 0.5)
    model = labelled(sde)
    by_name, by_place = model.given({"label": LABELS}), model.given(LABELS)
    expected = Guided(by_place, 2.0, null=NULL).denoise(x, 0.5)
    for null in (NULL, {"label": NULL}, torch.tensor([NULL]), float(NULL)):
        assert torch.equal(Guided(by_name, 2.0, null=null).denoise(x, 0.5), expected)
    with pytest.raises(ValueError, match="same tensors as the condition"):
        Guided(by_place, 2.0, null=(1, 2)).denoise(x, 0.5)
    with pytest.raises(ValueError, match=r"a row of the null condition is \(2,\), not \(\)"):
        Guided(by_place, 2.0, null=torch.tensor([[1, 2]])).denoise(x, 0.5)


def test_what_cannot_guide_is_refused() -> None:
    sde = PROCESSES["vp"]
    model, x = labelled(sde), states(sde, 0.5)
    for options, message in (
        ({"guidance": math.inf, "null": NULL, "condition": LABELS}, "finite number, not inf"),
        ({"guidance": 2.0, "condition": LABELS}, "needs the null condition"),
        ({"guidance": 2.0, "condition": LABELS, "null": torch.tensor([2, 2])}, "one row for all"),
        ({"guidance": 2.0, "null": NULL}, "needs a model under a condition"),
        ({"null": NULL, "condition": LABELS}, "belong to guidance"),
        ({"guidance": 2.0, "null": NULL, "condition": LABELS, "guidance_interval": (0.5, 0.5)}, "low < high, not 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            sdediff.solve(model, x, steps=4, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a model under a condition"):
        Guided(CLASSES[0].model(sde), 2.0, null=1).denoise(x, 0.5)
