"""Moments of data: the diagonal is that of the covariance, of the items there are."""

from __future__ import annotations

import torch

from sdediff.gaussian import Moments


def test_the_diagonal_alone_is_that_of_the_whole_covariance() -> None:
    """Means over the items, not over one less: five of them, where that is a quarter more."""
    data = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, diagonal = Moments.fit(data, shrink=False), Moments.fit(data, covariance="diagonal", shrink=False)
    assert whole.basis is not None
    covariance = whole.basis * whole.variances @ whole.basis.T
    expected = (data.flatten(1) - data.flatten(1).mean(dim=0)).square().mean(dim=0)
    torch.testing.assert_close(covariance.diagonal(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(diagonal.variances, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(diagonal.mean, data.mean(dim=0))
    assert diagonal.basis is None
