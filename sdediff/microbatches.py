"""Microbatches that fit into memory: where it runs out their size is halved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

ResultT = TypeVar("ResultT")

_SIGNS = "not enough memory", "out of memory", "ALLOC_FAILED"
"""What errors of memory say that have no type of their own: of the CPU, of MPS, and of libraries on CUDA."""


class Microbatches:
    """Microbatches of a batch that fit into memory; where it runs out their size is halved, for later batches too.

    Args:
        size: number of items of a microbatch.

    >>> from sdediff.microbatches import Microbatches
    >>> list(Microbatches(4)(10, range))
    [range(0, 4), range(4, 8), range(8, 10)]
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, count: int, work: Callable[[int, int], ResultT]) -> Iterator[ResultT]:
        """Yield ``work(begin, end)`` of one microbatch of ``count`` items after another.

        Raises:
            MemoryError: if a single item does not fit.
        """
        begin = 0
        while begin < count:
            end = min(begin + self.size, count)
            try:
                found = work(begin, end)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if end - begin == 1:
                    reason = str(error).partition("\n")[0]
                    raise MemoryError(f"a single item does not fit into memory: {reason}") from None
            else:
                yield found
                begin = end
                continue
            self.size = (end - begin) // 2  # outside the handler, which keeps all tensors of the failed call
            release()


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is one of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


def release() -> None:
    """Give the memory that allocators keep in reserve back to the devices, which are short of it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
