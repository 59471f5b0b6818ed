"""What a draw of noise costs, and its words for a battery of tests.

``time`` draws normals of shapes of tables, images and one large sample on the CPU, and, where there is one, on an
accelerator, beside ``torch.randn`` of the same shape and, on the CPU, the generator that sdediff had before: a PCG64
stream for every (seed, step, stage) through Box and Muller's transform. Columns: nanoseconds a normal (best of the
repetitions, which take turns, so that whatever else the machine does hits all alike) and the ratios of ours to the
others. On an accelerator it also counts the kernels that a draw launches and compares words and draws with the CPU's.

    OMP_NUM_THREADS=1 python -m experiments.noise time

Expected on one core of an EPYC: float32 images and flat data 2.9 ns a normal, 0.90 to 1.05 of the former generator,
0.85 of torch.randn; float64 18 ns, 0.95 to 1.0 and 1.1; 4,096 points of two coordinates 1.15, of eight 1.0. On CUDA
one kernel a draw and at most twice torch.randn are wanted, not measured yet. Cost: ten seconds.

``words`` writes words without end, in one of the orders below, for tests that read them from a pipe. 1e9 words of
``numbers``, ``samples`` and ``turns`` pass PractRand 0.96 (``RNG_test stdin64 -tlmax 8GB``), 1.3e8 words also of keys 0
and of far samples: no failure; what is called unusual, p of 1e-3 to 1e-4, in one of five reports of some 200 tests, and
once mildly suspicious (3e-4), is gone at the next length.

    python -m experiments.noise words --order samples | RNG_test stdin64 -tlmax 8GB
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator

import click
import numpy as np
import torch
from torch import Tensor

import sdediff
from sdediff.noise.laws import device_uniforms
from sdediff.noise.words import Key, device_words, stream_key, word_blocks

SHAPES = ((1, 2), (4096, 2), (4096, 8), (512, 1, 28, 28), (64, 3, 32, 32), (256, 3, 64, 64), (1, 1 << 20))
REPEATS, BUDGET = 200, 0.5  # repetitions of a draw at most, and seconds

now = time.perf_counter


# ---- the former generator ------------------------------------------------------------------------------------


def former(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Draw as sdediff did before: PCG64DXSM keyed by a hash, pairs side by side, on the CPU."""
    kind = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
    pairs = np.empty((shape[0] * -(-math.prod(shape[1:]) // 2), 2), dtype=kind)
    key = np.array([0, 1, 0], dtype="<u8").view("<u4").tolist()
    bits = np.random.PCG64DXSM(np.random.SeedSequence(key)).advance(0)
    for start in range(0, len(pairs), 1 << 15):
        _box_muller(bits, pairs[start : start + (1 << 15)])
    return torch.from_numpy(pairs).reshape(shape[0], -1)[:, : math.prod(shape[1:])].reshape(shape)


def _box_muller(bits: np.random.PCG64DXSM, out: np.ndarray) -> None:
    width, kind = 8 * out.itemsize, out.dtype.type
    words = bits.random_raw(len(out) * out.itemsize // 4).view(f"<u{out.itemsize}").reshape(-1, 2)
    radius = words[:, 0].astype(out.dtype)
    radius += kind(0.5)
    radius *= kind(2.0**-width)
    np.log(radius, out=radius)
    radius *= kind(-2.0)
    np.sqrt(radius, out=radius)
    angle = words[:, 1].view(f"<i{out.itemsize}").astype(out.dtype)
    angle *= kind(math.pi * 2.0 ** (1 - width))
    np.multiply(radius, np.cos(angle), out=out[:, 0])
    np.multiply(radius, np.sin(angle, out=angle), out=out[:, 1])


# ---- time ----------------------------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def best_times(laws: list[Callable[[], Tensor]], device: torch.device) -> list[float]:
    """The least seconds of each, in turns."""
    best, end = [math.inf] * len(laws), now() + BUDGET
    for law in laws:
        law()
    for _ in range(REPEATS):
        for i, law in enumerate(laws):
            synchronise(device)
            start = now()
            law()
            synchronise(device)
            best[i] = min(best[i], now() - start)
        if now() > end:
            break
    return best


def measure(device: torch.device, dtype: torch.dtype) -> None:
    """Print a table of one device and precision."""
    own = device.type == "cpu"
    click.echo(f"\n{device}, {dtype}: nanoseconds a normal{'' if own else ', draws against the CPU'}")
    click.echo(f"{'shape':>18} {'ours':>9} {'randn':>9} {'ratio':>6}" + (f" {'former':>9} {'ratio':>6}" * own))
    for shape in SHAPES:
        source, size = sdediff.NoiseSource(0, shape, dtype=dtype, device=device), math.prod(shape)
        laws = [
            lambda source=source: source.normal(1),
            lambda shape=shape: torch.randn(shape, dtype=dtype, device=device),
        ]
        laws += [lambda shape=shape: former(shape, dtype)] * own
        ours, plain, *rest = (1e9 * seconds / size for seconds in best_times(laws, device))
        line = f"{'x'.join(map(str, shape)):>18} {ours:9.2f} {plain:9.2f} {ours / plain:6.2f}"
        click.echo(line + "".join(f" {before:9.2f} {ours / before:6.2f}" for before in rest))
    if not own:
        compare(device, dtype)


def compare(device: torch.device, dtype: torch.dtype) -> None:
    """Print the largest difference of draws on the device from those on the CPU, and the launches of a draw."""
    shape = (64, 3, 33, 31)
    here, there = (sdediff.NoiseSource(3, shape, dtype=dtype, device=where) for where in ("cpu", device))
    z, u = (float((getattr(there, law)(2).cpu() - getattr(here, law)(2)).abs().max()) for law in ("normal", "uniform"))
    key, count = stream_key("normal", 3, 2, 0), 1_000
    words = device_words(key, torch.arange(64, device=device), count).cpu().numpy().view(np.uint64)
    blocks = word_blocks(key, np.arange(64, dtype=np.uint64), count)
    same = all(np.array_equal(words[block.samples, block.numbers], block.words) for block in blocks)
    uniforms = device_uniforms(key, torch.arange(2, device=device), 3, dtype)
    click.echo(f"words {'equal' if same else 'DIFFER'}; normals differ by {z:.1e}, uniforms by {u:.1e}")
    if uniforms.device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            there.normal(5)
            synchronise(device)
        click.echo(f"kernels a draw: {sum(event.count for event in profile.key_averages())}")


# ---- words ---------------------------------------------------------------------------------------------------

ORDERS = {
    "numbers": "one sample, number after number",
    "samples": "number 0, sample after sample",
    "turns": "64 samples in turn, number after number",
    "steps": "16 words of sample 0, step after step",
}


def stream(order: str, key: Key) -> Iterator[np.ndarray]:
    """Yield words in an order, in pieces."""
    zero, size = np.zeros(1, dtype=np.uint64), 1 << 16
    for piece in itertools.count():
        if order == "samples":
            samples = np.arange(piece * size, (piece + 1) * size, dtype=np.uint64)
            yield from (block.words[:, 0] for block in word_blocks(key, samples, 1))
        elif order == "steps":
            steps = range(piece * 1024, (piece + 1) * 1024)
            for step in steps:
                yield from (block.words[0] for block in word_blocks(stream_key("normal", 0, step, 0), zero, 16))
        else:  # a generator of numbers starts at any, by its key
            start = Key((key.numbers + piece * size * 0x9E3779B97F4A7C15) % (1 << 64), key.samples)
            samples = np.arange(1 if order == "numbers" else 64, dtype=np.uint64)
            whole = np.empty((len(samples), size), dtype=np.uint64)
            for block in word_blocks(start, samples, size):
                whole[block.samples, block.numbers] = block.words
            yield whole.T.ravel()


# ---- command line --------------------------------------------------------------------------------------------


@click.group()
def main() -> None:
    """Measure draws of noise, or write their words."""


@main.command("time")
def time_draws() -> None:
    """Print times of draws on every device."""
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    for name, dtype in itertools.product(devices, (torch.float32, torch.float64)):
        if (name, dtype) != ("mps", torch.float64):
            measure(torch.device(name), dtype)


@main.command("words")
@click.option("--order", type=click.Choice(list(ORDERS)), default="numbers", show_default=True)
@click.option("--key", nargs=2, type=int, default=(0, 0), show_default=True, help="the two words of the stream's key")
def write_words(order: str, key: tuple[int, int]) -> None:
    """Write random words to standard output, little-endian."""
    try:
        for piece in stream(order, Key(*key)):
            sys.stdout.buffer.write(piece.astype("<u8", copy=False).tobytes())
    except BrokenPipeError:
        sys.stderr.close()  # the reader has enough


if __name__ == "__main__":
    main()
