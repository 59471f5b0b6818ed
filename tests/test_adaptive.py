"""The adaptive solver of the probability-flow ODE: exact cases, what a refused step leaves, tolerances, company."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from catalogue import MIXTURE, PROCESSES
from sdediff import SDE, Level, NoiseSource, ScoreModel, decode, encode, solve
from sdediff.dynamics import Frame
from sdediff.samplers import interpolation
from sdediff.samplers.adaptive import AdamsState, Adaptive
from sdediff.samplers.clocks import clock_of, tan_of
from sdediff.samplers.exponential import INTEGRANDS
from sdediff.samplers.interpolation import divided_difference_weights
from sdediff.samplers.per_sample import clock_of_level, longest_steps

VP = PROCESSES["vp"]
MODEL = MIXTURE.model(VP)


def starts(count: int, sde: SDE = VP, first: int = 0) -> Tensor:
    noise = NoiseSource(5, (count, 2), first=first, dtype=torch.float64)
    return sde.prior_sample((count, 2), moments=MIXTURE.moments, noise=noise)


def field(power: int, sde: SDE = VP) -> ScoreModel:
    """A model whose velocity is a power of the clock, whatever the state."""

    def velocity(x: Tensor, level: Level) -> Tensor:
        tan = np.exp(-torch.as_tensor(level.half_log_snr, dtype=torch.float64).numpy())
        return torch.from_numpy(np.broadcast_to(clock_of(tan) ** power, len(x)).copy())[:, None].expand_as(x)

    return ScoreModel(velocity, sde, prediction="v_prediction", conditioning="level")


def test_the_clock_has_an_inverse() -> None:
    tan = np.logspace(-6, 6, 49)
    np.testing.assert_allclose(tan_of(clock_of(tan)), tan, rtol=1e-9)  # 1e6 / FAR from the far end's pole


def test_newton_s_weights_are_the_family_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same integral as the fixed-step solvers', which solve for Lagrange's weights: equal to rounding."""
    monkeypatch.setitem(interpolation.CLOCKS, "here", lambda angle: clock_of(np.tan(angle)))
    levels = VP.levels([0.9, 0.7, 0.62, 0.31, 0.2, 0.13])
    values = np.random.default_rng(0).standard_normal(5)
    known, (here, there) = levels[4::-1], levels[4:6]
    lagrange = interpolation.weights(INTEGRANDS["velocity"](), "here", "exact", known, here, there) @ values
    nodes = np.array([clock_of_level(level) for level in known])
    table, row = [values[0]], values
    for p in range(1, 5):
        row = (row[:-1] - row[1:]) / (nodes[: 5 - p] - nodes[p:])
        table.append(row[0])
    ours = divided_difference_weights(nodes[:1], np.array([clock_of_level(there)]), nodes[None], 5)[0]
    assert math.isclose(ours @ np.array(table), lagrange, rel_tol=1e-11)
    swapped = divided_difference_weights(nodes[:1], np.array([clock_of_level(there)]), nodes[None, ::-1], 5)[0]
    assert not math.isclose(swapped @ np.array(table), lagrange, rel_tol=1e-6)  # the control: nodes in another order


def test_a_step_reaches_what_it_aims_at() -> None:
    nodes = np.array([[0.8, 0.95, 1.15, 1.3]])
    for order in (1, 2, 3):
        length = longest_steps(
            nodes[:, 0], np.array([-0.8]), nodes, np.array([order]), np.array([7.0]), 1e-3, np.array([0.2])
        )
        error = 7.0 * abs(divided_difference_weights(nodes[:, 0], nodes[:, 0] - length, nodes, order + 1)[0, order])
        assert math.isclose(error, 1e-3, rel_tol=1e-2)


@pytest.mark.parametrize("ends", [(1.0, 1e-3), (1e-3, 1.0)])
def test_what_is_linear_in_the_clock_is_exact_at_any_tolerance(ends: tuple[float, float]) -> None:
    """The lowest corrector integrates a line, so that even the first step is exact; a cubic is not."""
    x = torch.zeros(3, 2, dtype=torch.float64)
    start, end = VP.levels(ends)
    fine = np.linspace(clock_of_level(start), clock_of_level(end), 2001)[:, None]
    for power, exact in ((0, True), (1, True), (3, False)):
        model, tolerance = field(power), 1e-2
        pieces = divided_difference_weights(
            fine[:-1, 0], fine[1:, 0], np.zeros((2000, 3)), 4
        )  # nodes at 0: powers of the clock
        truth = float(pieces[:, power].sum())
        found = solve(model, x, "adaptive", t_from=ends[0], t_to=ends[1], rtol=tolerance).x
        assert torch.allclose(found, torch.full_like(found, truth), rtol=0.0, atol=1e-11) == exact


def test_a_refused_step_leaves_no_trace() -> None:
    """Same state, history and order at most; only a shorter plan. A step that fits moves on."""
    sampler, (start, stop) = Adaptive(1e-6, 1e-6), VP.levels([0.6, 1e-3])
    frame, x = Frame(MODEL, VP), starts(4)
    value = MODEL(x, start).mix(-start.sin, start.cos)
    here = np.full(4, clock_of_level(start))
    for length, refused in ((0.5, True), (1e-5, False)):
        ones = np.ones(4, dtype=np.int64)
        table = torch.cat([value[:, None], torch.zeros(4, 5, 2, dtype=torch.float64)], dim=1)
        nodes = np.concatenate([here[:, None], np.zeros((4, 5))], axis=1)
        before = AdamsState(np.arange(4), x, table, nodes, ones, ones, np.full(4, length))
        after = sampler._advance(frame, before, x.shape[1:], stop, clock_of_level(stop))
        assert torch.equal(after.y, before.y) == refused
        assert torch.equal(after.table, before.table) == refused
        assert np.array_equal(after.nodes, before.nodes) == refused
        assert np.array_equal(after.filled, before.filled) == refused
        assert bool((after.length < before.length).all()) == refused


def test_a_call_holds_all_who_are_under_way(sde: SDE) -> None:
    """The batch costs the calls of its slowest sample, and the network sees as many items as if each went alone."""
    seen = []

    class Counting(ScoreModel):
        def forward(self, x: Tensor, level: Level):  # type: ignore[no-untyped-def]
            seen.append(len(x))
            return super().forward(x, level)

    exact = MIXTURE.model(sde)
    model = Counting(exact.network, sde, prediction="v_prediction", conditioning="level")
    whole = solve(model, starts(6, sde), "adaptive", rtol=1e-4, t_to=sde.t_min)
    items = sum(seen)
    alone = [solve(model, starts(1, sde, first=k), "adaptive", rtol=1e-4, t_to=sde.t_min) for k in range(6)]
    assert whole.nfe == max(s.nfe for s in alone)
    assert items == sum(s.nfe for s in alone)
    assert len({s.nfe for s in alone}) > 1  # else the law says nothing
    torch.testing.assert_close(whole.x, torch.cat([s.x for s in alone]), rtol=1e-11, atol=1e-11)


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return solve(MODEL, starts(24), "adaptive", rtol=1e-10, t_to=1e-3).x


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6, 1e-8])
def test_the_error_is_about_what_was_permitted(tolerance: float, truth: Tensor) -> None:
    """Within a factor of ten above (errors of steps add up) and a thousand below; the truth at 1e-10."""
    error = float((solve(MODEL, starts(24), "adaptive", rtol=tolerance, t_to=1e-3).x - truth).square().mean().sqrt())
    assert 1e-3 * tolerance < error < 10.0 * tolerance


def test_there_and_back() -> None:
    """Decoding undoes encoding up to the tolerance times the flow's stretch: from noise to the narrowest data here,
    and back, 1 / sqrt(0.07) = 4; thirty steps each way, and not one of them free."""
    x = MIXTURE.sample(24)
    for tolerance in (1e-3, 1e-6):
        z = encode(MODEL, x, rtol=tolerance)
        error = float((decode(MODEL, z, rtol=tolerance) - x).square().mean().sqrt())
        assert 1e-4 * tolerance < error < 40.0 * tolerance


def test_planned_steps_are_seldom_refused_and_high_orders_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan aims at a good part of the tolerance, by the same estimate as that which then judges the step."""
    refused, orders, whole = [], [], Adaptive._advance

    def watched(self: Adaptive, frame: Frame, flight: AdamsState, *rest: Any) -> AdamsState:
        after = whole(self, frame, flight, *rest)
        refused.extend((after.nodes[:, 0] == flight.nodes[:, 0]).tolist())
        orders.extend(after.order.tolist())
        return after

    monkeypatch.setattr(Adaptive, "_advance", watched)
    nfe = solve(MODEL, starts(8), "adaptive", rtol=1e-6, t_to=1e-3).nfe
    assert nfe < 100
    assert sum(refused) < 0.15 * len(refused)
    assert max(orders) >= 4


def test_looser_tolerances_cost_less() -> None:
    costs = [solve(MODEL, starts(8), "adaptive", rtol=tolerance).nfe for tolerance in (1e-2, 1e-4, 1e-6)]
    assert costs[0] < costs[1] < costs[2]


def test_single_precision_reaches_its_own_rounding(truth: Tensor) -> None:
    found = solve(MODEL, starts(24).float(), "adaptive", rtol=1e-5, t_to=1e-3).x
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), truth, rtol=0.0, atol=1e-4)


def test_gradients_flow() -> None:
    x = starts(2).requires_grad_()
    (grad,) = torch.autograd.grad(solve(MODEL, x, "adaptive", rtol=1e-6, t_to=1e-3).x.sum(), x)
    step = 1e-4 * torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    up, down = (solve(MODEL, x.detach() + s, "adaptive", rtol=1e-8, t_to=1e-3).x.sum() for s in (step, -step))
    assert float(grad[0, 0]) == pytest.approx(float(up - down) / 2e-4, rel=1e-3)


def test_a_model_that_is_not_finite_is_reported() -> None:
    broken = ScoreModel(lambda x, t: torch.full_like(x, math.nan), VP)
    with pytest.raises(FloatingPointError, match="shrank to nothing"):
        solve(broken, starts(2), "adaptive")


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1.0}, {"highest": 0}, {"highest": 9}])
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Adaptive(**options)  # type: ignore[arg-type]
