"""Partial results on disk, in a file that is replaced in one step and holds the settings of its run."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdediff.conditions import Condition, ConditionLike
from sdediff.denoiser import Denoiser
from sdediff.files import write
from sdediff.noise import STREAM
from sdediff.parametrization import Prediction

RunSettings = Mapping[str, Any]
"""Settings that the results depend on, by name, as JSON values."""

Columns = dict[str, NDArray[np.generic]]

_SETTINGS, _SECONDS = "settings", "seconds"
_STREAM = "noise stream"
_CONDITION = "condition"
_MODULE_ATTRIBUTES = {*vars(nn.Module())}
"""Attributes of every module: hooks, children, weights, which count elsewhere or not at all."""


class ResumeError(ValueError):
    """An unfinished file that cannot be resumed, since it is damaged or has other settings."""


def digest(value: object) -> str:
    """Return a short hash of a value: types, names, numbers, tensors.

    Modules count by their state and, where they are denoisers, by all their attributes; other objects, such as
    functions, by their names alone.
    """
    result = hashlib.sha256()
    for piece in _pieces(value):
        result.update(len(piece).to_bytes(8, "big") + piece)
    return result.hexdigest()[:16]


def identity(model: nn.Module, items: Tensor, condition: ConditionLike = None) -> dict[str, str]:
    """Return the hashes of model, data and, if there is one, condition, as settings."""
    rows = Condition.of(condition)
    return {"model": digest(model), "data": digest(items), **({_CONDITION: digest(rows)} if rows else {})}


def _pieces(value: object) -> Iterator[bytes]:
    """Yield a value as bytes, part by part."""
    yield getattr(value, "__qualname__", type(value).__qualname__).encode()
    if isinstance(value, Tensor):
        yield f"{tuple(value.shape)} {value.dtype}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, nn.Module):
        yield from _pieces(dict(value.state_dict()))
        for name, module in value.named_modules():
            own = {key: part for key, part in vars(module).items() if key not in _MODULE_ATTRIBUTES}
            yield from _pieces([name, type(module).__qualname__, own if isinstance(module, Denoiser) else None])
    elif isinstance(value, Prediction) or (is_dataclass(value) and not isinstance(value, type)):
        yield from _pieces(vars(value))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _pieces([str(key), value[key]])
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for part in value:
            yield from _pieces(part)
    elif isinstance(value, bool | int | float | complex | str | bytes | NoneType):
        yield repr(value).encode()


@dataclass(frozen=True)
class PartialResults:
    """The unfinished file beside an output.

    Args:
        path: path of the file.
        settings: settings of this run.
    """

    path: Path
    settings: RunSettings

    def read(self) -> tuple[Columns, float]:
        """Read the columns so far, and the seconds spent; empty if there is no such file.

        Raises:
            ResumeError: if the file is damaged, or was begun with other settings.
        """
        if not self.path.exists():
            return {}, 0.0
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                columns = {name: arrays[name] for name in arrays.files}
            settings = json.loads(str(columns.pop(_SETTINGS)))
            seconds = float(columns.pop(_SECONDS))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            raise ResumeError(f"{self.path} is damaged or no file of an unfinished run") from None
        self._compare(settings)
        return columns, seconds

    def write(self, columns: Columns, seconds: float) -> None:
        """Replace the file in one step."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {_SETTINGS: json.dumps(self._all_settings()), _SECONDS: seconds, **columns}
        np.savez(buffer, **arrays)
        write(self.path, buffer.getvalue())

    def _all_settings(self) -> dict[str, Any]:
        """Return the run's settings and the version of the stream of its noise."""
        return {**self.settings, _STREAM: STREAM}

    def _compare(self, before: RunSettings) -> None:
        """Refuse a file of other settings."""
        own = self._all_settings()
        changed = [
            f"another {name}" if name in ("model", "data", _CONDITION) else f"{name} {before.get(name)}, now {now}"
            for name, now in ((name, own.get(name)) for name in {**before, **own})
            if before.get(name) != now
        ]
        if changed:
            raise ResumeError(f"{self.path} was begun with other settings ({'; '.join(changed)})")
