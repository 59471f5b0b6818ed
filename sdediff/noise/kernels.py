"""The generator as kernels of Triton: words, and normals or uniforms from them, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from sdediff.noise import laws, words
from sdediff.noise.words import Key, signed

_BLOCK = 256

_GOLDEN = tl.constexpr(words.GOLDEN)
_SHIFT_0, _SHIFT_1, _SHIFT_2 = (tl.constexpr(shift) for shift in words.SHIFTS)
_FACTOR_0, _FACTOR_1 = (tl.constexpr(factor) for factor in words.FACTORS)
_UNIT, _DOUBLE_UNIT = (tl.constexpr(2.0 ** -laws.RADIUS_BITS[kind]) for kind in (torch.float32, torch.float64))
_ANGLE = tl.constexpr(laws.ANGLE_UNIT)


def kernel_normals(key: Key, samples: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return the normals of :func:`~sdediff.noise.laws.device_normals`."""
    out, pairs = torch.empty((len(samples), size), dtype=dtype, device=samples.device), -(-size // 2)
    total = len(samples) * pairs
    if total:
        own = signed(key.numbers), signed(key.samples)
        _fill_normals[(triton.cdiv(total, _BLOCK),)](out, samples, *own, size, pairs, total, BLOCK=_BLOCK)
    return out


def kernel_uniforms(key: Key, samples: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return the uniforms of :func:`~sdediff.noise.laws.device_uniforms`."""
    out = torch.empty((len(samples), size), dtype=dtype, device=samples.device)
    if out.numel():
        fixed = {"BITS": laws.UNIFORM_BITS[dtype], "BLOCK": _BLOCK}
        own = signed(key.numbers), signed(key.samples)
        _fill_uniforms[(triton.cdiv(out.numel(), _BLOCK),)](out, samples, *own, size, out.numel(), **fixed)
    return out


@triton.jit
def _first(x: tl.tensor) -> tl.tensor:
    return (x ^ (x >> _SHIFT_0)) * _FACTOR_0


@triton.jit
def _second(x: tl.tensor) -> tl.tensor:
    x = (x ^ (x >> _SHIFT_1)) * _FACTOR_1
    return x ^ (x >> _SHIFT_2)


@triton.jit
def _word(numbers_key: tl.tensor, samples_key: tl.tensor, sample: tl.tensor, number: tl.tensor) -> tl.tensor:
    own = _second(_first(sample.to(tl.uint64) * _GOLDEN + samples_key.to(tl.uint64)))
    return _second(_first(number.to(tl.uint64) * _GOLDEN + numbers_key.to(tl.uint64)) + own)


@triton.jit(do_not_specialize=["numbers_key", "samples_key", "size", "pairs", "total"])
def _fill_normals(
    out: tl.tensor,
    samples: tl.tensor,
    numbers_key: tl.tensor,
    samples_key: tl.tensor,
    size: tl.tensor,
    pairs: tl.tensor,
    total: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    row = place // pairs
    pair = place - row * pairs
    sample = tl.load(samples + row, mask=inside, other=0)
    kind = out.dtype.element_ty
    if kind == tl.float64:
        bits = _word(numbers_key, samples_key, sample, 2 * pair) >> 1
        turn = _word(numbers_key, samples_key, sample, 2 * pair + 1)
        u = (bits.to(tl.int64).to(kind) + 0.5) * _DOUBLE_UNIT
    else:
        turn = _word(numbers_key, samples_key, sample, pair)
        u = ((turn & 0xFFFFFFFF).to(tl.int64).to(kind) + 0.5) * _UNIT
    radius = tl.sqrt(-2.0 * libdevice.log(u))  # Triton's own logarithm has few digits about 1
    angle = turn.to(tl.int64).to(kind) * _ANGLE
    place = row * size + pair
    tl.store(out + place, radius * libdevice.cos(angle), mask=inside)
    tl.store(out + place + pairs, radius * libdevice.sin(angle), mask=inside & (pairs + pair < size))


@triton.jit(do_not_specialize=["numbers_key", "samples_key", "size", "total"])
def _fill_uniforms(
    out: tl.tensor,
    samples: tl.tensor,
    numbers_key: tl.tensor,
    samples_key: tl.tensor,
    size: tl.tensor,
    total: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    row = place // size
    sample = tl.load(samples + row, mask=inside, other=0)
    top = _word(numbers_key, samples_key, sample, place - row * size) >> (64 - BITS)
    kind = out.dtype.element_ty
    tl.store(out + place, top.to(tl.int64).to(kind) * (1.0 / (1 << BITS)), mask=inside)
