"""Batch sizes by the measured memory of a few items."""

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
"""Largest number of bytes of a batch on a CPU, beyond which larger batches are no faster."""

MEASURED_FORWARDS = 5
"""Number of measured forwards, enough to fill the history of a multistep method. Tensors kept of every node come on
top: little beside a network's activations, and where they are not, microbatches are halved."""

_MEMORY_SHARE = 0.5  # share of the free memory: allocators keep more than is in use, libraries need workspace


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """A context that measures the peak of bytes in tensors made within it.

    Every storage is counted from the operation that makes it until it is freed, on any device, also those that only
    the graph of a backward pass keeps.

    Args:
        existing: tensors from before, such as weights; views of them cost nothing.
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in existing}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count its new tensors."""
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


class _MeasuredError(Exception):
    """End of a call that is only measured."""


def peak_memory(call: Callable[[], object], model: nn.Module | None = None) -> int:
    """Return the peak number of bytes of a call, besides existing tensors.

    Args:
        call: function to be measured; with a model, for ``MEASURED_FORWARDS`` of its forwards only, as the others need
            about as much.
        model: network of the function.
    """
    left = MEASURED_FORWARDS

    def count(*_: object) -> None:
        nonlocal left
        if left == 0:
            raise _MeasuredError
        left -= 1

    hook = None if model is None else model.register_forward_pre_hook(count)
    existing = () if model is None else (*model.parameters(), *model.buffers())
    try:
        with PeakMemory(existing) as memory, suppress(_MeasuredError):
            call()
    finally:
        if hook is not None:
            hook.remove()
    peak: int = memory.peak
    return peak


def fitting(bytes_per_item: float, device: torch.device, processes: int = 1) -> int:
    """Return the number of items that fit, at least one; a power of two, robust to small differences in the measure.

    Args:
        bytes_per_item: peak number of bytes of an item.
        device: device of the batch.
        processes: number of processes that share the device's memory.
    """
    room = _MEMORY_SHARE * free_memory(device) / processes
    if device.type == "cpu":
        room = min(room, CACHE)
    most = max(1, int(room / max(bytes_per_item, 1.0)))
    return min(1 << (most.bit_length() - 1), 1 << 16)


def free_memory(device: torch.device) -> float:
    """Return the number of free bytes on a device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # systems without these numbers: enough for CACHE
        return 2.0 * CACHE / _MEMORY_SHARE
