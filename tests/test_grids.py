"""Every grid on every process: exact ends, strictly monotone, and spaced as it says."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from catalogue import PROCESSES
from sdediff import DDPM, GRIDS, SAMPLERS, SDE, VPSDE, ScoreModel
from sdediff.grids import Clock, Grid, Mixed, Power, Reference, graded
from sdediff.sampling import node_times

STEPS = (1, 2, 3, 10, 50)


def ends(sde: SDE) -> list[tuple[float, float]]:
    """Down to the smallest level, to the data, part of the way, from the exact end, and back up."""
    down = [(sde.t_max, sde.t_min), (sde.t_max, 0.0), (0.8, 0.2), (1.0, sde.t_min), (1.0, 0.0)]
    return down + [(b, a) for a, b in down]


@pytest.mark.parametrize("name", GRIDS)
def test_nodes(name: str, sde: SDE) -> None:
    """N + 1 nodes, exact ends, monotone, none outside the process's domain or the interval.

    A chain's grid cannot place more nodes than there are instants between the ends; it must say so.
    """
    for t_from, t_to in ends(sde):
        for steps in STEPS:
            low, high = min(t_from, t_to), max(t_from, t_to)
            instants = sde.instants
            if name == "chain" and instants is not None and steps > len(instants[(instants > low) & (instants < high)]):
                continue
            times = GRIDS[name](sde, steps, t_from, t_to)
            assert times.dtype == torch.float64
            assert len(times) == steps + 1
            assert (float(times[0]), float(times[-1])) == (t_from, t_to)
            assert bool((times.diff() * math.copysign(1.0, t_to - t_from) > 0.0).all())
            assert bool(((times >= low) & (times <= high)).all())
            assert all(math.isfinite(level.sigma) for level in sde.levels(times))


@pytest.mark.parametrize("name", GRIDS)
def test_up_is_down_reversed(name: str, sde: SDE) -> None:
    # a time midway between two instants of a chain may go to either
    midway = 0.0 if name != "chain" or sde.instants is None else float(sde.instants[1])
    for t_from, t_to in ((sde.t_max, sde.t_min), (0.8, 0.2)):
        down, up = (GRIDS[name](sde, 8, *pair) for pair in ((t_from, t_to), (t_to, t_from)))
        torch.testing.assert_close(up.flip(0), down, rtol=1e-9, atol=1e-12 + midway)


CLOCKS = {
    "time": lambda sde, t: t,
    "quadratic": lambda sde, t: t.sqrt(),
    "cubic": lambda sde, t: t ** (1.0 / 3.0),
    "angle": lambda sde, t: torch.atan2(sde.sigma(t), sde.alpha(t)),
    "asinh": lambda sde, t: torch.asinh(sde.sigma(t) / sde.alpha(t) / 0.03),
    "logsnr": lambda sde, t: sde.half_log_snr(t),
    "karras": lambda sde, t: torch.exp(-sde.half_log_snr(t) / 7.0),
    "reference": lambda sde, t: VPSDE().time(sde.half_log_snr(t)) ** (1.0 / 2.75),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_spacing(name: str, sde: SDE) -> None:
    """Equal steps on the grid's own clock; and on no other, which is the control."""
    times = GRIDS[name](sde, 12, sde.t_max, 1e-3)

    def equal(clock: str) -> bool:
        widths = CLOCKS[clock](sde, times).diff()
        return bool(((widths / widths.mean() - 1.0).abs() < 1e-6).all())

    assert equal(name)
    same_as_time = {"logsnr"} if sde is PROCESSES["ve"] else set()  # the geometric process's log-SNR is linear in t
    strangers = set(CLOCKS) - {name}
    if name in {"time", "logsnr"}:
        strangers -= {"time"} if name in same_as_time else same_as_time
    assert not any(equal(clock) for clock in strangers)


def test_a_mixed_grid_has_the_mean_of_both_shares(sde: SDE) -> None:
    """Of the nodes up to each of its own, by the clocks of the two; not that of either alone."""
    times = Mixed()(sde, 9, sde.t_max, sde.t_min)
    shares = []
    for grid in (Mixed.first, Mixed.second):
        assert isinstance(grid, Clock)
        clock = grid.clock(sde, times)
        shares.append((clock - clock[0]) / (clock[-1] - clock[0]))
    wanted = torch.linspace(0.0, 1.0, 10, dtype=torch.float64)
    torch.testing.assert_close(0.5 * (shares[0] + shares[1]), wanted, rtol=0.0, atol=1e-3)
    assert all(float((share - wanted).abs().max()) > 1e-2 for share in shares)


def test_exponential_is_uniform_log_sigma() -> None:
    """The name that diffusers and k-diffusion have for it; their sigma is the ratio."""
    assert GRIDS["exponential"] == GRIDS["logsnr"]
    times = GRIDS["exponential"](VPSDE(), 12, 1.0, 1e-3)
    ratio = VPSDE().sigma(times) / VPSDE().alpha(times)
    torch.testing.assert_close((ratio[1:] / ratio[:-1]).log(), (ratio[-1] / ratio[0]).log().expand(12) / 12)


def test_clocks_that_are_finite_at_the_data_run_into_them() -> None:
    """N equal steps to sigma = 0; log-SNR grids need one of the N to get there."""
    for name in ("angle", "asinh"):
        levels = VPSDE().levels(GRIDS[name](VPSDE(), 10, 1.0, 0.0))
        clock = torch.tensor([level.angle for level in levels], dtype=torch.float64)
        clock = torch.asinh(clock.tan() / 0.03) if name == "asinh" else clock
        torch.testing.assert_close(clock.diff(), (-clock[0] / 10).expand(10), rtol=1e-6, atol=0.0)


def test_quadratic_is_the_reference_on_the_standard_process() -> None:
    one, other = (grid(VPSDE(), 20, 1.0, 1e-3) for grid in (Power(2.0), Reference(2.0)))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=0.0)


def test_many_nodes_stay_inside_the_process() -> None:
    """``(1 / 400)^2`` is below t_min: the last of 400 steps then leads from t_min to the data."""
    for name in ("quadratic", "cubic", "reference"):
        times = GRIDS[name](VPSDE(), 400, 1.0, 0.0)
        assert float(times[-2]) == pytest.approx(VPSDE().t_min, rel=1e-9)
        assert bool((times.diff() < 0.0).all())


def test_grids_on_log_snr_end_with_a_denoising_step() -> None:
    """To the data in N steps: N - 1 to t_min, one to 0."""
    for name in ("logsnr", "karras"):
        times = GRIDS[name](VPSDE(), 10, 1.0, 0.0)
        assert float(times[-2]) == pytest.approx(VPSDE().t_min, rel=1e-9)
        torch.testing.assert_close(times[:-1], GRIDS[name](VPSDE(), 9, 1.0, VPSDE().t_min), rtol=1e-9, atol=0.0)


def test_strided_chains_stay_on_the_instants() -> None:
    chain = DDPM.linear(1000)
    for steps in (1, 3, 7, 250, 1000):
        times = GRIDS["chain"](chain, steps, 1.0, 0.0) * 1000
        assert torch.equal(times, times.round())
    assert GRIDS["chain"].default_steps(DDPM.linear(100), 1000) == 100
    assert GRIDS["chain"].default_steps(VPSDE(), 1000) == 1000


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_impossible_grids_are_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        grid(VPSDE(), 0, 1.0, 0.0)
    with pytest.raises(ValueError, match="must differ"):
        grid(VPSDE(), 5, 0.5, 0.5)
    with pytest.raises(ValueError, match="too many"):
        GRIDS["chain"](DDPM.linear(10), 20, 1.0, 0.0)


@pytest.mark.parametrize("name", GRIDS)
def test_a_graded_start_takes_its_nodes_from_the_first_step(name: str, sde: SDE) -> None:
    """As many nodes, in order; the first steps at most double, and all but them are those of a grid of fewer steps."""
    t_from, grid = float(sde.time(0.0)), GRIDS[name]
    for t_to, steps, rise in product((sde.t_min, 0.0), (1, 2, 5, 20), (1, 2, 3, 5)):
        if name == "chain" and sde.instants is not None:
            continue
        times = graded(grid, sde, steps, t_from, t_to, rise)
        assert (len(times), float(times[0]), float(times[-1])) == (steps + 1, t_from, t_to)
        assert bool((times.diff() < 0.0).all())
        plain = grid(sde, steps, t_from, t_to)
        if rise <= 2 or grid.bound:
            assert torch.equal(times, plain)
            continue
        extra = next(m for m in range(steps) if torch.equal(times[m + 1 :], grid(sde, steps - m, t_from, t_to)[1:]))
        ratios = times.diff()[1 : extra + 1] / times.diff()[:extra]
        assert bool(((ratios > 1.0 - 1e-9) & (ratios < 2.0 + 1e-9)).all())
    assert not torch.equal(
        graded(GRIDS["reference"], sde, 20, t_from, 0.0, 4), GRIDS["reference"](sde, 20, t_from, 0.0)
    )


def test_who_gets_a_graded_start() -> None:
    """Methods of more than two values, on a grid by rule, from inside, if the network may be asked anywhere."""
    model, instants = (
        ScoreModel(lambda x, _: x, DDPM.linear(1000), conditioning=how) for how in ("time", "interpolated")
    )
    ends = (0.3, 0.0)
    plain = GRIDS["reference"](model.sde, 20, *ends)
    assert not torch.equal(node_times(SAMPLERS["ab4"], model, 20, None, ends), plain)
    assert torch.equal(node_times(SAMPLERS["ab2"], model, 20, None, ends), plain)
    assert torch.equal(node_times(SAMPLERS["ab4"], model, 20, plain, ends), plain)
    assert torch.equal(node_times(SAMPLERS["ab4"], instants, 20, None, ends), instants.snap(plain))
    full = GRIDS["reference"](model.sde, 20, 1.0, 0.0)
    assert torch.equal(node_times(SAMPLERS["ab4"], model, 20, None, (1.0, 0.0)), full)


def test_kept_nodes_are_the_same_and_nobody_elses() -> None:
    first = GRIDS["mixed"](VPSDE(), 7, 1.0, 0.0)
    expected = first.clone()
    first.zero_()  # what is done to one solve's nodes
    assert torch.equal(GRIDS["mixed"](VPSDE(), 7, 1.0, 0.0), expected)
    assert not torch.equal(GRIDS["mixed"](VPSDE(beta_max=10.0), 7, 1.0, 0.0), expected)


def test_processes_that_are_no_keys_have_nodes_too() -> None:
    class Listed(VPSDE):
        __hash__ = None  # type: ignore[assignment]  # as of one with an array among its fields

    assert torch.equal(GRIDS["mixed"](Listed(), 7, 1.0, 0.0), GRIDS["mixed"](VPSDE(), 7, 1.0, 0.0))
