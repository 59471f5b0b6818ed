"""Metrics of a run: ``metrics.jsonl``, one JSON object a line, and event files for TensorBoard in ``tb/``."""

from __future__ import annotations

import json
from pathlib import Path

from sdediff.files import write

METRICS, BOARD = "metrics.jsonl", "tb"


def read_record(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics; an empty list if there are none.

    Raises:
        ValueError: if a line is damaged, unless it is the last one, which a crash may cut short.
    """
    path, entries = folder / METRICS, []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"{path} is damaged: line {number} is no JSON") from None
    return entries


class Record:
    """Writer of a run's metrics; on a resumed run, lines after the resumed step are removed."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and used nowhere else

        self._path = folder / METRICS
        kept = [entry for entry in read_record(folder) if entry["step"] <= step]
        write(self._path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._board = SummaryWriter(str(folder / BOARD), purge_step=step + 1)

    def add(self, step: int, **numbers: float) -> None:
        """Write one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the buffered events."""
        self._board.close()
