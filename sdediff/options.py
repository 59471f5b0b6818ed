"""Options that several functions share, each with its one description.

A function takes them as ``**options: Unpack[...]``, so that a new option is declared here and read where it acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, TypeVar, cast

import torch
from torch import Tensor

from sdediff.conditions import ConditionLike
from sdediff.grids import Grid
from sdediff.samplers.base import Progress

GridLike = str | Grid | Sequence[float] | Tensor
OptionsT = TypeVar("OptionsT")


class StepOptions(TypedDict, total=False):
    """The steps of a solve.

    Attributes:
        steps: number of intervals of a fixed grid; the solver's default if neither this nor a tolerance is given.
        grid: a name from ``GRIDS``, a grid, or the times themselves; the solver's default if not given. Where a solve
            by a multistep method starts inside the process's interval, a grid's first step is divided into a few short
            ones out of the same number, so that the method's order holds (:func:`~sdediff.grids.graded`).
        rtol: relative tolerance of an adaptive solver.
        atol: absolute tolerance of an adaptive solver; one tolerance given alone stands for both.
    """

    steps: int | None
    grid: GridLike | None
    rtol: float | None
    atol: float | None


class NetworkOptions(TypedDict, total=False):
    """The use of the network during a solve.

    Attributes:
        differentiable: whether gradients flow from the result to the model's parameters although no input requires
            any; every forward is kept in memory for them.
        keep_mode: whether the network stays in its own mode, dropout and batch statistics included, rather than being
            put into evaluation mode for the call.
    """

    differentiable: bool
    keep_mode: bool


class SolveOptions(StepOptions, NetworkOptions, total=False):
    """The options of :func:`~sdediff.sampling.solve`: those of the steps and the network, and two more.

    Attributes:
        progress: function called as ``progress(done, total)``.
        condition: condition of each item, a tensor or a tuple or dict of tensors: one row an item, or one for all; the
            network is called ``network(x, t, *condition)`` or ``network(x, t, **condition)``.
    """

    progress: Progress | None
    condition: ConditionLike


class BatchOptions(TypedDict, total=False):
    """The items of a call.

    Attributes:
        seed: seed of all random numbers; those of item k are functions of ``(seed, first + k)`` alone, whatever the
            batch size.
        first: index of the first item.
        batch_size: number of items solved at a time; all by default.
    """

    seed: int
    first: int
    batch_size: int | None


class TraceOptions(TypedDict, total=False):
    """The divergence along a path.

    Attributes:
        trace: ``"exact"``, ``"hutchinson"``, or ``"auto"``: exact up to 32 dimensions, and where it costs no more.
        probes: mean number of random probes an item at a node.
    """

    trace: str
    probes: int


class SampleOptions(SolveOptions, BatchOptions, TraceOptions, total=False):
    """The options of :func:`~sdediff.generation.sample`: those of a solve, the items and the trace, and three more.

    Attributes:
        prior: law of the states at ``t_max``: ``"moments"`` for the Gaussian with the data's mean and covariance where
            the model knows them (else the standard one), ``"standard"`` for ``N(0, sigma^2)``.
        dtype: dtype of the states; the network's, single precision at least, or torch's default where it has none.
        device: device of the states; the network's by default.
    """

    prior: str
    dtype: torch.dtype | None
    device: torch.device | str | None


def subset(options: Mapping[str, object], kind: type[OptionsT]) -> OptionsT:
    """Return the options that a ``TypedDict`` names."""
    return cast("OptionsT", {name: value for name, value in options.items() if name in kind.__annotations__})


def check_options(options: Mapping[str, object], allowed: type) -> None:
    """Refuse keyword arguments that a ``TypedDict`` does not name.

    Raises:
        TypeError: naming the unknown option and those that are allowed.
    """
    unknown = [name for name in options if name not in allowed.__annotations__]
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; allowed are: {', '.join(allowed.__annotations__)}")
