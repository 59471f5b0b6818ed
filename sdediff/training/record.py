"""What a run writes down: ``metrics.jsonl``, a JSON object a line, and the same for TensorBoard in ``tb/``."""

from __future__ import annotations

import json
from pathlib import Path

from sdediff.checkpoint import write

METRICS, BOARD = "metrics.jsonl", "tb"


class Record:
    """Appends numbers to a run's metrics; opened on a resumed run it forgets what came after the resumed step."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and wanted nowhere else

        self._path = folder / METRICS
        kept = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.is_file() else []
        write(self._path, "".join(line for line in kept if json.loads(line)["step"] <= step).encode())
        self._board = SummaryWriter(str(folder / BOARD), purge_step=step + 1)

    def add(self, step: int, **numbers: float) -> None:
        """Write one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush what is buffered."""
        self._board.close()
