"""Interpolation by a kernel: the network's error as it is magnified, and the polynomial that short steps leave."""

from __future__ import annotations

import numpy as np
import pytest

from sdediff.samplers import interpolation
from sdediff.samplers.interpolation import cardinals, error_deviation, lagrange


def test_an_error_counts_as_often_as_it_is_magnified() -> None:
    """Nothing is added where nothing is magnified; far from there the deviation is in proportion to the gain."""
    small, twice, large = (float(error_deviation(np.array([gain]))[0]) for gain in (1.0, 2.0, 1e4))
    assert float(error_deviation(np.array([0.1]))[0]) == small
    assert twice**2 - small**2 == pytest.approx(
        3.0 * (error_deviation(np.array([2.0**0.5]))[0] ** 2 - small**2), rel=1e-9
    )
    assert float(error_deviation(np.array([2e4]))[0]) == pytest.approx(2.0 * large, rel=1e-6)


@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7])
def test_on_short_steps_it_is_the_polynomial(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flat limit (Driscoll & Fornberg 2002), where the kernel's matrix is singular to rounding; left to it alone,
    the weights are noise. Four values, extrapolated over a step of their own length."""
    known, at = 0.7 + step * np.array([0.0, 1.0, 2.1, 3.0]), 0.7 - step * np.linspace(0.1, 0.9, 5)
    exact = lagrange(known, at)
    np.testing.assert_allclose(cardinals(known, at), exact, rtol=0.0, atol=max(1e-9, 10.0 * step))
    np.testing.assert_allclose(cardinals(known, at).sum(axis=0), 1.0, rtol=0.0, atol=max(1e-9, step))
    if step < 1e-6:
        monkeypatch.setattr(interpolation, "_LARGEST_CONDITION", np.inf)
        assert np.abs(cardinals(known, at) - exact).max() > 0.1
