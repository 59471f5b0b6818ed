"""A run as commands use it: the folder, its model, its data, a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sdediff.checkpoint import DESCRIPTION, latest_run, load
from sdediff.cli.console import Console
from sdediff.config import Config
from sdediff.denoiser import Denoiser, ScoreModel
from sdediff.training.loop import CONFIG
from sdediff.training.record import read_record
from sdediff.types import DataInfo


class Run(NamedTuple):
    """A trained run, opened.

    Attributes:
        folder: of the run.
        model: on ``device``, in evaluation mode.
        info: what its data are.
        device: where it works.
    """

    folder: Path
    model: ScoreModel
    info: DataInfo
    device: torch.device


def open_run(folder: Path | None, device: str, console: Console) -> Run:
    """Load the model of a run, the most recent one by default.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a device that does not exist, or a model that is damaged or does not say what its data are.
    """
    place = pick_device(device)
    folder = find_run(console) if folder is None else folder
    model = load(folder, device=place)
    folder = folder.parent if folder.is_file() else folder  # the model's file stands for its folder
    if model.data is None:
        raise ValueError(f"the model in {folder} does not say what its data are (save it with data=DataInfo(...))")
    return Run(folder, model, model.data, place)


def find_run(console: Console, holding: str = DESCRIPTION) -> Path:
    """The most recent run that holds a file, the model's by default, and a remark which it is.

    Raises:
        FileNotFoundError: if there is none.
    """
    try:
        folder = latest_run(holding=holding)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; train one with `sdediff train`, or name one with --run") from None
    console.note(f"run: {folder} (the most recent)")
    return folder


def run_config(folder: Path) -> Config | None:
    """The configuration a run was trained with, if it was trained here."""
    return Config.load(folder / CONFIG) if (folder / CONFIG).is_file() else None


def read_metrics(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of everything a run wrote down, by name; empty if it wrote nothing."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for entry in read_record(folder):
        step = int(entry.pop("step"))
        for name, value in entry.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return series


class Count:
    """Forwards of a model: how often it was called, and with how many items in all."""

    calls = 0
    items = 0


@contextmanager
def counting(model: Denoiser) -> Iterator[Count]:
    """Count the forwards of a model while entered."""
    count = Count()

    def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        forwards = model.nfe(inputs[1])
        count.calls += forwards
        count.items += forwards * len(inputs[0])

    handle = model.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def pick_device(name: str) -> torch.device:
    """A device by name; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    available = [kind for kind, present in _present().items() if present]
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # unknown names and missing drivers, as torch reports them
        raise ValueError(f"no device {name!r} here; available: {', '.join(available)}") from None
    return device


def _present() -> dict[str, bool]:
    """Kinds of devices, the fastest first."""
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
