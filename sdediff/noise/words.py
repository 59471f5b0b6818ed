"""Random words as a function of (seed, kind of draw, step, stage, sample, number) in integer arithmetic.

A stream has a key of two words, a hash of seed, kind, step and stage. Its words are those of a counter-based generator
(Salmon et al. 2011) of two counters. The number of a word is mixed as in SplitMix64 (Steele et al. 2014), with the
constants of Moremur (Evensen 2019), and the mixed index of the sample is added between the rounds:

    w(sample, number) = second(first(number g + k_0) + mix(sample g + k_1)),    mix(x) = second(first(x)),
    first(x) = (x ^ x >> 27) m,    second(x) = y ^ y >> 27,    y = (x ^ x >> 33) m',

modulo 2^64. Both rounds are permutations, so that no word of a sample comes twice in it, and different samples add
different words. Products, sums and shifts of integers are exact: every device has the same words.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STREAM = 2
"""Version of the stream: a seed means other draws in another one, and files of another one are not resumed."""

Words = NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
SHIFTS, FACTORS = (27, 33, 27), (0x3C79AC492BA7B653, 0x1C69B3F74AC4AE35)

_GOLDEN, _SHIFTS = np.uint64(GOLDEN), [np.uint64(shift) for shift in SHIFTS]
_FACTORS = [np.uint64(factor) for factor in FACTORS]
_MASK = (1 << 64) - 1
SHORT_ROW = 4
"""Numbers up to which rows are short."""
_BLOCK = 1 << 14  # words made at a time, so that their intermediates stay in the cache


class Key(NamedTuple):
    """Two words of 64 bits, those of the numbers and of the samples."""

    numbers: int
    samples: int


def stream_key(kind: str, seed: int, step: int, stage: int) -> Key:
    """Return the key of a stream, BLAKE2b of all four; integers count modulo 2^64."""
    words = struct.pack("<3Q", seed & _MASK, step & _MASK, stage & _MASK)
    return Key(*struct.unpack("<2Q", blake2b(words, digest_size=16, person=f"{kind} {STREAM}".encode()).digest()))


def signed(word: int) -> int:
    """Return the integer in [-2^63, 2^63) that is ``word`` modulo 2^64."""
    return ((word + (1 << 63)) & _MASK) - (1 << 63)


# ---- on the host ---------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A part of the words of a batch: slices of samples and of numbers, and the words there."""

    samples: slice
    numbers: slice
    words: Words


def word_blocks(key: Key, samples: Words, count: int) -> Iterator[Block]:
    """Yield the words ``0, ..., count - 1`` of every sample, part by part; each part is overwritten by the next.

    The words of few numbers are neighbours in memory along the samples, others along the numbers: operations on short
    rows are slow.
    """
    width = max(1, min(count, _BLOCK))
    height = max(1, min(_BLOCK // width, len(samples)))
    of_samples = samples * _GOLDEN
    of_samples += np.uint64(key.samples)
    other = np.empty_like(of_samples)
    of_samples = _second(_first(of_samples, other), other)[:, None]
    words, spare = (
        np.empty((height, width), dtype=np.uint64, order="F" if width <= SHORT_ROW else "C") for _ in range(2)
    )
    for left in range(0, count, width):
        columns = slice(left, min(left + width, count))
        of_numbers = np.arange(columns.start, columns.stop, dtype=np.uint64)
        of_numbers *= _GOLDEN
        of_numbers += np.uint64(key.numbers)
        of_numbers = _first(of_numbers, np.empty_like(of_numbers))
        for top in range(0, len(samples), height):
            rows = slice(top, min(top + height, len(samples)))
            part = slice(rows.stop - top), slice(columns.stop - left)
            block = np.add(of_samples[rows], of_numbers, out=words[part])
            yield Block(rows, columns, _second(block, spare[part]))


def _first(x: Words, spare: Words) -> Words:
    """Do the first round in place."""
    x ^= np.right_shift(x, _SHIFTS[0], out=spare)
    x *= _FACTORS[0]
    return x


def _second(x: Words, spare: Words) -> Words:
    """Do the second round in place."""
    x ^= np.right_shift(x, _SHIFTS[1], out=spare)
    x *= _FACTORS[1]
    x ^= np.right_shift(x, _SHIFTS[2], out=spare)
    return x


# ---- on any device -------------------------------------------------------------------------------------------


def device_words(key: Key, samples: Tensor, count: int) -> Tensor:
    """Return the same words as :func:`word_blocks`, int64 ``(B, count)``, by operations that every device has.

    Args:
        key: key of the stream.
        samples: index of each sample modulo 2^64, int64 ``(B,)``, on the device.
        count: number of words of a sample.
    """
    numbers = torch.arange(count, device=samples.device).mul_(signed(GOLDEN)).add_(signed(key.numbers))
    own = (samples * signed(GOLDEN)).add_(signed(key.samples))
    return _device_second(_device_second(_device_first(own))[:, None] + _device_first(numbers))


def _device_first(x: Tensor) -> Tensor:
    return x.bitwise_xor_(_shifted(x, SHIFTS[0])).mul_(signed(FACTORS[0]))


def _device_second(x: Tensor) -> Tensor:
    x.bitwise_xor_(_shifted(x, SHIFTS[1])).mul_(signed(FACTORS[1]))
    return x.bitwise_xor_(_shifted(x, SHIFTS[2]))


def _shifted(x: Tensor, shift: int) -> Tensor:
    """Return the logical shift to the right: torch's repeats the sign."""
    return (x >> shift).bitwise_and_((1 << (64 - shift)) - 1)
