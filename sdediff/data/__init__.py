"""Data sets. ``DATASETS`` is the list of names; anything else is read as a path."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from typing_extensions import Unpack

from sdediff.data.dataset import Dataset
from sdediff.data.digits import digits
from sdediff.data.files import load_file
from sdediff.data.huggingface import PREFIX as HUB
from sdediff.data.layout import KINDS, LAYOUTS, describe_items
from sdediff.data.levels import bin_width, to_levels, to_values
from sdediff.data.reading import Reading, ReadingOptions
from sdediff.data.remarks import DataWarning, remarks, warn
from sdediff.data.toy import TOYS, toy
from sdediff.data.units import standardised, to_data, to_model

DATASETS: dict[str, Callable[[int], Dataset]] = {"digits": digits, **{name: partial(toy, name) for name in TOYS}}


def load_dataset(
    name_or_path: str | Path, seed: int = 0, *, standardise: bool = True, **reading: Unpack[ReadingOptions]
) -> Dataset:
    """Read data by name or from a path.

    Args:
        name_or_path: a key of ``DATASETS``, a path (see :func:`~sdediff.data.files.load_file`), or a name that
            Hugging Face's ``datasets`` knows after ``hf:``.
        seed: seed of the hold-out and of synthetic data.
        standardise: whether the model's coordinates of continuous rows of a file are those in which each column of the
            training part has mean 0 and deviation 1 (``info.shift`` and ``info.scale``). The data stay as they are.
        **reading: the choices of the reader, see :class:`~sdediff.data.reading.Reading`.

    Raises:
        FileNotFoundError: if it is neither a name nor a path that exists.
        ValueError: if the data cannot be used; in one line.

    Warns:
        DataWarning: for oddities such as constant columns or levels stored as floats, with the cure, and for items that
            are left out or changed.

    >>> print(sdediff.data.load_dataset("digits"))
    1,437 images 1x8x8, grey, 17 levels; 360 held out; 10 classes
    """
    how = Reading(**reading)
    if str(name_or_path) in DATASETS:
        if chosen := dict(asdict(how).items() - asdict(Reading()).items()):
            raise ValueError(f"{name_or_path} is no file: how it is read cannot be chosen ({', '.join(chosen)})")
        return DATASETS[str(name_or_path)](seed)
    path = Path(name_or_path)
    if not (path.exists() or str(name_or_path).startswith(HUB)):
        raise FileNotFoundError(f"no data {str(path)!r}: neither a path nor one of {', '.join(DATASETS)}")
    data = load_file(path, seed, how)
    if standardise:
        data = replace(data, info=standardised(data.train, data.info))
    for line in remarks(data.train, data.info, data.columns) if data.info.levels is None else ():
        warn(f"{path}: {line}")
    return data


__all__ = [
    "DATASETS",
    "KINDS",
    "LAYOUTS",
    "TOYS",
    "DataWarning",
    "Dataset",
    "Reading",
    "ReadingOptions",
    "bin_width",
    "describe_items",
    "load_dataset",
    "standardised",
    "to_data",
    "to_levels",
    "to_model",
    "to_values",
]
