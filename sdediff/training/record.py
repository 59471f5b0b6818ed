"""Metrics of a run: ``metrics.jsonl``, one JSON object a line, and event files for TensorBoard in ``tb/``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sdediff.extras import extra
from sdediff.files import write

METRICS, BOARD = "metrics.jsonl", "tb"


def read_record(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics; an empty list if there are none. Damaged lines are left out."""
    path = folder / METRICS
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [entry for line in lines if (entry := _entry(line)) is not None]


def _entry(line: bytes) -> dict[str, float] | None:
    """Return the numbers of one line, ``None`` if it is damaged: a crash may cut it short."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        return None
    return entry if all(type(value) in (int, float) for value in entry.values()) else None


class Record:
    """Writer of a run's metrics; on a resumed run, lines after the resumed step are removed.

    Args:
        folder: folder of the run; ``None`` to keep the lines in memory alone.
        step: number of steps done.

    Attributes:
        lines: the lines so far, those of a resumed run included.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self.lines: list[dict[str, float]] = []
        self._path: Path | None = None
        self._board: Any = None
        if folder is None:
            return
        with extra("train"):
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and used nowhere else

        self._path = folder / METRICS
        self.lines = [entry for entry in read_record(folder) if entry["step"] <= step]
        write(self._path, "".join(json.dumps(entry) + "\n" for entry in self.lines).encode())
        self._board = SummaryWriter(str(folder / BOARD), purge_step=step + 1)

    def add(self, step: int, **numbers: float) -> None:
        """Write one line."""
        self.lines.append({"step": step, **numbers})
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def add_picture(self, step: int, path: Path) -> None:
        """Show a picture on the board."""
        if self._board is not None:
            with extra("plots"):
                from PIL import Image
            with Image.open(path) as image:
                self._board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def smallest(self, name: str) -> float:
        """Return the smallest number of a name so far, infinity if there is none."""
        return min((line[name] for line in self.lines if name in line), default=math.inf)

    def close(self) -> None:
        """Flush the buffered events."""
        if self._board is not None:
            self._board.close()
