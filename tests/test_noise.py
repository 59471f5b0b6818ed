"""Noise is a function of (seed, sample, step, stage) and of nothing else; a Brownian path is one path on any grid."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from sdediff import BrownianPath, NoiseSource
from sdediff.noise import BROWNIAN_STEP
from sdediff.noise.words import Key, stream_key

DOUBLE = torch.float64


def printed_word(key: Key, sample: int, number: int) -> int:
    """A word by the formula of `sdediff.noise.words`, in Python's integers."""

    def first(x: int) -> int:
        return ((x ^ x >> 27) * 0x3C79AC492BA7B653) % 2**64

    def second(x: int) -> int:
        y = ((x ^ x >> 33) * 0x1C69B3F74AC4AE35) % 2**64
        return y ^ y >> 27

    golden = 0x9E3779B97F4A7C15
    own = second(first((sample * golden + key.samples) % 2**64))
    return second((first((number * golden + key.numbers) % 2**64) + own) % 2**64)


def test_a_sample_s_noise_does_not_depend_on_its_batch() -> None:
    whole = NoiseSource(7, (64, 3, 2))
    for step, stage in ((NoiseSource.START, 0), (0, 0), (5, 1), (10**6, 3)):
        z = whole.normal(step, stage)
        for k in (0, 13, 63):
            assert torch.equal(NoiseSource(7, (1, 3, 2), first=k).normal(step, stage)[0], z[k])
        assert torch.equal(NoiseSource(7, (3, 3, 2), samples=(63, 0, 13)).normal(step, stage), z[[63, 0, 13]])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_sample_s_noise_is_the_same_to_the_bit_at_any_size(dtype: torch.dtype) -> None:
    """Vectors, their remainders, short rows and blocks of the arithmetic round alike."""
    for size in (1, 2, 3, 5, 7, 8, 9, 13, 31, 97, 1_001, 40_003):
        count = max(2, 70_001 // size) if size < 10 else 5
        whole = NoiseSource(1, (count, size), dtype=dtype)
        z, u = whole.normal(0), whole.uniform(0)
        for row in {0, 1, count // 2, count - 1}:
            alone = NoiseSource(1, (1, size), first=row, dtype=dtype)
            assert torch.equal(alone.normal(0)[0], z[row])
            assert torch.equal(alone.uniform(0)[0], u[row])


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


def test_any_integer_is_an_index_or_a_step() -> None:
    """Up to 2^63 and beyond, in any order: indices count modulo 2^64."""
    samples = (0, 2**63 - 1, 2**63, 5, 2**64 - 1, -1)
    z = NoiseSource(1, (6, 9), samples=samples).normal(2**63, -7)
    for row, sample in enumerate(samples):
        assert torch.equal(NoiseSource(1, (1, 9), first=sample).normal(2**63, -7)[0], z[row])
    assert torch.equal(z[4], z[5])
    assert len({tuple(row.tolist()) for row in z}) == 5
    assert torch.equal(NoiseSource(1, (4, 9), first=2**63 - 2).normal(2**63, -7)[1:3], z[1:3])


def test_empty_shapes() -> None:
    for shape in ((0, 3), (2, 0), (3,)):
        assert NoiseSource(0, shape).normal(0).shape == shape
        assert NoiseSource(0, shape).uniform(0).shape == shape


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
    """Known answers: the words of the stream through the formula as it is printed, cosines first."""
    seed, samples, step, stage, size, pairs = 7, (2, 3, 11), -1, 4, 5, 3  # the last sine is spent
    key = stream_key("normal", seed, step, stage)
    for dtype, radius_bits in ((torch.float32, 32), (DOUBLE, 63)):
        rows = []
        for sample in samples:
            if dtype == DOUBLE:
                both = [(printed_word(key, sample, 2 * i) >> 1, printed_word(key, sample, 2 * i + 1)) for i in range(3)]
            else:
                both = [(printed_word(key, sample, i) % 2**32, printed_word(key, sample, i)) for i in range(pairs)]
            radii = [math.sqrt(-2.0 * math.log((u + 0.5) / 2**radius_bits)) for u, _ in both]
            angles = [2.0 * math.pi * v / 2**64 for _, v in both]
            rows.append([r * f(v) for f in (math.cos, math.sin) for r, v in zip(radii, angles, strict=True)][:size])
        came = NoiseSource(seed, (3, 5), samples=samples, dtype=dtype).normal(step, stage)
        tolerance = 2e-6 if dtype == torch.float32 else 1e-14  # a few roundings, and the angle's of pi
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


def not_uniform(u: np.ndarray) -> bool:
    """Kolmogorov-Smirnov at 1e-6."""
    return bool(stats.kstest(u, "uniform").pvalue < 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_uniforms_are_uniform_and_below_one(dtype: torch.dtype) -> None:
    """And a function of sample, step and stage, independent of the normals there: a false alarm in 2e-6."""
    source = NoiseSource(4, (64, 1000), dtype=dtype)
    u = source.uniform(step=2, stage=1)
    assert u.dtype == dtype
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    digits = u.double() * 2.0 ** (53 if dtype == DOUBLE else 24)  # more of them would be rounded, the largest to 1
    assert torch.equal(digits, digits.round())
    assert not torch.equal(0.5 * digits, (0.5 * digits).round())
    assert not not_uniform(u.double().numpy().ravel())
    assert not_uniform(u.double().numpy().ravel() ** 1.1)
    assert torch.equal(NoiseSource(4, (2, 1000), samples=(63, 5), dtype=dtype).uniform(2, 1), u[[63, 5]])
    normals = source.normal(step=2, stage=1)
    assert not dependent(u.double().numpy().ravel(), normals.double().numpy().ravel())


def test_uniforms_of_half_precision_stay_below_one() -> None:
    u = NoiseSource(0, (1, 10_000), dtype=torch.bfloat16).uniform(0)
    assert torch.equal(u, NoiseSource(0, (1, 10_000)).uniform(0))


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
