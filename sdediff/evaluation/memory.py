"""How many items at a time: as many as memory holds, by what a few of them took."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CACHE = 1 << 28
"""Bytes that a batch takes on a CPU at the most: beyond that, larger batches are no faster."""

FORWARDS = 5
"""Forwards that are measured: enough for a multistep method's memory to fill. What a method keeps of every node comes
on top; beside the activations of a network that is little, and where it is not, the pieces are halved."""

_SHARE = 0.5  # of the free memory: allocators keep more than is in use, libraries want room to work in


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """While entered, follow how many bytes the tensors made since hold.

    Every storage is counted from the operation that makes it until it is freed, on any device, also those that only
    the graph of a backward pass keeps.

    Args:
        known: tensors that were there before, such as weights; views of them cost nothing.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self._add(made.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


class _EnoughError(Exception):
    """Ends work that is only measured."""


def peak_memory(work: Callable[[], object], model: nn.Module | None = None) -> int:
    """Bytes that some work takes at the peak, beside what is there already.

    Args:
        work: is begun and, with a model, broken off after ``FORWARDS`` of its forwards: the rest takes about as much.
        model: that it calls.
    """
    left = FORWARDS

    def count(*_: object) -> None:
        nonlocal left
        if left == 0:
            raise _EnoughError
        left -= 1

    hook = None if model is None else model.register_forward_pre_hook(count)
    known = () if model is None else (*model.parameters(), *model.buffers())
    try:
        with PeakMemory(known) as memory, suppress(_EnoughError):
            work()
    finally:
        if hook is not None:
            hook.remove()
    peak: int = memory.peak
    return peak


def fitting(bytes_per_item: float, device: torch.device, processes: int = 1) -> int:
    """Items that a batch can hold, at least one; a power of two, so that a slightly different measure says the same.

    Args:
        bytes_per_item: what each takes at the peak.
        device: where.
        processes: that share the device's memory.
    """
    room = _SHARE * free_memory(device) / processes
    if device.type == "cpu":
        room = min(room, CACHE)
    most = max(1, int(room / max(bytes_per_item, 1.0)))
    return min(1 << (most.bit_length() - 1), 1 << 16)


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # systems that do not say: enough for CACHE
        return 2.0 * CACHE / _SHARE


class Microbatches:
    """Work on a batch in pieces that fit: where memory runs out, the pieces are halved, for this batch and the next.

    Args:
        size: items of a piece.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, work: Callable[[Tensor, int], Mapping[str, Tensor]], x: Tensor, first: int) -> dict[str, Tensor]:
        """``work(items, first)`` over the items ``x``, whose numbers start at ``first``; its columns, joined.

        Raises:
            MemoryError: if a single item does not fit.
        """
        parts, start = [], 0
        while start < len(x):
            piece = x[start : start + self.size]
            try:
                parts.append(work(piece, first + start))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if len(piece) == 1:
                    reason = str(error).partition("\n")[0]
                    raise MemoryError(f"a single item does not fit into memory: {reason}") from None
            else:
                start += len(piece)
                continue
            self.size = len(piece) // 2  # outside the handler, which holds on to everything the failure left
            if x.device.type == "cuda":
                torch.cuda.empty_cache()
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch has no type of its own for that."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)
