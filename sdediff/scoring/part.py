"""What is done so far, on disk: a file that is replaced in one step, and says under which settings it was begun."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.files import write

Settings = Mapping[str, Any]
"""Everything that the figures depend on, by name, as JSON values."""

Columns = dict[str, NDArray[np.generic]]

_SETTINGS, _SECONDS = "settings", "seconds"


def digest(*tensors: Tensor) -> str:
    """A short hash of shapes, types and contents."""
    result = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().view(-1).numpy()
        result.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        result.update(array.tobytes())
    return result.hexdigest()[:16]


def identity(model: Denoiser, items: Tensor) -> dict[str, str]:
    """Which model and which data, as settings."""
    state = model.state_dict()
    moments = () if model.moments is None else (model.moments.mean, model.moments.variances)
    weights = digest(*state.values(), *moments)
    return {"model": f"{weights} {model.sde!r}", "data": digest(items)}


@dataclass(frozen=True)
class Part:
    """The unfinished file beside an output.

    Args:
        path: where.
        settings: of this run.
    """

    path: Path
    settings: Settings

    def read(self) -> tuple[Columns, float]:
        """The columns done so far, and the seconds spent; empty if there is no such file.

        Raises:
            ValueError: if the file is damaged, or was begun with other settings.
        """
        if not self.path.exists():
            return {}, 0.0
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                columns = {name: arrays[name] for name in arrays.files}
            settings = json.loads(str(columns.pop(_SETTINGS)))
            seconds = float(columns.pop(_SECONDS))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            raise ValueError(f"{self.path} is damaged or no file of an unfinished run; --force starts anew") from None
        self._compare(settings)
        return columns, seconds

    def write(self, columns: Columns, seconds: float) -> None:
        """Replace the file in one step."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {_SETTINGS: json.dumps(dict(self.settings)), _SECONDS: seconds, **columns}
        np.savez(buffer, **arrays)
        write(self.path, buffer.getvalue())

    def _compare(self, before: Settings) -> None:
        """Refuse to mix settings."""
        changed = [
            f"another {name}" if name in ("model", "data") else f"{name} {before.get(name)}, now {now}"
            for name, now in ((name, self.settings.get(name)) for name in {**before, **self.settings})
            if before.get(name) != now
        ]
        if changed:
            raise ValueError(f"{self.path} was begun with other settings ({'; '.join(changed)}); --force starts anew")
