"""Random words are the same on every device, and random by every test at hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import stats

from sdediff import NoiseSource
from sdediff.noise import devices, laws, words
from sdediff.noise.words import Key, device_words, signed, stream_key, word_blocks
from test_noise import printed_word

SAMPLES = (0, 1, 2, 2**32, 2**63, 2**64 - 1)
SHAPES = ((1, 1), (3, 1), (6, 3), (6, 4), (6, 5), (2, 20_000), (5, 3_000))
"""Samples and numbers: short and long rows, and more than a block."""


def host_words(key: Key, samples: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros((len(samples), count), dtype=np.uint64)
    for block in word_blocks(key, samples, count):
        out[block.samples, block.numbers] = block.words
    return out


def indices(count: int) -> np.ndarray:
    return np.array(SAMPLES[:count], dtype=np.uint64)


def on_device(samples: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(samples.view(np.int64))


# ---- one law -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "numbers"), SHAPES)
def test_torch_has_the_words_of_the_host(count: int, numbers: int) -> None:
    """Bit by bit, signs and wraps included."""
    for key in (Key(0, 0), stream_key("normal", 3, -1, 2), Key(2**64 - 1, 2**63)):
        host = host_words(key, indices(count), numbers)
        assert np.array_equal(device_words(key, on_device(indices(count)), numbers).numpy().view(np.uint64), host)


def test_words_are_those_of_the_formula() -> None:
    key = stream_key("normal", 5, 1 << 40, -2)
    came = host_words(key, indices(6), 20_000)
    for row, number in itertools.product(range(6), (0, 1, 4_095, 16_384, 19_999)):
        assert int(came[row, number]) == printed_word(key, SAMPLES[row], number)


def test_known_words() -> None:
    """What a seed means: another answer is another stream, and `STREAM` must say so."""
    assert words.STREAM == 2
    assert stream_key("normal", 1, 2, 3) == KNOWN_KEY
    assert [int(w) for w in host_words(Key(1, 2), indices(2), 2).ravel()] == KNOWN_WORDS


KNOWN_KEY = Key(16972382476301869571, 14443765748671990625)
KNOWN_WORDS = [0xC6125BA713C66388, 0xFDBD8B370E6E8123, 0xC69B49C8CAAF8F83, 0x8D1A0766D46FF8C8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("count", "numbers"), SHAPES)
def test_torch_has_the_draws_of_the_host(count: int, numbers: int, dtype: torch.dtype) -> None:
    """Uniforms to the bit; normals to roundings of the logarithm, the root and the angle's functions."""
    key, samples = stream_key("normal", 3, 4, 0), indices(count)
    ours = laws.host_normals(key, samples, numbers, dtype)
    theirs = laws.device_normals(key, on_device(samples), numbers, dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-15
    torch.testing.assert_close(theirs, ours, rtol=tolerance, atol=tolerance)
    uniforms = laws.host_uniforms(key, samples, numbers, dtype)
    assert torch.equal(laws.device_uniforms(key, on_device(samples), numbers, dtype), uniforms)


def test_indices_on_a_device() -> None:
    """Neighbours are counted there, others are copied; both wrap at 2^63."""
    for samples in ((0, 1, 2), (2**63 - 1, 2**63, 2**63 + 1), (5, 3, 2**64 - 1), (7,), ()):
        source = NoiseSource(0, (len(samples), 2), samples=samples)
        assert source._device_indices().tolist() == [signed(sample) for sample in samples]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_word_has_a_finite_radius(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words stand for the middles of their intervals: the uniform of word 0 is not 0, whose logarithm is infinite."""

    def zeros(key: Key, samples: np.ndarray, count: int) -> Iterator[words.Block]:
        yield words.Block(slice(0, 1), slice(0, count), np.zeros((1, count), dtype=np.uint64))

    monkeypatch.setattr(laws, "word_blocks", zeros)
    monkeypatch.setattr(laws, "device_words", lambda key, samples, count: torch.zeros(1, count, dtype=torch.int64))
    largest = math.sqrt(2.0 * (laws.RADIUS_BITS[dtype] + 1) * math.log(2.0))
    expected = torch.tensor([[largest, largest, 0.0, 0.0]], dtype=dtype)
    for drawn in (
        laws.host_normals(Key(0, 0), indices(1), 4, dtype),
        laws.device_normals(Key(0, 0), on_device(indices(1)), 4, dtype),
    ):
        torch.testing.assert_close(drawn, expected, rtol=1e-6, atol=0.0)


# ---- kernels -------------------------------------------------------------------------------------------------


class Kernels:
    """What the kernels' module offers, by torch; optionally wrong."""

    def __init__(self, error: float = 0.0) -> None:
        self.error = error

    def kernel_normals(self, key: Key, samples: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
        return laws.device_normals(key, samples, size, dtype) + self.error

    def kernel_uniforms(self, key: Key, samples: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
        return laws.device_uniforms(key, samples, size, dtype)


def test_kernels_that_draw_otherwise_are_refused() -> None:
    devices.check_kernels(Kernels(), torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="normals are others"):
        devices.check_kernels(Kernels(1e-4), torch.device("cpu"))  # type: ignore[arg-type]


def test_without_kernels_torch_draws() -> None:
    key, samples = stream_key("normal", 0, 0, 0), on_device(indices(3))
    assert torch.equal(
        devices.draw_normals(key, samples, 5, torch.float32), laws.device_normals(key, samples, 5, torch.float32)
    )
    assert torch.equal(
        devices.draw_uniforms(key, samples, 5, torch.float32), laws.device_uniforms(key, samples, 5, torch.float32)
    )


# ---- randomness ----------------------------------------------------------------------------------------------

COUNT = 1 << 16


def streams() -> dict[str, np.ndarray]:
    """Words along every coordinate of the generator, the others fixed."""
    key = stream_key("normal", 0, 0, 0)
    one, many = np.zeros(1, dtype=np.uint64), np.arange(COUNT, dtype=np.uint64)
    keys = [stream_key("normal", 0, step, 0) for step in range(COUNT // 64)]
    return {
        "numbers": host_words(key, one, COUNT)[0],
        "samples": host_words(key, many, 1)[:, 0],
        "far samples": host_words(key, many << np.uint64(40), 1)[:, 0],
        "samples in turn": host_words(key, many[:64], COUNT // 64).T.ravel(),
        "steps": np.concatenate([host_words(k, one, 64)[0] for k in keys]),
    }


def uneven(stream: np.ndarray) -> bool:
    """Chi-square of the bytes at every place and of pairs of the lowest and the highest, each at 1e-7."""
    octets = stream.astype("<u8").view(np.uint8).reshape(-1, 8).astype(int)
    tables = [np.bincount(octets[:, place], minlength=256) for place in range(8)]
    for place in (0, 7):
        pair = (octets[:-1:2, place] >> 4) * 16 + (octets[1::2, place] >> 4)
        tables.append(np.bincount(pair, minlength=256))
    return any(stats.chisquare(table).pvalue < 1e-7 for table in tables)


def linked(stream: np.ndarray) -> bool:
    """Bits of a word against those of the next, all 64 x 64 pairs: correlations beyond 6.5 standard errors, 8e-11."""
    bits = ((stream[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).astype(np.float32) * 2.0 - 1.0
    sums = bits[:-1].T @ bits[1:] / math.sqrt(len(bits) - 1)
    own = bits.T @ bits / math.sqrt(len(bits))
    return bool(np.abs(sums).max() > 6.5 or np.abs(own[np.triu_indices(64, 1)]).max() > 6.5)


@pytest.mark.parametrize("kind", list(streams()))
def test_words_are_random(kind: str) -> None:
    """Ten tests at 1e-7 and 6,112 at 8e-11: a false alarm in 1.5e-6."""
    stream = streams()[kind]
    assert not uneven(stream)
    assert not linked(stream)


def test_words_that_are_not_random_are_caught() -> None:
    numbers = np.arange(COUNT, dtype=np.uint64)
    assert uneven(numbers)
    golden = numbers * np.uint64(words.GOLDEN)
    assert linked(golden)
    mixed = streams()["numbers"]
    assert linked(np.where(numbers % np.uint64(16) == 0, mixed, mixed | np.uint64(1 << 20)))


def avalanche(law: Callable[[np.ndarray], np.ndarray], count: int) -> float:
    """The largest deviation, in standard errors, of how often an output's bit changes with an input's bit from half;
    the law maps words ``(count,)`` to words ``(count, k)``."""
    inputs = host_words(Key(1, 2), np.zeros(1, dtype=np.uint64), count)[0] >> np.uint64(20)  # high bits are few, too
    before, worst = law(inputs), 0.0
    for bit in range(64):
        changed = before ^ law(inputs ^ np.uint64(1 << bit))
        bits = (changed[..., None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
        worst = max(worst, float(np.abs(bits.mean(axis=0) - 0.5).max()) * 2.0 * math.sqrt(count))
    return worst


ORIGIN = np.zeros(1, dtype=np.uint64)
INPUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "seed": lambda x: np.array([stream_key("normal", int(k), 3, 2) for k in x], dtype=np.uint64),
    "step": lambda x: np.array([stream_key("normal", 7, int(k), 2) for k in x], dtype=np.uint64),
    "stage": lambda x: np.array([stream_key("normal", 7, 3, int(k)) for k in x], dtype=np.uint64),
    "sample": lambda x: host_words(Key(1, 2), x, 2),
    "keys of samples": lambda x: np.concatenate([host_words(Key(1, int(k)), ORIGIN, 1) for k in x]),
    "keys of numbers": lambda x: np.concatenate([host_words(Key(int(k), 2), ORIGIN, 1) for k in x]),
}


@pytest.mark.parametrize("kind", list(INPUTS))
def test_one_bit_changes_half_of_all_bits(kind: str) -> None:
    """64 x 128 shares at 6.5 standard errors (8e-11): a false alarm in 7e-7 each."""
    assert avalanche(INPUTS[kind], 500) < 6.5


def test_a_product_does_not_change_half_of_all_bits() -> None:
    assert avalanche(lambda x: (x * np.uint64(words.GOLDEN))[:, None], 500) > 6.5


def test_kinds_of_draws_have_streams_of_their_own() -> None:
    assert stream_key("normal", 1, 2, 3) != stream_key("uniform", 1, 2, 3)
    assert NoiseSource(2**64 + 5, (1, 3)).normal(0).equal(NoiseSource(5, (1, 3)).normal(0))
