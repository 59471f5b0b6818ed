"""Items: reading DATA, evaluation in batches, writing samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff import plots
from sdediff.cli.console import ProgressReport, warnings_as_lines
from sdediff.cli.options import given_reading
from sdediff.cli.output import write_npz
from sdediff.cli.runs import Run, run_config
from sdediff.config import Config
from sdediff.data import DATASETS, Dataset, Reading, load_dataset, to_levels, to_values
from sdediff.data.dataset import Ids
from sdediff.data.files import load_items
from sdediff.data.held_out import check_held_out
from sdediff.data.remarks import DataWarning, are_levels, levels_message
from sdediff.denoiser import Denoiser

ITEM_ARRAYS = ("x_test", "data", "levels", "samples")
"""Arrays of an ``.npz`` that are items; the levels of samples go before their values."""

CODES = "codes"
"""Name, in place of a solver, of latents that are codes themselves."""

MOST_SHOWN = {True: 400, False: 20_000}
"""Most items in one picture: images, points."""


class DataItems(NamedTuple):
    """Items of a data set or file.

    Attributes:
        items: ``(n, *shape)`` in the order of their file, integer levels or floats.
        name: name of the items, for messages.
        labels: classes of the items, ``(n,)``, if the data have labels.
        ids: numbers of the items' rows or names of their files, ``(n,)``.
        classes: names of the classes ``0, 1, ...``, where they have names.
    """

    items: Tensor
    name: str
    labels: Tensor | None
    ids: Ids | None
    classes: tuple[str, ...] = ()

    @property
    def named(self) -> dict[str, Ids]:
        """Return what the items are in their source, as a column ``row`` or ``file_name``."""
        return {} if self.ids is None else {"file_name" if self.ids.dtype.kind == "U" else "row": self.ids}


def read_items(data: str | None, run: Run, number: int | None = None, label: str | None = None) -> DataItems:
    """Read the items that a command works on.

    Args:
        data: a data set's name for its held-out part, a file or folder for all of it; ``None``, or the name of the
            run's own data, for its held-out part.
        run: run whose data have the same shape and levels.
        number: number of leading items; all by default.
        label: column of a table at DATA that holds the labels, instead of that of the run's data.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if they cannot be read, or are not of the shape of the run's data.
    """
    with warnings_as_lines():
        items, name, labels, ids, classes = _load_items(data, run, label)
    if len(items) == 0:
        raise ValueError(f"{name}: there are no items")
    if tuple(items.shape[1:]) != run.info.shape:
        raise ValueError(f"{name}: the run's items have shape {run.info.shape}, these {tuple(items.shape[1:])}")
    if run.info.levels is None:
        items = items.float()
    elif not items.is_floating_point():
        to_values(items, run.info)  # refuses levels out of range
    elif are_levels(items, run.info):
        raise ValueError(f"{name}: {levels_message(run.info)}")
    first = slice(number)
    labels, ids = None if labels is None else labels[first], None if ids is None else ids[first]
    return DataItems(items[first], name, labels, ids, classes)


def _load_items(data: str | None, run: Run, label: str | None = None) -> DataItems:
    config = run_config(run.folder)
    if data is None and config is None:
        raise ValueError(f"{run.folder} does not say what it was trained on: give DATA")
    own = config is not None and data in (None, config.data.name)
    if label is not None and (own or data in DATASETS):
        are = "are the run's own, read as it was trained" if own else "have no columns"
        raise ValueError(f"no column {label}: the data {are}; give the path of another table")
    if given_reading() and (own or data in DATASETS):
        raise ValueError("--set says how a file or folder is read: give the path of another than the run's own")
    if config is not None and own:  # with its own seed: another would hold out training data
        dataset = config.data.load()
        check_held_out(dataset, run.folder)
        return _held_out(dataset, config.data.name)
    name = str(data)
    if name in DATASETS or not Path(name).exists():
        return _held_out(load_dataset(name), name)
    reading = reading_of(Config() if config is None else config)
    reading = reading if label is None else replace(reading, label=label)
    loaded = load_items(Path(name), ITEM_ARRAYS, reading, run.info.shape)
    return DataItems(loaded.x, name, loaded.labels, loaded.ids, loaded.classes)


def reading_of(config: Config) -> Reading:
    """Return how a file is read: as the run's data, but for what the command was told.

    Raises:
        ValueError: for a setting of another kind, or a value that it cannot have.
    """
    changes, known = given_reading(), [f"data.{field.name}" for field in fields(Reading)]
    wrong = [key for key in changes if key not in known]
    if wrong:
        raise ValueError(f"--set {wrong[0]} does not say how DATA are read; choose of: {', '.join(known)}")
    return config.updated(changes).data.reading()


def _held_out(dataset: Dataset, name: str) -> DataItems:
    labels, ids = dataset.held_out_labels, dataset.held_out_ids
    return DataItems(dataset.held_out, f"held-out {name}", labels, ids, dataset.classes)


def in_batches(
    model: Denoiser, x: Tensor, size: int, work: Callable[[Denoiser, Tensor], Tensor], report: ProgressReport
) -> Tensor:
    """Apply ``work`` to the model and ``size`` items at a time, and join the results on the CPU."""
    model.check_batch(len(x))
    results = []
    for start in range(0, len(x), size):
        results.append(work(model.part(start, size, len(x)), x[start : start + size]).cpu())
        report(min(start + size, len(x)), len(x))
    return torch.cat(results)


def arrays_of(x: Tensor, run: Run) -> dict[str, Any]:
    """Return samples as values and, for integer data, as levels in the smallest type that holds them."""
    if run.info.levels is None:
        return {"samples": x.numpy()}
    levels = to_levels(x, run.info).numpy()
    return {"samples": x.numpy(), "levels": levels.astype(np.min_scalar_type(run.info.levels - 1))}


def write_samples(x: Tensor, run: Run, files: Mapping[str, Path], **also: Any) -> str:
    """Write samples ``(n, *shape)`` and other arrays as ``.npz`` and draw a picture; return the samples' arrays' names.

    The picture shows the first ``MOST_SHOWN``; points are drawn on the held-out data.
    """
    arrays = arrays_of(x, run)
    write_npz(files[".npz"], {**arrays, **also})
    image = plots.is_image(run.info.shape)
    plots.picture(x[: MOST_SHOWN[image]], run.info, files[".png"], reference=None if image else backdrop(run))
    return ", ".join(arrays)


def training_items(run: Run) -> Tensor:
    """Read the items that a run was trained on.

    Raises:
        FileNotFoundError: if they are gone.
        ValueError: if the run does not say what they are, or they have changed.
    """
    config = run_config(run.folder)
    if config is None:
        raise ValueError(f"{run.folder} does not say what it was trained on")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # it was printed when the run was trained
        dataset = config.data.load()
    check_held_out(dataset, run.folder)
    return dataset.train


def backdrop(run: Run) -> Tensor | None:
    """Return the held-out points to draw beneath others, if they can still be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # it was printed when the run was trained
            return _load_items(None, run).items
    except (ValueError, OSError):  # a picture without them is better than none
        return None
