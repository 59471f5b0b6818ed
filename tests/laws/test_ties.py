"""What is rounded to an instant of a chain is not decided by the last bit, which is another on another processor."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
import torch

from sdediff import DDPM
from sdediff.conditioning import CONDITIONINGS
from sdediff.grids import GRIDS
from sdediff.numerics import to_nearest

LAST_BITS = (-1e-12, 0.0, 1e-12)


def test_halves_go_down_whatever_their_last_bits() -> None:
    halves = torch.arange(0, 5000, dtype=torch.float64) + 0.5
    for error in LAST_BITS:
        assert torch.equal(to_nearest(halves + error), halves - 0.5)
        assert torch.equal(to_nearest(halves + 0.5 + error), halves + 0.5)
    assert not torch.equal((halves - 1e-12).round(), (halves + 1e-12).round())  # the control


@pytest.mark.parametrize("length", [10, 100, 1000])
def test_strided_chains_are_those_of_exact_arithmetic(length: int) -> None:
    """The nodes of rational numbers, ties included: 1,000 instants in 80 steps have forty of them."""
    chain, ties = DDPM.linear(length), 0
    for steps in (*range(1, length + 1, max(1, length // 100)), 16 % length, 80 % length or 1):
        places = [Fraction(length * k, steps) for k in range(steps, -1, -1)]
        nodes = [ceil(place - Fraction(1, 2)) for place in places]
        ties += sum(place - node == Fraction(1, 2) for place, node in zip(places, nodes, strict=True))
        assert torch.equal(GRIDS["chain"](chain, steps, 1.0, 0.0), chain.instants[nodes]), steps
    assert ties > 0


def test_nodes_half_way_between_instants_stay_where_they_are() -> None:
    """One step of the chain apart, at halves: moved to the nearest, two of them could meet."""
    chain = DDPM.linear(100)
    times = (torch.arange(40, 20, -1, dtype=torch.float64) + 0.5) / 100
    snap = CONDITIONINGS["instants"].snap
    bits = torch.tensor(LAST_BITS, dtype=torch.float64).repeat(7)[:20] / 100
    for sign in (-1.0, 0.0, 1.0):
        torch.testing.assert_close(snap(chain, times + sign * bits), times, rtol=0.0, atol=1e-13)
    moved = snap(chain, times - 0.1 / 100)[1:-1]  # the control: nearer to one, they move to it
    torch.testing.assert_close(moved, (times - 0.5 / 100)[1:-1], rtol=1e-15, atol=0.0)
