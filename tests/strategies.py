"""Strategies of inputs: options, settings, files of data, models; right ones and wrong ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from hypothesis.strategies import SearchStrategy

from sdediff import GRIDS, SAMPLERS
from sdediff.conditioning import CONDITIONINGS
from sdediff.config import PROCESSES, Config
from sdediff.data import DATASETS, KINDS
from sdediff.data.layout import LAYOUTS
from sdediff.data.reading import MISSING, TEXT
from sdediff.parametrization import PREDICTIONS
from sdediff.types import DataInfo

WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    2.5,
    math.nan,
    math.inf,
    -math.inf,
    1e-320,
    10**400,
    "",
    "3",
    "x",
    "\x00",
    (),
    [0],
]
"""What may come where a number is expected; nothing that is right and large, which takes as long as it says."""

WORDS = [
    "",
    " ",
    "nan",
    "inf",
    "-1",
    "0",
    "1",
    "2",
    "3",
    "0.5",
    "1e-3",
    "1e400",
    "x",
    "é",
    "\u202e",
    "-",
    "--",
    "a,b",
    ",",
]
"""What may be typed where a value is expected."""


def spoiled(right: SearchStrategy[Any], wrong: SearchStrategy[Any] | None = None) -> SearchStrategy[Any]:
    """Mostly right values, and wrong ones."""
    other = st.sampled_from(WRONG) if wrong is None else wrong
    return st.one_of(right, right, right, other)


TIMES = st.floats(0.0, 1.0)
OPTIONS: dict[str, SearchStrategy[Any]] = {
    "steps": spoiled(st.integers(1, 12)),
    "grid": spoiled(st.sampled_from(list(GRIDS)), st.lists(TIMES, max_size=4)),
    "rtol": spoiled(st.floats(1e-4, 0.1)),
    "atol": spoiled(st.floats(1e-4, 0.1)),
    "seed": spoiled(st.integers(-(2**70), 2**70)),
    "first": spoiled(st.integers(0, 2**40)),
    "batch_size": spoiled(st.integers(1, 4)),
    "t_from": spoiled(TIMES),
    "prior": spoiled(st.sampled_from(["moments", "standard"])),
    "keep_mode": st.booleans(),
    "speps": st.just(3),
}
"""Options of ``sample``, one of them misspelt."""

SOLVER_NAMES = spoiled(st.sampled_from(list(SAMPLERS)))


def some(table: Mapping[str, SearchStrategy[Any]], most: int) -> SearchStrategy[dict[str, Any]]:
    """A few entries of a table of strategies."""
    names = st.lists(st.sampled_from(list(table)), unique=True, max_size=most)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: table[name] for name in chosen}))


def settings_of(config: Config) -> dict[str, SearchStrategy[Any]]:
    """Every setting by its full name: names of tables where one is expected, and what may be typed."""
    tables: dict[str, Any] = {
        "sde.name": PROCESSES,
        "network.name": ["mlp", "unet", "dit", "auto"],
        "model.prediction": PREDICTIONS,
        "model.conditioning": CONDITIONINGS,
        "data.name": DATASETS,
        "data.kind": KINDS,
        "data.layout": LAYOUTS,
        "data.missing": MISSING,
        "data.text": TEXT,
    }
    typed = {
        f"{section}.{name}": type(value)
        for section, values in config.model_dump().items()
        for name, value in values.items()
    }
    right: dict[type, SearchStrategy[Any]] = {
        int: st.integers(0, 50),
        float: st.floats(0.0, 1.0),
        bool: st.sampled_from(["true", "false"]),
    }
    found = {name: right.get(kind, st.text(max_size=5)) for name, kind in typed.items()}
    found |= {name: st.sampled_from(list(table)) for name, table in tables.items()}
    found |= {"sde.beta_max": st.floats(0.0, 50.0), "network.width": st.integers(0, 64), "sde.s": st.floats(0.0, 0.1)}
    wrong = st.sampled_from(WORDS) | st.sampled_from(WRONG)
    return {name: spoiled(strategy, wrong) for name, strategy in found.items()} | {
        "x.y": st.just("1"),
        "sde": st.just(1),
    }


DTYPES = st.sampled_from(["f4", "f8", "f2", "i1", "u1", "i2", "u2", "i4", "i8", "u8", "b1", "c8", "S3", "U2", "M8[s]"])
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


def any_array() -> SearchStrategy[np.ndarray[Any, Any]]:
    """An array of any type and shape; floats with their infinities and NaN."""
    return DTYPES.flatmap(lambda dtype: arrays.arrays(np.dtype(dtype), SHAPES))


CELLS = st.sampled_from(WORDS) | st.floats().map(repr) | st.integers(-9, 9).map(str) | st.text(max_size=3)


def csv_texts() -> SearchStrategy[str]:
    """Tables, mostly with as many cells in a row as names; delimiters of all kinds."""

    def table(width: int) -> SearchStrategy[str]:
        row = st.lists(CELLS, min_size=width, max_size=width)
        ragged = spoiled(row, st.lists(CELLS, max_size=width + 1))
        rows = st.lists(ragged, min_size=0, max_size=6)
        return st.tuples(rows, st.sampled_from(",;\t")).map(
            lambda made: "\n".join(made[1].join(cells) for cells in made[0])
        )

    return st.integers(1, 4).flatmap(table)


READING: dict[str, SearchStrategy[Any]] = {
    "kind": spoiled(st.sampled_from(list(KINDS)), st.just("x")),
    "layout": spoiled(st.sampled_from(list(LAYOUTS)), st.just("x")),
    "missing": spoiled(st.sampled_from(list(MISSING)), st.just("x")),
    "text": spoiled(st.sampled_from(list(TEXT)), st.just("x")),
    "label": spoiled(st.sampled_from(["a", "column_0", "f0"]), st.just("x")),
    "standardise": st.booleans(),
}

INFOS = st.builds(
    DataInfo,
    shape=st.one_of(st.tuples(st.integers(1, 4)), st.tuples(st.integers(1, 2), st.just(4), st.just(4))),
    levels=st.none() | st.integers(2, 300),
    low=st.floats(-2.0, 0.0),
    high=st.floats(0.5, 2.0),
    name=st.text(max_size=8),
)
PROCESS_CHANGES: dict[str, dict[str, SearchStrategy[Any]]] = {
    "vp": {"sde.beta_max": st.floats(1.0, 40.0)},
    "cosine": {"sde.s": st.floats(0.001, 0.05)},
    "ddpm": {"sde.steps": st.integers(2, 40)},
}


def argument_lists(flags: Mapping[str, SearchStrategy[Any] | None], most: int = 5) -> SearchStrategy[list[str]]:
    """Options of a command line, each with a right value, or with what may be typed."""

    def words(chosen: list[str]) -> SearchStrategy[list[str]]:
        parts: list[SearchStrategy[list[str]]] = []
        for flag in chosen:
            strategy = flags[flag]
            if strategy is None:
                parts.append(st.just([flag]))
            else:
                typed = spoiled(strategy.map(str), st.sampled_from(WORDS))
                parts.append(typed.map(lambda value, flag=flag: [flag, value]))  # type: ignore[misc]
        return st.tuples(*parts).map(lambda lists: [word for part in lists for word in part])

    return st.lists(st.sampled_from(list(flags)), unique=True, max_size=most).flatmap(words)
