"""Noise is a function of (seed, sample, step, stage) and of nothing else; a Brownian path is one path on any grid."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from sdediff import BrownianPath, NoiseSource
from sdediff.noise import BROWNIAN_STEP, _box_muller

DOUBLE = torch.float64


def test_a_sample_s_noise_does_not_depend_on_its_batch() -> None:
    whole = NoiseSource(7, (64, 3, 2))
    for step, stage in ((NoiseSource.START, 0), (0, 0), (5, 1), (10**6, 3)):
        z = whole.normal(step, stage)
        for k in (0, 13, 63):
            assert torch.equal(NoiseSource(7, (1, 3, 2), first=k).normal(step, stage)[0], z[k])
        assert torch.equal(NoiseSource(7, (3, 3, 2), samples=(63, 0, 13)).normal(step, stage), z[[63, 0, 13]])


def test_order_of_draws_does_not_matter(global_generators_untouched: None) -> None:
    one, other = NoiseSource(3, (4, 5)), NoiseSource(3, (4, 5))
    forwards = [one.normal(step) for step in range(6)]
    backwards = [other.normal(step) for step in reversed(range(6))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert torch.equal(one.normal(2), forwards[2])


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, 12345678901234567890])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert torch.equal(NoiseSource(seed, (1, 4)).normal(0), NoiseSource(seed, (1, 4)).normal(0))
    assert not torch.equal(NoiseSource(seed, (1, 4)).normal(0), NoiseSource(seed + 1, (1, 4)).normal(0))


def test_dtypes() -> None:
    """Each precision has its own stream at full resolution; half precision is the float32 stream rounded."""
    single, double = NoiseSource(1, (2, 1000)).normal(0), NoiseSource(1, (2, 1000), dtype=DOUBLE).normal(0)
    assert (single.dtype, double.dtype) == (torch.float32, DOUBLE)
    assert float((double - double.float().double()).abs().max()) > 0.0
    assert torch.equal(NoiseSource(1, (2, 1000), dtype=torch.float16).normal(0), single.half())


def test_wrong_number_of_indices_is_refused() -> None:
    with pytest.raises(ValueError, match="3 sample indices for a batch of 2"):
        NoiseSource(0, (2, 1), samples=(1, 2, 3))


SIZE = 20_000
STREAMS = {
    "seeds": [(seed, 0, 0, 0) for seed in (0, 1, 2, 1 << 32)],
    "samples": [(0, k, 0, 0) for k in (0, 1, 2, 1 << 32)],
    "steps": [(0, 0, step, 0) for step in (-1, 0, 1, 2)],
    "stages": [(0, 0, 0, stage) for stage in (0, 1, 2, 3)],
    "mixed": [(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)],
}


def stream(seed: int, sample: int, step: int, stage: int) -> np.ndarray:
    return NoiseSource(seed, (1, SIZE), samples=(sample,), dtype=DOUBLE).normal(step, stage)[0].numpy()


def dependent(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the correlation of two streams, or of their squares, or one shifted against the other, is beyond 5.3
    standard errors: 1.2e-7 by chance each."""
    pairs = ((a, b), (a**2, b**2), (a[1:], b[:-1]), (a[:-1], b[1:]))
    return any(abs(np.corrcoef(u, v)[0, 1]) * math.sqrt(len(u)) > 5.3 for u, v in pairs)


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_are_independent(kind: str) -> None:
    """Six pairs of four tests each: a false alarm in 3e-6 over a kind."""
    draws = [stream(*key) for key in STREAMS[kind]]
    assert not any(dependent(a, b) for a, b in itertools.combinations(draws, 2))


def test_dependence_is_caught() -> None:
    a, b = stream(0, 0, 0, 0), stream(0, 1, 0, 0)
    assert dependent(a, a)
    assert dependent(a, np.roll(a, 1))
    assert dependent(a, 0.05 * a + b)


def not_normal(z: np.ndarray) -> bool:
    """Kolmogorov-Smirnov at 1e-6."""
    return bool(stats.kstest(z, "norm").pvalue < 1e-6)


def test_draws_are_standard_normal() -> None:
    """A false alarm in 3e-6."""
    assert not not_normal(stream(4, 3, 2, 1))
    many_samples = NoiseSource(4, (SIZE, 1), dtype=DOUBLE).normal(0)[:, 0].numpy()
    assert not not_normal(many_samples)
    many_steps = np.array([float(NoiseSource(4, (1, 1), dtype=DOUBLE).normal(k)) for k in range(2000)])
    assert not not_normal(many_steps)
    assert not_normal(1.15 * many_samples)


def test_draws_are_the_transform_of_box_and_muller() -> None:
    """Known answers: the words of the hashed stream, two by two, through the formula as it is printed."""
    seed, samples, step, stage, size = 7, (2, 3, 11), -1, 4, 5
    pairs = 3  # of a sample; the last normal of the last pair is spent
    for dtype, width in ((torch.float32, 32), (DOUBLE, 64)):
        key = [part for word in (seed, step % 2**64, stage) for part in (word % 2**32, word >> 32)]
        stream = np.random.PCG64DXSM(np.random.SeedSequence(key)).random_raw(12 * pairs * 2)
        words = [int(w) for word in stream for w in ((word,) if width == 64 else (word & 0xFFFFFFFF, word >> 32))]
        rows = []
        for sample in samples:
            own = words[sample * pairs * 2 : (sample + 1) * pairs * 2]
            radii = [math.sqrt(-2.0 * math.log((u + 0.5) / 2**width)) for u in own[0::2]]
            angles = [2.0 * math.pi * v / 2**width for v in own[1::2]]
            rows.append([r * f(v) for r, v in zip(radii, angles, strict=True) for f in (math.cos, math.sin)][:size])
        came = NoiseSource(seed, (3, 5), samples=samples, dtype=dtype).normal(step, stage)
        tolerance = 2e-6 if width == 32 else 1e-14  # a few roundings, and the angle's of pi
        torch.testing.assert_close(came.double(), torch.tensor(rows, dtype=DOUBLE), rtol=tolerance, atol=tolerance)


def test_single_precision_has_the_tails_and_the_middle() -> None:
    """Of 4 million float32 normals, those beyond 4 and 5 and within 0.001 of zero: 266, 2.4 and 3347 by the law, each
    count with 1e-6 of either tail: a false alarm in 6e-6. Radii cut off by a coarse u, of 8 bits, are caught."""

    def strange(z: np.ndarray) -> bool:
        counts = ((np.abs(z) > 4.0), (np.abs(z) > 5.0), (np.abs(z) < 1e-3))
        chances = (2.0 * stats.norm.sf(4.0), 2.0 * stats.norm.sf(5.0), 2.0 * stats.norm.cdf(1e-3) - 1.0)
        tails = [
            min(stats.poisson.cdf(hits.sum(), z.size * p), stats.poisson.sf(hits.sum() - 1, z.size * p))
            for hits, p in zip(counts, chances, strict=True)
        ]
        return min(tails) < 1e-6

    z = np.concatenate([NoiseSource(5, (64, 1024)).normal(step).numpy().ravel() for step in range(64)])
    assert not strange(z)
    assert not not_normal(z[::16])
    u = (np.random.Generator(np.random.PCG64(0)).integers(0, 2**8, z.size // 2) + 0.5) / 2**8
    angle = 2.0 * np.pi * np.random.Generator(np.random.PCG64(1)).random(z.size // 2)
    radius = np.sqrt(-2.0 * np.log(u))
    assert strange(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]))


# ---- Brownian paths ------------------------------------------------------------------------------------------


def brownian(samples: int = 4, depth: int = 20) -> BrownianPath:
    return BrownianPath(NoiseSource(11, (samples, 2), dtype=DOUBLE), -2.0, 3.0, depth)


def test_increments_add_up() -> None:
    """On any grid: the increments over the parts sum to that over the whole, to rounding."""
    whole = brownian().increment(-2.0, 3.0)
    for steps in (2, 3, 7, 64):
        path, nodes = brownian(), torch.linspace(-2.0, 3.0, steps + 1).tolist()
        parts = [path.increment(s, t) for s, t in itertools.pairwise(nodes)]
        torch.testing.assert_close(torch.stack(parts).sum(dim=0), whole, rtol=0.0, atol=1e-13)


def test_reading_order_does_not_matter() -> None:
    nodes = torch.linspace(-2.0, 3.0, 17).tolist()
    intervals = list(itertools.pairwise(nodes))
    one, other = brownian(), brownian()
    forwards = [one.increment(*interval) for interval in intervals]
    backwards = [other.increment(*interval) for interval in reversed(intervals)]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_a_sample_s_path_does_not_depend_on_its_batch() -> None:
    assert torch.equal(brownian(4).increment(0.1, 1.7)[:2], brownian(2).increment(0.1, 1.7))


def test_increments_are_white() -> None:
    """On eight unequal intervals of 4,000 paths: variances equal lengths (5.3 standard errors each) and increments are
    uncorrelated (5.3 each): 36 tests at 1.2e-7, a false alarm in 4e-6. A path whose midpoints are drawn with the
    variance of the whole interval is caught."""
    nodes = [-2.0, -1.9, -1.0, -0.75, 0.5, 0.51, 1.0, 2.4, 3.0]
    lengths = np.diff(nodes)

    def white(path: BrownianPath) -> bool:
        rows = [path.increment(s, t).numpy().ravel() for s, t in itertools.pairwise(nodes)]
        w = np.stack(rows) / np.sqrt(lengths)[:, None]
        count = w.shape[1]
        variances = np.abs((w**2).mean(axis=1) - 1.0) * math.sqrt(count / 2.0)
        correlations = np.abs(np.corrcoef(w)[np.triu_indices(len(w), 1)]) * math.sqrt(count)
        return bool(variances.max() < 5.3 and correlations.max() < 5.3)

    class WrongMidpoints(BrownianPath):
        def _value(self, node: int) -> torch.Tensor:
            if node not in self._cache:
                reach = node & -node
                mean = 0.5 * (self._value(node - reach) + self._value(node + reach))
                std = math.sqrt((self.end - self.start) * reach / (1 << self.depth))
                self._cache[node] = mean + std * self.noise.normal(BROWNIAN_STEP + node)
            return self._cache[node]

    noise = NoiseSource(2, (2000, 2), dtype=DOUBLE)
    assert white(BrownianPath(noise, -2.0, 3.0))
    assert not white(WrongMidpoints(noise, -2.0, 3.0))


def test_paths_have_ends() -> None:
    with pytest.raises(ValueError, match="start < end"):
        BrownianPath(NoiseSource(0, (1, 1)), 1.0, 1.0)
    with pytest.raises(ValueError, match="is not within"):
        brownian().increment(0.0, 3.5)
    with pytest.raises(ValueError, match="is not within"):
        brownian().increment(1.0, 0.0)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_smallest_word_has_a_finite_radius(kind: type) -> None:
    """Words stand for the middles of their intervals: the uniform of word 0 is not 0, whose logarithm is infinite."""

    class Zeros:
        def random_raw(self, count: int) -> np.ndarray:
            return np.zeros(count, dtype=np.uint64)

    out = np.empty((3, 2), dtype=kind)
    _box_muller(Zeros(), out)  # type: ignore[arg-type]
    largest = math.sqrt(2.0 * (8 * out.itemsize + 1) * math.log(2.0))  # of the uniform 2^-33 or 2^-65
    np.testing.assert_allclose(out, [[largest, 0.0]] * 3, rtol=1e-6)
