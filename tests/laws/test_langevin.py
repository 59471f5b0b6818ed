"""The corrector's move is that of Song et al. (2021), appendix G, where a step in lambda is long."""

from __future__ import annotations

import math

import pytest
import torch

from catalogue import MIXTURE
from sdediff import VPSDE, NoiseSource, solve
from sdediff.samplers import PredictorCorrector


@pytest.mark.parametrize("snr", [0.1, 0.3])
@pytest.mark.parametrize("times", [(1.0, 0.3), (0.4, 0.35)], ids=["long", "short"])
def test_a_move_is_songs(times: tuple[float, float], snr: float) -> None:
    """``x + e score + sqrt(2 e) z`` with ``e = 2 (snr |z| / |score|)^2``, at most what pure noise gets; on a step in
    lambda of share < 1, e and the part of a sample's own norms in it count by that share."""
    sde, model, (t, s) = VPSDE(), MIXTURE.model(VPSDE()), times
    x = sde.prior_sample((40, 2), seed=4, dtype=torch.float64)
    found = solve(model, x, PredictorCorrector(snr, 1), grid=list(times), seed=7).x
    noise = NoiseSource(7, (40, 2), dtype=torch.float64)
    mean, std = sde.bridge(x, model.denoise(x, t), t, s)
    y = mean + std * noise.normal(0, 0)
    z, score = noise.normal(0, 1), model.score(y, s)
    share = min(1.0, float(sde.half_log_snr(s) - sde.half_log_snr(t)))
    songs = 2.0 * (snr * z.norm(dim=1) / score.norm(dim=1)) ** 2
    most = 2.0 * (snr * float(sde.sigma(s))) ** 2
    own = songs.clamp(max=most)
    e = (share * (most + share * (own - most)))[:, None]
    torch.testing.assert_close(found, y + e * score + (2.0 * e).sqrt() * z, rtol=1e-9, atol=1e-9)
    assert 0.1 < float((songs > most).double().mean()) < 0.9  # either case is there
    assert math.isclose(share, 1.0) == (t == 1.0)
