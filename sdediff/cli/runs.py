"""Runs: their folders, models, configurations and metrics, and the device."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdediff.checkpoint import DESCRIPTION, latest_run, load_any
from sdediff.cli.console import Console
from sdediff.cli.options import given_network, may_download
from sdediff.config import Config
from sdediff.data import to_values
from sdediff.denoiser import Denoiser
from sdediff.devices import pick_device
from sdediff.execution import Execution
from sdediff.foreign import twin_of
from sdediff.interop import fetch_model, is_hub_name
from sdediff.latent import FirstStage, LatentModel
from sdediff.numerics import in_parts
from sdediff.score_model import ScoreModel
from sdediff.training.folder import CONFIG
from sdediff.training.record import read_record
from sdediff.types import DataInfo

MAIN = os.environ.get("RANK", "0") == "0"
"""Whether this is the one of several processes that writes and prints."""


class Run(NamedTuple):
    """A trained run.

    Attributes:
        folder: folder of the run.
        loaded: the model on ``device``, in evaluation mode.
        info: description of the data.
        device: device of the model.
        condition: what the model is told, tensors by the network's arguments.
    """

    folder: Path
    loaded: ScoreModel | FirstStage | LatentModel
    info: DataInfo
    device: torch.device
    condition: Mapping[str, Tensor]

    @property
    def model(self) -> ScoreModel:
        """The score model: of a run in two stages that of the codes.

        Raises:
            ValueError: for an autoencoder, whose codes have no law.
        """
        return self.loaded if isinstance(self.loaded, ScoreModel) else self.loaded.prior

    @property
    def stage(self) -> FirstStage | LatentModel | None:
        """The model of a run in two stages, ``None`` for any other run."""
        return None if isinstance(self.loaded, ScoreModel) else self.loaded

    def with_model(self, model: ScoreModel) -> Run:
        """Return the run with another score model, such as the same under a condition."""
        loaded = self.loaded
        if isinstance(loaded, LatentModel):
            loaded = twin_of(loaded)
            loaded.score_model = model
            return self._replace(loaded=loaded)
        return self._replace(loaded=model) if isinstance(loaded, ScoreModel) else self

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the states that the model solves for: that of the codes, or else of the data."""
        return self.info.shape if self.stage is None else self.stage.code_shape

    def states(self, items: Tensor) -> Tensor:
        """Return items as states on the run's device: codes, or values with levels at the centres of their bins."""
        if self.stage is not None:
            return torch.cat([self.stage.to_codes(part) for part in in_parts(items)])
        values = items if items.is_floating_point() else to_values(items, self.info)
        return values.to(self.device)

    def data(self, states: Tensor, batch_size: int | None = None) -> Tensor:
        """Return states as data on the CPU: codes decoded, others as they are."""
        return (states if self.stage is None else self.stage.decoded(states, batch_size)).cpu()


def open_model(
    folder: Path | None, device: str, console: Console
) -> tuple[Path, ScoreModel | FirstStage | LatentModel, torch.device]:
    """Load the model of a run, the most recent one by default; return its folder and its device too.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the device does not exist, or the model is damaged.
    """
    chosen = pick_device(device)
    folder = find_run(console) if folder is None else folder
    if may_download() and is_hub_name(folder):
        folder = fetch_model(str(folder))
    model = load_any(folder, device=chosen, network=given_network())
    return folder.parent if folder.is_file() else folder, model, chosen  # the model's file stands for its folder


def open_run(folder: Path | None, device: str, console: Console, execution: Execution | None = None) -> Run:
    """Load the model of a run, the most recent one by default, whose network is run as ``execution`` says.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the device does not exist, or the model is damaged or without a description of its data.
    """
    folder, loaded, chosen = open_model(folder, device, console)
    if loaded.data is None:
        raise ValueError(f"the model in {folder} does not say what its data are (save it with data=DataInfo(...))")
    run = Run(folder, loaded, loaded.data, chosen, {})
    return run if execution is None or execution == Execution() else run.with_model(run.model.with_execution(execution))


def find_run(console: Console, holding: str = DESCRIPTION) -> Path:
    """Return the most recent run that holds a file, the model's by default, and print its name.

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
    """Return the configuration that a run was trained with, if its folder holds one.

    Folders of diffusers, which have no model of the library's, have a file of that name that describes the network.
    """
    own = (folder / DESCRIPTION).is_file() and (folder / CONFIG).is_file()
    return Config.load(folder / CONFIG) if own else None


def read_metrics(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and values of a run's metrics by name; an empty table if there are none."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for entry in read_record(folder):
        step = int(entry.pop("step"))
        for name, value in entry.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return series


class Measurement:
    """Network evaluations and time of some work.

    Attributes:
        calls: number of calls of the network.
        items: number of items over all calls.
        seconds: duration.
        report: progress function, called with the work done and in all.
    """

    calls = 0
    items = 0
    seconds = 0.0
    report: Callable[[int, int], None]


@contextmanager
def counting(model: Denoiser, report: Callable[[int], None] | None = None) -> Iterator[Measurement]:
    """Count the evaluations of a model and measure the time while entered; report the items after every one."""
    measured, start = Measurement(), time.perf_counter()

    def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nfe = model.nfe(inputs[1])
        measured.calls += nfe
        measured.items += nfe * len(inputs[0])
        if report is not None:
            report(measured.items)

    handle = model.register_forward_pre_hook(add)
    try:
        yield measured
    finally:
        handle.remove()
        measured.seconds = time.perf_counter() - start
