r"""The evaluation of a data set in rounds of batches, in an order whose every beginning is a random sample.

Items are taken in a random order that ``seed`` fixes, so that the mean over the first m of them estimates the mean over
all without bias, and their noise depends on the position in that order: neither the batch size, nor the number of
processes, nor an interruption changes a figure.

With a target, the run ends at the first multiple of ``BLOCK`` items where the standard error of their mean,
``std / sqrt(m)``, has come down to it. The mean's interval is right in the limit of a small target (Chow & Robbins
1965); for larger targets the run stops a little too early on values with rare large ones. ``BLOCK`` prevents a stop by
a lucky start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdediff.conditions import Condition, ConditionLike
from sdediff.evaluation.memory import fitting, peak_memory
from sdediff.evaluation.processes import Processes
from sdediff.evaluation.resume import Columns, PartialResults
from sdediff.frames import frame
from sdediff.microbatches import Microbatches, out_of_memory
from sdediff.types import brief

if TYPE_CHECKING:
    from sdediff.frames import DataFrame

BLOCK = 32
"""Number of items between two checks of the target, whatever the batches are."""

MEASURED_ITEMS = 4
"""Number of items of the batch whose memory is measured."""

_MIN_ROUNDS, _MIN_BATCH = 8, 16  # rounds, for progress and saved files, unless their batches are that small
_SAVE_EVERY = 2.0  # seconds between two writes of the file
_ORDER_STREAM = 1  # stream of the seed's random numbers for the order

BatchEvaluation = Callable[..., Mapping[str, Tensor]]
"""Function ``evaluate_batch(x, first)`` from items ``(B, *shape)`` and the position of the first to named columns
``(B,)``, the first of which is averaged; with a condition, ``evaluate_batch(x, first, condition=rows)``."""


def order(count: int, seed: int) -> NDArray[np.int64]:
    """Return the order in which the items ``0 .. count - 1`` are taken."""
    return np.random.default_rng((seed % (1 << 64), _ORDER_STREAM, count)).permutation(count)


def mean_and_error(values: NDArray[np.generic]) -> tuple[float, float]:
    """Return the mean and its standard error as an estimate for the data's population, NaN for a single item."""
    numbers = np.asarray(values, dtype=np.float64)
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    return float(numbers.mean()), error


def reached(values: NDArray[np.generic], target: float | None) -> int | None:
    """Return the first multiple of ``BLOCK`` items whose mean has a standard error of at most ``target``, if any."""
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
    """The result of a data set.

    Attributes:
        columns: columns of the items, in the order they were taken; ``item`` is their index in the data.
        total: number of items of the data set.
        seconds: time spent, earlier runs included.
        on_target: whether the run ended at the target.
        interrupted: whether the run was ended by a ``KeyboardInterrupt``.
    """

    columns: Columns
    total: int
    seconds: float
    on_target: bool = False
    interrupted: bool = False

    __repr__ = brief

    @property
    def done(self) -> int:
        """Number of finished items."""
        return len(self.values)

    @property
    def values(self) -> NDArray[np.generic]:
        """Values of the first column, ``(done,)``."""
        return next(iter(self.columns.values()), np.empty(0))

    def to_frame(self) -> DataFrame:
        """Return the columns as a table of pandas, a row an item in the order of the data, ``item`` first.

        Raises:
            ValueError: if pandas is not installed.
        """
        places = np.argsort(self.columns["item"]) if self.columns else np.empty(0, dtype=np.int64)
        return frame({name: self.columns[name][places] for name in sorted(self.columns, key="item".__ne__)})

    def more(self, rows: Columns, seconds: float) -> Evaluation:
        """Return the evaluation with the rows of another round."""
        joined = {name: np.concatenate([self.columns[name], rows[name]]) for name in rows} if self.columns else rows
        return Evaluation(joined, self.total, seconds)


def evaluate(
    evaluate_batch: BatchEvaluation,
    items: Tensor,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    target: float | None = None,
    partial: PartialResults | None = None,
    fresh: bool = False,
    processes: Processes | None = None,
    model: nn.Module | None = None,
    condition: ConditionLike = None,
    report: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Evaluate items until all are done or the target is reached.

    Args:
        evaluate_batch: evaluation of a batch; see ``BatchEvaluation``.
        items: items of the data set, ``(n, *shape)``.
        seed: seed of the order.
        batch_size: number of items a process takes at a time; by default as many as memory holds, by the first few.
        target: standard error of the mean of the first column at which to stop.
        partial: file of the finished items; it stays if items are left.
        fresh: whether to start anew instead of from the file.
        processes: processes that share the items.
        model: network of the evaluation, a few of whose forwards are enough to measure memory.
        condition: condition of the items, one row an item or one for all, in the order of ``items``; every batch gets
            its own rows.
        report: function called in the main process after every round, with the evaluation so far.

    Raises:
        ResumeError: if the file is damaged or was begun with other settings.
        ValueError: if the condition has another number of rows.
    """
    conditions = Condition.of(condition)
    conditions.check(len(items))
    processes = Processes() if processes is None else processes
    columns, before = ({}, 0.0) if partial is None or fresh else partial.read()
    state, save = Evaluation(columns, len(items), before), _Saver(partial if processes.main else None, columns)
    rounds = _Rounds(evaluate_batch, items, conditions, order(len(items), seed), processes, batch_size, model)
    processes.wait()  # all have read the file before one replaces it
    start, interrupted = time.monotonic(), False
    end = reached(state.values, target)
    try:
        while end is None and state.done < len(items):
            state = state.more(rounds.round(state.done), before + time.monotonic() - start)
            save(state)
            if processes.main and report is not None:
                report(state)
            end = reached(state.values, target)
    except KeyboardInterrupt:
        interrupted = True
    finally:  # finished items are saved after failures, too
        save(state, now=True)
    kept = {name: values[:end] for name, values in state.columns.items()}
    return Evaluation(kept, len(items), state.seconds, end is not None and end < len(items), interrupted)


class _Saver:
    """A writer of the file, if there is one, at intervals."""

    def __init__(self, partial: PartialResults | None, columns: Columns) -> None:
        self.partial, self.done, self.last = partial, len(columns.get("item", ())), time.monotonic()

    def __call__(self, state: Evaluation, *, now: bool = False) -> None:
        if self.partial is None or state.done == self.done:
            return
        if now or time.monotonic() - self.last > _SAVE_EVERY:
            self.partial.write(state.columns, state.seconds)
            self.done, self.last = state.done, time.monotonic()


class _Rounds:
    """Rounds, shared evenly by the processes, each of which takes its share in microbatches that fit its memory.

    No process waits for another within a share, whatever its number of forwards or microbatches.
    """

    def __init__(
        self,
        evaluate_batch: BatchEvaluation,
        items: Tensor,
        condition: Condition,
        order: NDArray[np.int64],
        processes: Processes,
        size: int | None,
        model: nn.Module | None,
    ) -> None:
        self.evaluate_batch, self.items, self.condition, self.order = evaluate_batch, items, condition, order
        self.processes, self.model = processes, model
        self.share = MEASURED_ITEMS if size is None else size  # items of a round in each process
        self.microbatches = None if size is None else Microbatches(size)  # of a share

    def round(self, start: int) -> Columns:
        """Return the columns of the next items from position ``start`` on, of all processes together."""
        stop = min(start + self.share * self.processes.count, len(self.order))
        shares = np.array_split(np.arange(start, stop), self.processes.count)
        own = shares[self.processes.rank]
        # A process without items evaluates the round's first, so that all processes take part in the same exchanges.
        rows = self._rows(own if len(own) else shares[0][:1])
        columns = torch.stack([column.double().cpu() for column in rows.values()])
        padded = columns.new_zeros(len(columns), len(shares[0]))
        padded[:, : columns.shape[1]] = columns
        gathered = self.processes.gather(padded)
        joined = torch.cat([gathered[rank, :, : len(share)] for rank, share in enumerate(shares)], dim=1).numpy()
        return {**dict(zip(rows, joined, strict=True)), "item": self.order[start:stop]}

    def _rows(self, positions: NDArray[np.int64]) -> Mapping[str, Tensor]:
        index, first = torch.from_numpy(self.order[positions]), int(positions[0])
        x, function = self.items[index].to(self.processes.device), self._conditional(self.condition.rows(index), first)
        if self.microbatches is None:
            self.share = self._measured_size(function, x, first)
            self.microbatches = Microbatches(self.share)
        parts = [*self.microbatches(len(x), lambda begin, end: function(x[begin:end], first + begin))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _conditional(self, condition: Condition, first: int) -> BatchEvaluation:
        """Return the evaluation under the condition of a batch, whose microbatches get their own rows."""
        if not condition:
            return self.evaluate_batch

        def conditional(x: Tensor, position: int) -> Mapping[str, Tensor]:
            rows = slice(position - first, position - first + len(x))
            return self.evaluate_batch(x, position, condition=condition.rows(rows))

        return conditional

    def _measured_size(self, function: BatchEvaluation, x: Tensor, first: int) -> int:
        """Return the number of items a process takes at a time, the same for all, by the memory of the few ``x``."""
        try:
            taken = peak_memory(lambda: function(x, first), self.model) / len(x)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            taken = math.inf  # not even these few fit: one item at a time
        fits = fitting(taken, self.processes.device, self._memory_processes())
        agreed = int(self.processes.gather(torch.tensor(fits)).min())
        return min(agreed, max(_MIN_BATCH, -(-len(self.order) // (_MIN_ROUNDS * self.processes.count))))

    def _memory_processes(self) -> int:
        """Return the number of processes that share this one's memory: all on CPUs, one on devices of their own."""
        return self.processes.count if self.processes.device.type == "cpu" else 1
