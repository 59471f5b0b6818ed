"""Processes that share a data set, through accelerate where there are several."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from sdediff.extras import extra


class Processes:
    """The processes that ``torchrun`` or ``accelerate launch`` started.

    Args:
        device: device of a single process; several choose their own, the CPU if this is the CPU.

    Attributes:
        rank: rank of this process.
        count: number of processes.
        device: device of this process.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.rank, self.count, self.device = 0, 1, torch.device(device)
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            with extra("train", "several processes need"):
                from accelerate import Accelerator  # slow to import

            self._accelerator = Accelerator(cpu=self.device.type == "cpu")
            self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device

    @property
    def main(self) -> bool:
        """Tell whether this is the process that reports and writes."""
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """Gather the tensors of all processes, of one shape ``(...)``, as ``(count, ...)`` on the CPU."""
        if self._accelerator is None:
            return values[None].cpu()
        gathered: Tensor = self._accelerator.gather(values.to(self.device)[None])
        return gathered.cpu()

    def wait(self) -> None:
        """Wait for all processes."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the group of processes together, at the end."""
        if self._accelerator is not None:
            self.wait()  # one that leaves while another still reads from it is aborted
            self._accelerator.end_training()
