"""Normals and uniforms from random words, on the host and by the operations of any device.

Pairs of normals are ``sqrt(-2 log u) cos(angle)`` and ``sqrt(-2 log u) sin(angle)`` of an even u in (0, 1] and an even
angle (Box & Muller 1958): in single precision u is the lower half of a word and the angle the word, in double precision
they have a word each. The cosines are the first half of a sample's entries, the sines the second.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.noise.words import SHORT_ROW, Key, Words, device_words, word_blocks

RADIUS_BITS = {torch.float32: 32, torch.float64: 63}
"""Bits of u: half a word, or as much of a word as is a positive int64."""
ANGLE_UNIT = math.pi * 2.0**-63
"""Angle of one unit of a word, as a signed integer."""
UNIFORM_BITS = {torch.float32: 24, torch.float64: 53}
"""Bits of a uniform draw: those of the significand, so that 1 is not among the roundings."""

_NUMPY: dict[torch.dtype, np.dtype[np.floating]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


def words_per_pair(dtype: torch.dtype) -> int:
    """Return how many words two normals take."""
    return 2 if dtype == torch.float64 else 1


# ---- on the host ---------------------------------------------------------------------------------------------


def host_normals(key: Key, samples: Words, size: int, dtype: torch.dtype) -> Tensor:
    """Return ``size`` normals of every sample, ``(B, size)``, float32 or float64."""
    each, pairs = words_per_pair(dtype), -(-size // 2)
    out = np.empty((len(samples), 2, pairs), dtype=_NUMPY[dtype])
    for rows, numbers, words in word_blocks(key, samples, pairs * each):
        cosines, sines = out[rows, :, numbers.start // each : numbers.stop // each].transpose(1, 0, 2)
        _box_muller(words, cosines, sines)
    return torch.from_numpy(out.reshape(len(samples), 2 * pairs)[:, :size])


def _box_muller(words: Words, cosines: NDArray[np.floating], sines: NDArray[np.floating]) -> None:
    """Fill two ``(n, m)`` with normals, from ``(n, m)`` words or, in double precision, ``(n, 2 m)``."""
    kind, own = cosines.dtype, torch.float32
    if kind == np.float64:
        bits, turn, own = (words[:, 0::2] >> np.uint64(1)).view(np.int64), words[:, 1::2], torch.float64
        radius = bits.astype(kind)
    else:
        radius, turn = words.astype(np.uint32).astype(kind), words
    radius += kind.type(0.5)  # small u, the tails, keep all their digits
    radius *= kind.type(2.0 ** -RADIUS_BITS[own])
    np.log(radius, out=radius)
    radius *= kind.type(-2.0)
    np.sqrt(radius, out=radius)
    angle = turn.view(np.int64).astype(kind)
    angle *= kind.type(ANGLE_UNIT)
    _multiply(radius, np.cos(angle), cosines)
    _multiply(radius, np.sin(angle, out=angle), sines)


def _multiply(a: NDArray[np.floating], b: NDArray[np.floating], out: NDArray[np.floating]) -> None:
    """Write the product of arrays in the order of :func:`~sdediff.noise.words.word_blocks`."""
    if a.shape[1] > SHORT_ROW:
        np.multiply(a, b, out=out)
    else:
        for column in range(a.shape[1]):
            np.multiply(a[:, column], b[:, column], out=out[:, column])


def host_uniforms(key: Key, samples: Words, size: int, dtype: torch.dtype) -> Tensor:
    """Return ``size`` uniforms in [0, 1) of every sample, ``(B, size)``, float32 or float64."""
    bits = UNIFORM_BITS[dtype]
    out = np.empty((len(samples), size), dtype=_NUMPY[dtype])
    for rows, numbers, words in word_blocks(key, samples, size):
        words >>= np.uint64(64 - bits)
        out[rows, numbers] = words.view(np.int64)
    out *= out.dtype.type(2.0**-bits)
    return torch.from_numpy(out)


# ---- on any device -------------------------------------------------------------------------------------------


def device_normals(key: Key, samples: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return the normals of :func:`host_normals` to rounding, on the device of the indices ``samples``."""
    words = device_words(key, samples, -(-size // 2) * words_per_pair(dtype))
    if dtype == torch.float64:
        bits, turn = (words[:, 0::2] >> 1).bitwise_and_((1 << 63) - 1), words[:, 1::2]
    else:
        bits, turn = words & 0xFFFFFFFF, words
    radius = bits.to(dtype).add_(0.5).mul_(2.0 ** -RADIUS_BITS[dtype]).log_().mul_(-2.0).sqrt_()
    angle = turn.to(dtype).mul_(ANGLE_UNIT)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :size]


def device_uniforms(key: Key, samples: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return the uniforms of :func:`host_uniforms`, bit by bit, on the device of the indices ``samples``."""
    bits = UNIFORM_BITS[dtype]
    top = (device_words(key, samples, size) >> (64 - bits)).bitwise_and_((1 << bits) - 1)
    return top.to(dtype).mul_(2.0**-bits)
