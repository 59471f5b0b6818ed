"""Options that several functions share, each with its one description.

A function takes them as ``**options: Unpack[...]``, so that a new option is declared here and read where it acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TypedDict, TypeVar, cast

import torch
from torch import Tensor

from sdediff.conditions import ConditionLike
from sdediff.execution import Execution
from sdediff.grids import Grid
from sdediff.progress import ProgressLike
from sdediff.samplers.base import Sampler

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


class CallOptions(TypedDict, total=False):
    """The network during a call.

    Attributes:
        condition: condition of each item, a tensor or a tuple or dict of tensors: one row an item, or one for all; the
            network is called ``network(x, t, *condition)`` or ``network(x, t, **condition)``.
        keep_mode: whether the network stays in its own mode, dropout and batch statistics included, rather than being
            put into evaluation mode for the call.
        progress: true for a bar (or, without a terminal, a line now and then), or a function called as
            ``progress(done, total)``.
        execution: how the network is run, an :class:`~sdediff.execution.Execution`; by default as the model says.
    """

    condition: ConditionLike
    keep_mode: bool
    progress: ProgressLike
    execution: Execution | None


class GradientOptions(TypedDict, total=False):
    """Gradients of a result.

    Attributes:
        differentiable: whether gradients flow from the result to the model's parameters although no input requires
            any. In likelihoods they flow to data and parameters with this option alone.
    """

    differentiable: bool


class GuidanceOptions(TypedDict, total=False):
    """Classifier-free guidance, :class:`~sdediff.guidance.Guided`.

    Attributes:
        guidance: weight of the conditional answer against that under ``null``; none by default.
        null: condition that stands for none, one row for all items; by default that of the network, if it has
            parameters ``classes`` or ``features``.
        guidance_interval: times ``(low, high)`` between which it guides; everywhere by default.
    """

    guidance: float | None
    null: ConditionLike
    guidance_interval: tuple[float, float] | None


class SolveOptions(StepOptions, CallOptions, GuidanceOptions, GradientOptions, total=False):
    """The options of :func:`~sdediff.sampling.solve`: those of steps, network, guidance and gradients."""


class BatchOptions(TypedDict, total=False):
    """The items of a call.

    Attributes:
        seed: seed of all random numbers; those of item k are functions of ``(seed, first + k)`` alone, whatever the
            batch size.
        first: index of the first item.
        batch_size: number of items solved at a time; all by default, but in likelihoods as many as keep their paths in
            about 100 MB, or 1 GB on accelerators. Where memory runs out it is halved, and halved again.
    """

    seed: int
    first: int
    batch_size: int | None


class TraceOptions(TypedDict, total=False):
    """The divergence along a path.

    Attributes:
        trace: ``"exact"``, ``"hutchinson"``, or ``"auto"``: exact up to 32 dimensions, and where it costs no more.
        probes: mean number of random probes an item at a node, 2 by default, from 3 on more where the variance is
            larger; two and more signs are orthogonal along the path. The stated error is unbiased where the field is a
            gradient, an upper bound elsewhere; that of a single probe is estimated from the neighbouring nodes and can
            be several times too large for a network of uneven pixels.
    """

    trace: str
    probes: int


class PriorOptions(TypedDict, total=False):
    """The noise's end of a path.

    Attributes:
        prior: distribution of the states at the noise's end: ``"moments"`` for the Gaussian with the data's mean and
            covariance where the model has them (else the standard one), ``"standard"`` for ``N(0, sigma^2)``.
    """

    prior: str


class SampleOptions(SolveOptions, BatchOptions, TraceOptions, PriorOptions, total=False):
    """The options of :func:`~sdediff.generation.sample`: those of a solve, items, trace and prior, and three more.

    Attributes:
        t_from: time of the start, ``t_max`` by default; at a lower one the start is drawn from the Gaussian with the
            data's moments (or plain noise), and nothing noisier is crossed.
        dtype: dtype of the states; the network's, single precision at least, or torch's default where it has none.
        device: device of the states; the network's by default.
    """

    t_from: float | None
    dtype: torch.dtype | None
    device: torch.device | str | None


class PathOptions(StepOptions, TraceOptions, PriorOptions, total=False):
    """The path of a likelihood: its steps, trace and prior, and three more options.

    Attributes:
        solver: solver of the path: a deterministic entry of ``SAMPLERS`` with one evaluation of the network a node
            (``"ode"``, ``"ab4"``, ...), by default the default solver in the form that is best towards the noise; or an
            adaptive one (``"adaptive"``, ``"dopri5"``, another adaptive method of torchdiffeq), which takes tolerances,
            has the same probes all along the path and solves twice, to estimate its error. By name, or the sampler
            itself.
        noise: distribution of the probes, ``"rademacher"`` or ``"gaussian"``.
        t_to: time of the noise's end; ``t_max`` by default.
    """

    solver: str | Sampler | None
    noise: str
    t_to: float | None


class LikelihoodOptions(PathOptions, BatchOptions, CallOptions, GradientOptions, total=False):
    """The options of likelihoods: those of path, items, network and gradients."""


class ElboOptions(BatchOptions, CallOptions, PriorOptions, total=False):
    """The options of :func:`~sdediff.likelihood.elbo.elbo`: those of items, network and prior."""


def subset(options: Mapping[str, object], kind: type[OptionsT]) -> OptionsT:
    """Return the options that a ``TypedDict`` names."""
    return cast("OptionsT", {name: value for name, value in options.items() if name in kind.__annotations__})


def check_count(name: str, value: object) -> None:
    """Refuse what is no whole number from 1 up.

    Raises:
        ValueError: naming the option and what came.
    """
    if not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"{name} must be a whole number, at least 1, not {value!r}")


def check_options(options: Mapping[str, object], allowed: type) -> None:
    """Refuse keyword arguments that a ``TypedDict`` does not name.

    Raises:
        TypeError: naming the unknown option and those that are allowed.
    """
    unknown = [name for name in options if name not in allowed.__annotations__]
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; allowed are: {', '.join(allowed.__annotations__)}")
