"""Conditions travel with their items: under labels every verb gives, row by row, what the label's own model gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdediff
from catalogue import PROCESSES
from sdediff import SAMPLERS, SDE, Clip, DataInfo, Denoiser, Given, Level, ScoreModel
from sdediff.analytic import GaussianMixture

COUNT = 11
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 0, 0, 1, 2, 1])
KINDS = (
    GaussianMixture([[-1.5, 0.3], [-0.5, 1.1]], [0.03, 0.2]),
    GaussianMixture([[1.0, -0.2], [0.2, 1.0]], [0.003, 0.3], [0.7, 0.3]),
    GaussianMixture([[0.0, -1.4]], [1e-3]),
)


class Labelled(nn.Module):
    """The velocities of the exact denoisers of three kinds of data, each item's by its label."""

    def __init__(self, parts: Sequence[Denoiser]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, level: Level, label: Tensor) -> Tensor:
        assert label.shape == (len(x),)
        found = torch.stack([part(x, level).mix(-level.sin, level.cos) for part in self.parts])
        return found[label, torch.arange(len(x))]


def labelled(sde: SDE, data: DataInfo | None = None, kinds: Sequence[GaussianMixture] = KINDS) -> ScoreModel:
    network = Labelled([kind.model(sde) for kind in kinds])
    return ScoreModel(network, sde, "v_prediction", conditioning="level", data=data)


def alone(sde: SDE, label: int, data: DataInfo | None = None) -> Denoiser:
    """The model of one label, which takes no condition."""
    return labelled(sde, data).given(torch.tensor([label]))


def by_kind(call: Callable[[Denoiser], Tensor], sde: SDE, data: DataInfo | None = None) -> Tensor:
    """What each item's own model says of it: one call a label, of which its rows are kept."""
    found = torch.stack([call(alone(sde, label, data)) for label in range(len(KINDS))])
    return found[LABELS, torch.arange(COUNT)]


def items(seed: int = 0) -> Tensor:
    drawn = torch.stack([kind.sample(COUNT, seed=seed + k) for k, kind in enumerate(KINDS)])
    return drawn[LABELS, torch.arange(COUNT)]


def options(name: str) -> dict[str, Any]:
    """Few steps; loose tolerances, at which samples still leave the batch at different times."""
    if name == "dopri5":
        return {"rtol": 1e-4}
    return {"rtol": 0.3 if SAMPLERS[name].stochastic else 3e-2} if SAMPLERS[name].adaptive else {"steps": 5}


def tolerance(name: str) -> float:
    """Rounding; dopri5 chooses one step for the batch, by its worst sample."""
    return 0.1 if name == "dopri5" else 1e-9


def misplaced(condition: Tensor) -> Tensor:
    return condition.roll(1)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("size", [4, COUNT])
def test_every_sampler(name: str, size: int) -> None:
    sde, shape, given = PROCESSES["vp"], (COUNT, 2), {"dtype": torch.float64, "seed": 3, **options(name)}
    found = sdediff.sample(labelled(sde), shape, name, condition=LABELS, batch_size=size, **given)
    truth = by_kind(lambda model: sdediff.sample(model, shape, name, **given), sde)
    torch.testing.assert_close(found, truth, rtol=0.0, atol=tolerance(name))
    wrong = sdediff.sample(labelled(sde), shape, name, condition=misplaced(LABELS), batch_size=size, **given)
    assert float((wrong - truth).abs().max()) > 0.5  # the control


@pytest.mark.parametrize("process", ["vp", "ve", "flow", "ddpm"])
def test_encoding_and_decoding(process: str) -> None:
    sde, x = PROCESSES[process], items()
    model = labelled(sde)
    for solver, given in (("ode", {}), ("ode", {"steps": 20}), ("reversible", {"steps": 20})):
        z = sdediff.encode(model, x, solver, condition=LABELS, **given)  # type: ignore[arg-type]
        truth = by_kind(lambda own: sdediff.encode(own, x, solver, **given), sde)  # type: ignore[arg-type] # noqa: B023
        torch.testing.assert_close(z, truth, rtol=1e-9, atol=1e-9)
        back = sdediff.decode(model, z, solver, condition=LABELS, **given)  # type: ignore[arg-type]
        truth = by_kind(lambda own: sdediff.decode(own, z, solver, **given), sde)  # type: ignore[arg-type] # noqa: B023
        torch.testing.assert_close(back, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["ode", "reversible"])
def test_interpolation(solver: str) -> None:
    sde, a, b = PROCESSES["ddpm"], items(0), items(7)
    found = sdediff.interpolate(labelled(sde), a, b, 4, solver, steps=20, condition=LABELS)
    truth = torch.stack([sdediff.interpolate(alone(sde, k), a, b, 4, solver, steps=20) for k in range(3)])
    torch.testing.assert_close(found, truth[LABELS, :, torch.arange(COUNT)].transpose(0, 1), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize(
    "given",
    [
        {},  # some items are solved again on more steps
        {"steps": 12, "trace": "hutchinson", "probes": 1},
        {"target_error": 1e-2, "trace": "hutchinson"},
        {"solver": "dopri5", "rtol": 1e-4, "trace": "hutchinson", "probes": 1},
        {"steps": 12, "differentiable": True},
    ],
    ids=["default", "probes", "target", "adaptive", "differentiable"],
)
def test_likelihoods(given: dict[str, Any]) -> None:
    sde, x = PROCESSES["vp"], items().requires_grad_(given.get("differentiable", False))
    truth = by_kind(lambda own: sdediff.log_likelihood(own, x, **given).log_prob, sde)
    shared = 0.3 if "solver" in given else 1e-6  # one step for a batch, by its worst sample
    for size in (1, 5, None):
        found = sdediff.log_likelihood(labelled(sde), x, condition=LABELS, batch_size=size, **given)
        torch.testing.assert_close(found.log_prob, truth, rtol=0.0, atol=shared)
        if x.requires_grad:
            ours, theirs = (torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in (found.log_prob, truth))
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    wrong = sdediff.log_likelihood(labelled(sde), x, condition=misplaced(LABELS), **given)
    assert float((wrong.log_prob - truth).detach().abs().max()) > 10.0  # the control


def test_likelihoods_of_labels_are_those_of_the_data() -> None:
    """Against the closed form, through the default path with its second solves."""
    x = items()
    exact = torch.stack([kind.log_prob(x) for kind in KINDS])[LABELS, torch.arange(COUNT)]
    found = sdediff.log_likelihood(labelled(PROCESSES["vp"]), x, condition=LABELS)
    torch.testing.assert_close(found.log_prob, exact, rtol=0.0, atol=2e-2)


@pytest.mark.parametrize(
    "given",
    [{"steps": 10}, {"steps": 10, "draws": 4}, {"steps": math.inf, "draws": 8}],
    ids=["every step", "sampled steps", "continuous"],
)
def test_bounds(given: dict[str, Any]) -> None:
    sde, x = PROCESSES["vp"], items()
    truth = by_kind(lambda own: sdediff.elbo(own, x, **given).total, sde)
    for size in (1, 5, None):
        found = sdediff.elbo(labelled(sde), x, condition=LABELS, batch_size=size, **given)
        torch.testing.assert_close(found.total, truth, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("dequantisation", ["uniform", "truncated-normal", "decoder"])
def test_bits(dequantisation: str) -> None:
    sde, info = PROCESSES["vp"], DataInfo((2,), 17, -2.0, 2.0)
    x = ((items() + 2.0) / 0.25).round().clamp(0, 16).long()
    given: dict[str, Any] = {"dequantisation": dequantisation, "samples": 2, "steps": 12}
    truth = by_kind(lambda own: sdediff.bits_per_dim(own, x, **given).bits_per_dim, sde, info)
    for size in (1, 5, None):
        found = sdediff.bits_per_dim(labelled(sde, info), x, condition=LABELS, batch_size=size, **given)
        torch.testing.assert_close(found.bits_per_dim, truth, rtol=1e-7, atol=1e-7)


def test_density_along_with_samples() -> None:
    sde, given = PROCESSES["vp"], {"dtype": torch.float64, "steps": 20}
    x, density = sdediff.sample(
        labelled(sde), (COUNT, 2), condition=LABELS, batch_size=4, return_log_prob=True, **given
    )  # type: ignore[call-overload]
    for i, part in enumerate((x, density)):
        truth = by_kind(lambda own: sdediff.sample(own, (COUNT, 2), return_log_prob=True, **given)[i], sde)  # type: ignore[call-overload] # noqa: B023
        torch.testing.assert_close(part, truth, rtol=1e-9, atol=1e-9)


def test_comparisons_and_tuning() -> None:
    """In several batches as in one, and not as with the labels of other starts."""
    model = labelled(PROCESSES["vp"], DataInfo((2,)))
    rows = [
        sdediff.compare(
            model, (COUNT, 2), ("ode", "ddim"), forwards=(6,), condition=labels, batch_size=size, tolerance=1e-5
        ).rows
        for labels, size in ((LABELS, None), (LABELS, 4), (misplaced(LABELS), None))
    ]
    for one, several, wrong in zip(*rows, strict=True):
        assert one.rms == pytest.approx(several.rms, rel=1e-2)
        assert one.rms != pytest.approx(wrong.rms, rel=1e-2)
    labels = torch.arange(24) % 3
    tuned = [
        sdediff.tuning.tune(
            model, 4, trajectories=16, held_out=8, iterations=2, batch_size=8, condition=condition
        ).before.rms
        for condition in (labels, labels.roll(1))
    ]
    expected = sdediff.tuning.pilot(model, trajectories=16, held_out=8, condition=labels).held_out.clean
    assert tuned[0] != pytest.approx(tuned[1], rel=1e-3)
    own = torch.stack(
        [
            sdediff.tuning.pilot(alone(model.sde, k, model.data), trajectories=16, held_out=8).held_out.clean
            for k in range(3)
        ]
    )
    torch.testing.assert_close(expected, own[labels[16:], torch.arange(8)], rtol=1e-9, atol=1e-9)


def asked(*given: Any, **named: Any) -> list[Any]:
    """What a network is called with."""
    calls: list[Any] = []

    def network(x: Tensor, t: Tensor, *more: Any, **others: Any) -> Tensor:
        calls.append((more, others))
        return x

    model = ScoreModel(network, PROCESSES["vp"])
    sdediff.sample(model, (3, 2), steps=1, condition=given or named or None)
    return calls[-1]  # type: ignore[no-any-return]


def test_forms_of_a_condition() -> None:
    """A tensor and a tuple by place, a dict by name, a row for all repeated; whole numbers stay so."""
    one, table = torch.tensor([4, 5, 6]), torch.rand(1, 2, dtype=torch.float64)
    (first, second), named = asked(one, table)
    assert torch.equal(first, one)
    assert first.dtype == torch.int64
    torch.testing.assert_close(second, table.float().expand(3, 2))
    assert named == {}
    (label,), _ = asked(7)
    assert torch.equal(label, torch.tensor([7, 7, 7]))
    none, named = asked(y=one, z=None)
    assert none == ()
    assert torch.equal(named["y"], one)
    assert named["z"] is None
    assert asked() == ((), {})


def test_conditions_pass_through_wrappers() -> None:
    sde, shape = PROCESSES["vp"], (COUNT, 2)
    model = labelled(sde)
    truth = sdediff.sample(model, shape, condition=LABELS, dtype=torch.float64)
    for wrapped in (Given(model, LABELS), Clip(Given(model, LABELS), -1e9, 1e9), Given(Clip(model, -1e9, 1e9), LABELS)):
        torch.testing.assert_close(sdediff.sample(wrapped, shape, dtype=torch.float64, batch_size=4), truth)
    assert sdediff.sample(Given(model, LABELS), (COUNT, 2), condition=0).shape == shape  # the last one counts


def test_networks_own_neither_the_condition_nor_the_state() -> None:
    """A network that writes to whatever it is given changes nothing for anybody."""

    def spoil(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        result = 0.5 * x * (1.0 + label[:, None])
        for tensor in (x, t, label):
            tensor.zero_()
        return result

    def plain(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + label[:, None])

    labels, x = torch.rand(4, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    for process in ("vp", "ve"):
        for conditioning in ("time", "logsnr"):
            for name in SAMPLERS:
                if process == "ve" and SAMPLERS[name].adaptive:
                    continue
                results = []
                for network in (spoil, plain):
                    model = ScoreModel(network, PROCESSES[process], conditioning=conditioning)
                    kept = x.clone(), labels.clone()
                    results.append(sdediff.solve(model, kept[0], name, condition=kept[1], **options(name)).x)
                    assert torch.equal(kept[0], x)
                    assert torch.equal(kept[1], labels)
                assert torch.equal(*results)


def test_wrong_conditions_are_refused_in_one_line() -> None:
    model, x = labelled(PROCESSES["vp"]), items()
    with pytest.raises(ValueError, match="the condition has 3 rows for 11 items: give one row an item, or one for all"):
        sdediff.log_likelihood(model, x, condition=LABELS[:3])
    with pytest.raises(ValueError, match="have 2 and 3 rows"):
        sdediff.encode(model, x, condition=(LABELS[:3], LABELS[:2]))
    with pytest.raises(ValueError, match="entry 0 is of type str"):
        sdediff.sample(model, (11, 2), condition="dog")
    with pytest.raises(ValueError, match="Oracle takes no condition"):
        sdediff.solve(Oracle(), x, condition=LABELS)


class Oracle(Denoiser):
    """A denoiser of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = KINDS[0].model(PROCESSES["vp"])
        self.sde, self.moments, self.data = self.exact.sde, None, None

    def forward(self, x: Tensor, level: Level) -> sdediff.Split:
        split: sdediff.Split = self.exact(x, level)
        return split


@pytest.mark.parametrize("labels", ["all", "as many"])
def test_functions_that_hide_labels_are_noticed(labels: str) -> None:
    """Where the batch is split, whichever rows leave; a function of the item alone is left in peace."""
    sde, x = PROCESSES["vp"], items()
    inner = labelled(sde).network

    def hidden(x: Tensor, level: Level) -> Tensor:
        return inner(x, level, LABELS if labels == "all" else LABELS[: len(x)])

    def fair(x: Tensor, level: Level) -> Tensor:
        return inner(x, level, torch.zeros(len(x), dtype=torch.int64))

    for call in (
        lambda model: sdediff.encode(model, x),
        lambda model: sdediff.log_likelihood(model, x),
        lambda model: sdediff.log_likelihood(model, x, batch_size=4),
        lambda model: sdediff.sample(model, (COUNT, 2), batch_size=4),
    ):
        with pytest.raises(ValueError, match="has to be given as condition="):
            call(ScoreModel(hidden, sde, "v_prediction", conditioning="level"))
        call(ScoreModel(fair, sde, "v_prediction", conditioning="level"))
