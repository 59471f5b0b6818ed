"""Is anything lost when a run is killed, and resumed until it ends?

    python -m experiments.training.kills --kills 20

A small run is stopped again and again and resumed each time: by SIGKILL at random moments; by SIGKILL halfway through a
random write; by SIGTERM; by two SIGINT; by a disk that is full halfway through a random write. Whatever stops it, the
resumed run has to end with the files of a run that nobody stopped, bit for bit: weights, states, averages, the best
model, and the lines of metrics but for their speed. A run that SIGTERM or SIGINT ends measures where it ends: these
lines come on top, and its best model may be one of there. POSIX alone: every attempt is a fork.

Expected: 20 of 20 stops of each kind, and "identical" for each. Cost: some minutes of one core.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  # slow, so that it is imported once, before the forks
import click
import torch
import torch.utils.tensorboard

from sdediff import files
from sdediff.config import Config
from sdediff.training import train

SETTINGS = {
    "data.name": "moons", "network.width": 64, "training.batch_size": 32, "training.warmup": 5, "training.steps": 150,
    "training.log_every": 5, "training.held_out_every": 7, "training.checkpoint_every": 5, "training.sample_every": 0,
    "training.averages": [0.05, 0.1],
}  # fmt: skip
KINDS = ("SIGKILL", "write", "SIGTERM", "SIGINT", "full")
Fault = Callable[[Path], None]


def attempt(folder: Path, *, resume: bool, write: int = 0, fault: Fault | None = None) -> int:
    """Start a run in a child process, whose write of a number ends in a fault; return the child's number."""
    child = os.fork()
    if child:
        return child
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells take from what runs in the background
    if fault is not None:
        files._write_bytes = faulty(files._write_bytes, write, fault)
    status = 1
    try:
        result = train(Config().updated(SETTINGS), folder, resume=resume, progress=False)
        status = 2 if result.interrupted else 0
    finally:
        os._exit(status)


def faulty(honest: Callable[[Path, bytes], None], number: int, fault: Fault) -> Callable[[Path, bytes], None]:
    """Return a writer that fails halfway through the write of a number."""
    left = [number]

    def write(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            path.write_bytes(content[: len(content) // 2])
            fault(path)
        honest(path, content)

    return write


def killed(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def stops(run: Path, kind: str, count: int, rng: random.Random) -> int:
    """Stop and resume a run until it ends, and return how often it was stopped before."""
    stopped, signals = 0, {"SIGKILL": [signal.SIGKILL], "SIGTERM": [signal.SIGTERM], "SIGINT": [signal.SIGINT] * 2}
    fault = {"write": killed, "full": full}.get(kind)
    while True:
        begun = (run / "config.json").exists()
        last = stopped == count
        child = attempt(run, resume=begun, write=0 if last else rng.randint(1, 15), fault=None if last else fault)
        if kind in signals and not last:
            time.sleep(rng.uniform(0.05, 0.8))
            for number in signals[kind]:
                os.kill(child, number)  # a child that has ended waits to be asked for
                time.sleep(0.005)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return stopped
        stopped += 1
        if last:
            raise SystemExit(f"{kind}: the last attempt ended with {status}")


def content(run: Path) -> dict[str, Any]:
    """Return what a run left, but for times."""
    found: dict[str, Any] = {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.suffix in (".safetensors", ".json", ".npz")
    }
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found["metrics"] = [{name: value for name, value in line.items() if name != "steps_per_second"} for line in lines]
    return found


@click.command()
@click.option("--kills", default=20, show_default=True, help="Stops of each kind.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--kind", "kinds", type=click.Choice(KINDS), multiple=True, default=KINDS, help="Of stop.  [default: all]"
)
def main(kills: int, seed: int, kinds: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder) / "straight"
        os.waitpid(attempt(straight, resume=False), 0)
        for kind in kinds:
            run = Path(folder) / kind
            stopped = stops(run, kind, kills, random.Random(f"{kind}{seed}"))
            left, whole = content(run), content(straight)
            names = {**left, **whole}
            if kind in ("SIGTERM", "SIGINT"):
                left["metrics"] = [line for line in left["metrics"] if line in whole["metrics"]]
                names = [name for name in whole if not name.startswith("best")]
            differ = [name for name in names if left.get(name) != whole.get(name)]
            print(f"{kind:8s} {stopped} stops: {'identical' if not differ else f'differ: {differ}'}", flush=True)


if __name__ == "__main__":
    main()
