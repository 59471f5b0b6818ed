"""Items in and out: what a command reads as DATA, and how it writes samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff import plots
from sdediff.cli.console import Report, warnings_as_lines
from sdediff.cli.output import write_npz
from sdediff.cli.runs import Run, run_config
from sdediff.data import DATASETS, Dataset, load_dataset, to_levels, to_values
from sdediff.data.files import load_items
from sdediff.data.layout import AUTO
from sdediff.data.remarks import DataWarning, are_levels, levels_message
from sdediff.denoiser import Denoiser

NAMES = ("x_test", "data", "levels", "samples")
"""Arrays of an ``.npz`` that are items; the levels of samples go before their values."""

SHOWN = {True: 400, False: 20_000}
"""Most items in one picture: images, points."""


class Read(NamedTuple):
    """What was read.

    Attributes:
        items: ``(n, *shape)`` in the order of their file, integer levels or floats.
        words: what they are.
        labels: the class of each, ``(n,)``, where the data have labels.
    """

    items: Tensor
    words: str
    labels: Tensor | None


def read_items(data: str | None, run: Run, number: int | None = None) -> Read:
    """Read the items that a command works on.

    Args:
        data: a name (its held-out part), a file or folder (all of it), or ``None``, or what the run was trained on, for
            what it held out.
        run: whose data they must be like.
        number: only the first so many.

    Raises:
        FileNotFoundError: if they are not there.
        ValueError: if they cannot be read, or are not of the shape of the run's data.
    """
    with warnings_as_lines():
        items, words, labels = _items(data, run)
    if len(items) == 0:
        raise ValueError(f"{words}: there are no items")
    if tuple(items.shape[1:]) != run.info.shape:
        raise ValueError(f"{words}: the run's items have shape {run.info.shape}, these {tuple(items.shape[1:])}")
    if run.info.levels is None:
        items = items.float()
    elif not items.is_floating_point():
        to_values(items, run.info)  # says which levels are allowed
    elif are_levels(items, run.info):
        raise ValueError(f"{words}: {levels_message(run.info)}")
    return Read(items[:number], words, None if labels is None else labels[:number])


def _items(data: str | None, run: Run) -> Read:
    config = run_config(run.folder)
    if data is None and config is None:
        raise ValueError(f"{run.folder} does not say what it was trained on: give DATA")
    own = config is not None and data in (None, config.data.name)
    if config is not None and own:  # with its own seed: another would hold out what it was trained on
        section = config.data
        found = load_dataset(section.name, section.seed, section.layout, standardise=section.standardise)
        return _held_out(found, section.name)
    name = str(data)
    if name in DATASETS or not Path(name).exists():
        return _held_out(load_dataset(name), name)
    read = load_items(Path(name), NAMES, AUTO if config is None else config.data.layout, run.info.shape)
    return Read(read.x, name, read.labels)


def _held_out(dataset: Dataset, name: str) -> Read:
    return Read(dataset.held_out, f"held-out {name}", dataset.held_out_labels)


def as_values(items: Tensor, run: Run) -> Tensor:
    """Items as the library takes them, on its device: levels at the centres of their bins, floats as they are."""
    values = items if items.is_floating_point() else to_values(items, run.info)
    return values.to(run.device)


def in_batches(
    model: Denoiser, x: Tensor, size: int, work: Callable[[Denoiser, Tensor], Tensor], report: Report
) -> Tensor:
    """``work`` on ``size`` items at a time and the model of these; the results in one tensor on the CPU."""
    model.check_batch(len(x))
    parts = []
    for start in range(0, len(x), size):
        parts.append(work(model.part(start, size, len(x)), x[start : start + size]).cpu())
        report(min(start + size, len(x)), len(x))
    return torch.cat(parts)


def arrays_of(x: Tensor, run: Run) -> dict[str, Any]:
    """Samples as they are and, for integer data, as levels in the smallest type that holds them."""
    if run.info.levels is None:
        return {"samples": x.numpy()}
    levels = to_levels(x, run.info).numpy()
    return {"samples": x.numpy(), "levels": levels.astype(np.min_scalar_type(run.info.levels - 1))}


def write_samples(x: Tensor, run: Run, files: Mapping[str, Path], **also: Any) -> str:
    """Write samples ``(n, *shape)`` as ``.npz``, with what else there is, and a picture; the arrays' names.

    The picture shows at most as many as can be told apart; points lie on the held-out data.
    """
    arrays = arrays_of(x, run)
    write_npz(files[".npz"], {**arrays, **also})
    image = plots.is_image(run.info.shape)
    plots.picture(x[: SHOWN[image]], run.info, files[".png"], reference=None if image else backdrop(run))
    return ", ".join(arrays)


def backdrop(run: Run) -> Tensor | None:
    """The held-out points to draw beneath others, if they are still there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # it was said when the run was trained
            return _items(None, run).items
    except (ValueError, OSError):  # a picture without them is better than none
        return None
