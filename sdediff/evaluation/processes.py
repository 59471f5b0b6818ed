"""The processes that share a data set, through accelerate; a single one does without it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


class Processes:
    """This process among those that ``torchrun`` or ``accelerate launch`` started.

    Args:
        device: of a single process; several choose their own, the CPU if this is the CPU.

    Attributes:
        rank: of this process.
        count: of the processes.
        device: of this process.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.rank, self.count, self.device = 0, 1, torch.device(device)
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator  # slow to import, and wanted by several processes only

            self._accelerator = Accelerator(cpu=self.device.type == "cpu")
            self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device

    @property
    def main(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """The tensors of all processes, of one shape ``(...)``, as ``(count, ...)`` on the CPU."""
        if self._accelerator is None:
            return values[None].cpu()
        gathered: Tensor = self._accelerator.gather(values.to(self.device)[None])
        return gathered.cpu()

    def wait(self) -> None:
        """Until all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the group, at the very end."""
        if self._accelerator is not None:
            self._accelerator.end_training()
