r"""The loop over a data set: rounds of batches, in an order that makes every beginning a fair sample of the whole.

Items are taken in a random order that ``seed`` fixes, so that the mean over the first m of them estimates the mean over
all without bias, and their noise goes by the place in that order: neither the batch size, nor the number of processes,
nor an interruption changes a figure.

With a target, the run ends at the first multiple of ``BLOCK`` items where the standard error of their mean,
``std / sqrt(m)``, has come down to it. The mean's interval is right in the limit of a small target (Chow & Robbins
1965); above that, values whose large ones are rare are stopped a little too early. ``BLOCK`` keeps a lucky start from
ending it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdediff.conditions import Condition, ConditionLike
from sdediff.evaluation.memory import Microbatches, fitting, out_of_memory, peak_memory
from sdediff.evaluation.processes import Processes
from sdediff.evaluation.resume import Columns, PartialResults
from sdediff.types import brief

BLOCK = 32
"""Items between two looks at the target, whatever the batches are."""

FIRST = 4
"""Items of the batch that memory is measured on."""

_ROUNDS, _SMALL = 8, 16  # at least so many rounds, unless they get that small: a bar should move, a file be saved
_SAVE_EVERY = 2.0  # seconds
_ORDER = 1  # of the seed's streams

Score = Callable[..., Mapping[str, Tensor]]
"""``work(x, first)``: from items ``(B, *shape)`` and the place of the first to named columns ``(B,)``; the first column
is averaged. Where there is a condition, ``work(x, first, condition=rows)``."""


def order(count: int, seed: int) -> NDArray[np.int64]:
    """The order in which the items ``0 .. count - 1`` are taken."""
    return np.random.default_rng((seed % (1 << 64), _ORDER, count)).permutation(count)


def mean_and_error(values: NDArray[np.generic]) -> tuple[float, float]:
    """Mean and its standard error as an estimate for the data's population; of a single item that is unknown (NaN)."""
    numbers = np.asarray(values, dtype=np.float64)
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    return float(numbers.mean()), error


def reached(values: NDArray[np.generic], target: float | None) -> int | None:
    """The first multiple of ``BLOCK`` items whose mean has a standard error of at most ``target``, if there is one."""
    if target is None:
        return None
    shifted = np.asarray(values, dtype=np.float64) - (float(np.asarray(values[0])) if len(values) else 0.0)
    count = np.arange(BLOCK, len(shifted) + 1, BLOCK)
    total, squares = (np.cumsum(shifted**power)[count - 1] for power in (1, 2))
    variance = np.maximum(squares - total**2 / count, 0.0) / (count - 1)
    found = np.flatnonzero(variance / count <= target**2)
    return int(count[found[0]]) if len(found) else None


@dataclass(frozen=True)
class Evaluation:
    """What a data set came to.

    Attributes:
        columns: of the items, in the order they were taken; ``item`` is their index in the data.
        total: items there are.
        seconds: spent, earlier runs included.
        on_target: whether the target ended the run.
        interrupted: whether a ``KeyboardInterrupt`` did.
    """

    columns: Columns
    total: int
    seconds: float
    on_target: bool = False
    interrupted: bool = False

    __repr__ = brief

    @property
    def done(self) -> int:
        """Items that are done."""
        return len(self.values)

    @property
    def values(self) -> NDArray[np.generic]:
        """The likelihoods, ``(done,)``."""
        return next(iter(self.columns.values()), np.empty(0))

    def more(self, rows: Columns, seconds: float) -> Evaluation:
        """With the rows of a round."""
        joined = {name: np.concatenate([self.columns[name], rows[name]]) for name in rows} if self.columns else rows
        return Evaluation(joined, self.total, seconds)


def evaluate(
    work: Score,
    items: Tensor,
    *,
    seed: int = 0,
    size: int | None = None,
    target: float | None = None,
    part: PartialResults | None = None,
    fresh: bool = False,
    processes: Processes | None = None,
    model: nn.Module | None = None,
    condition: ConditionLike = None,
    report: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Score items until all are done or the target is reached.

    Args:
        work: the scoring of a batch.
        items: ``(n, *shape)``.
        seed: of the order.
        size: items a process takes at a time; by default as many as memory holds, by what the first few took.
        target: standard error of the mean of the first column at which to stop.
        part: the file that keeps what is done; it stays if items are left.
        fresh: start anew instead of from what the file has.
        processes: the processes that share the items.
        model: that the work calls; a few of its forwards are enough to measure memory on.
        condition: what the network is told about each item, one row an item or one for all, in the order of ``items``;
            the work gets the rows of its batch.
        report: called in the main process after every round, with what is done so far.

    Raises:
        ResumeError: if the file is damaged or was begun with other settings.
        ValueError: if the condition has another number of rows.
    """
    told = Condition.of(condition)
    told.check(len(items))
    processes = Processes() if processes is None else processes
    columns, before = ({}, 0.0) if part is None or fresh else part.read()
    state, keep = Evaluation(columns, len(items), before), _Keep(part if processes.main else None, columns)
    run = _Run(work, items, told, order(len(items), seed), processes, size, model)
    processes.wait()  # all have read the file before one replaces it
    start, interrupted = time.monotonic(), False
    end = reached(state.values, target)
    try:
        while end is None and state.done < len(items):
            state = state.more(run.round(state.done), before + time.monotonic() - start)
            keep(state)
            if processes.main and report is not None:
                report(state)
            end = reached(state.values, target)
    except KeyboardInterrupt:
        interrupted = True
    finally:  # failures keep what is done, too
        keep(state, now=True)
    kept = {name: values[:end] for name, values in state.columns.items()}
    return Evaluation(kept, len(items), state.seconds, end is not None and end < len(items), interrupted)


class _Keep:
    """Writes the file, if there is one, every now and then."""

    def __init__(self, part: PartialResults | None, columns: Columns) -> None:
        self.part, self.done, self.last = part, len(columns.get("item", ())), time.monotonic()

    def __call__(self, state: Evaluation, *, now: bool = False) -> None:
        if self.part is None or state.done == self.done:
            return
        if now or time.monotonic() - self.last > _SAVE_EVERY:
            self.part.write(state.columns, state.seconds)
            self.done, self.last = state.done, time.monotonic()


class _Run:
    """Rounds, shared evenly by the processes, each of which takes its share in pieces that fit its memory.

    Nothing is exchanged within a share: processes that need more forwards, or smaller pieces, only take longer.
    """

    def __init__(
        self,
        work: Score,
        items: Tensor,
        condition: Condition,
        places: NDArray[np.int64],
        processes: Processes,
        size: int | None,
        model: nn.Module | None,
    ) -> None:
        self.work, self.items, self.condition, self.places = work, items, condition, places
        self.processes, self.model = processes, model
        self.share = FIRST if size is None else size  # items of a round in each process
        self.pieces = None if size is None else Microbatches(size)  # of a share

    def round(self, start: int) -> Columns:
        """The columns of the next items from place ``start`` on, all processes' together."""
        stop = min(start + self.share * self.processes.count, len(self.places))
        shares = np.array_split(np.arange(start, stop), self.processes.count)
        mine = shares[self.processes.rank]
        # A process without items goes through the same motions with the round's first, so that none waits for it.
        rows = self._rows(mine if len(mine) else shares[0][:1])
        columns = torch.stack([column.double().cpu() for column in rows.values()])
        padded = columns.new_zeros(len(columns), len(shares[0]))
        padded[:, : columns.shape[1]] = columns
        gathered = self.processes.gather(padded)
        joined = torch.cat([gathered[rank, :, : len(share)] for rank, share in enumerate(shares)], dim=1).numpy()
        return {**dict(zip(rows, joined, strict=True)), "item": self.places[start:stop]}

    def _rows(self, places: NDArray[np.int64]) -> Mapping[str, Tensor]:
        index, first = torch.from_numpy(self.places[places]), int(places[0])
        x, work = self.items[index].to(self.processes.device), self._told(self.condition.rows(index), first)
        if self.pieces is None:
            self.share = self._fitting(work, x, first)
            self.pieces = Microbatches(self.share)
        return self.pieces(work, x, first)

    def _told(self, condition: Condition, first: int) -> Score:
        """The work under the condition of a batch, whose rows go with the pieces of it."""
        if not condition:
            return self.work

        def told(x: Tensor, place: int) -> Mapping[str, Tensor]:
            return self.work(x, place, condition=condition.rows(slice(place - first, place - first + len(x))))

        return told

    def _fitting(self, work: Score, x: Tensor, first: int) -> int:
        """Items a process takes at a time, the same for all, by what the few ``x`` take."""
        try:
            taken = peak_memory(lambda: work(x, first), self.model) / len(x)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            taken = math.inf  # not even these few fit: one at a time
        fits = fitting(taken, self.processes.device, self._sharing())
        agreed = int(self.processes.gather(torch.tensor(fits)).min())
        return min(agreed, max(_SMALL, -(-len(self.places) // (_ROUNDS * self.processes.count))))

    def _sharing(self) -> int:
        """Processes that share this one's memory: all of them on CPUs, none on devices of their own."""
        return self.processes.count if self.processes.device.type == "cpu" else 1
