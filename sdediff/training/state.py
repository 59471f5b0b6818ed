"""The state of a run between two steps, in one safetensors file, which is replaced in one step.

The newest is ``state.safetensors``; the ones before are ``state.1.safetensors`` and so on. A damaged file is set aside,
and the run goes on from the one before it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdediff.documents import reason
from sdediff.noise import STREAM
from sdediff.tables import subtable
from sdediff.tensors import check_finite, read_tensors, write_tensors
from sdediff.training.sharding import gathered, shared_like

_LOG = logging.getLogger(__name__)

STATE, OLDER, ASIDE = "state.safetensors", "state.*.safetensors", "damaged.safetensors"
"""Names of the newest state, of those before it, and of a damaged one."""


class StreamError(ValueError):
    """A state whose run draws another stream of noise."""


class Losses(NamedTuple):
    """The losses of the steps since the last line of metrics: their sum, and their number."""

    total: float = 0.0
    steps: int = 0

    def with_more(self, total: float, steps: int) -> Losses:
        """Return them with those of more steps."""
        return Losses(self.total + total, self.steps + steps)


NONE = Losses()
"""None, after a step that has a line of its own."""


class Restored(NamedTuple):
    """Place where a run goes on.

    Attributes:
        step: the number of steps done.
        losses: those that the next line of metrics is to hold.
        remark: why no newer state was taken; empty if it is the newest.
    """

    step: int
    losses: Losses = NONE
    remark: str = ""


def save_state(
    folder: Path,
    step: int,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    losses: Losses = NONE,
    further: Sequence[nn.Module] = (),
    keep: int = 1,
    main: bool = True,
) -> None:
    """Write weights, their averages and the optimiser's moments after ``step`` steps; keep some older states.

    Weights that are shared out are put together by all processes; the main one writes.
    """
    tensors = {f"trained.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for place, other in enumerate(further):
        tensors |= {f"further.{place}.{name}": value for name, value in other.state_dict().items()}
    moments = optimizer.state_dict()["state"]  # of parameters that never had a gradient there are none
    for index, entries in moments.items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
    tensors = gathered(tensors, keep=main)
    if not main:
        return
    for age in reversed(range(1, keep)):
        if (folder / _name(age - 1)).is_file():
            (folder / _name(age - 1)).replace(folder / _name(age))
    numbers = {"step": step, "optimised": len(moments), "stream": STREAM, "loss": losses.total, "losses": losses.steps}
    write_tensors(folder / STATE, tensors, {name: repr(number) for name, number in numbers.items()})
    for path in list(states(folder))[keep:]:
        path.unlink()
    _LOG.info("saved the state in %s after %d steps", folder, step)


def _name(age: int) -> str:
    return f"state.{age}.safetensors" if age else STATE


def states(folder: Path) -> Iterator[Path]:
    """Yield the states in a folder, the newest first."""
    if (folder / STATE).is_file():
        yield folder / STATE
    ages = (path.name.split(".")[1] for path in folder.glob(OLDER))
    yield from (folder / _name(age) for age in sorted(int(age) for age in ages if age.isdecimal()))


def restore(
    folder: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    further: Sequence[nn.Module] = (),
    main: bool = True,
) -> Restored:
    """Restore the newest state that can be read; damaged ones are set aside by the main process.

    Raises:
        FileNotFoundError: if the folder holds no state.
        ValueError: if none can be read.
    """
    damage: dict[Path, ValueError] = {}
    for path in states(folder):
        try:
            found = load_state(path, network, average, optimizer, further)
        except StreamError:  # not damaged
            raise
        except ValueError as error:
            damage[path] = error
            continue
        for bad in damage if main else ():
            with suppress(OSError):
                bad.replace(folder / ASIDE)
        _LOG.info("restored the state in %s after %d steps", path, found.step)
        remark = f"{'; '.join(map(str, damage.values()))}: going on from {path.name}, after {found.step:,} steps"
        return found._replace(remark=remark) if damage else found
    if damage:
        raise next(iter(damage.values()))
    raise FileNotFoundError(f"nothing to resume in {folder}: {STATE} is missing")


def load_state(
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    further: Sequence[nn.Module] = (),
) -> Restored:
    """Restore weights, their averages and the optimiser from one file in place.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, belongs to another model, or draws another stream of noise.
    """
    tensors, metadata = read_tensors(path)
    stream = metadata.get("stream", "1")  # the first had no number
    if stream != str(STREAM):
        raise StreamError(f"{path} was made with stream {stream} of the noise, now it is {STREAM}; begin a new run")

    entries: dict[int, dict[str, Tensor]] = {}
    try:
        check_finite(tensors)
        for name, value in subtable(tensors, "optimizer.").items():
            index, _, entry = name.partition(".")
            entries.setdefault(int(index), {})[entry] = value
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimised = int(metadata["optimised"]) if "optimised" in metadata else None  # which older files do not say
        _check_entries(entries, parameters, optimised)
        step = int(metadata["step"])
        losses = Losses(float(metadata.get("loss", "0")), int(metadata.get("losses", "0")))  # older files have none
        if step < 0:
            raise ValueError(f"it was written after {step} steps")
        _load(network, subtable(tensors, "trained."))
        _load(average, subtable(tensors, "average."))
        for place, other in enumerate(further):
            _load(other, subtable(tensors, f"further.{place}."))
        for place, moments in entries.items():
            moments |= {key: shared_like(value, parameters[place]) for key, value in moments.items() if value.ndim}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this run: {reason(error)}") from None
    return Restored(step, losses)


def _load(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a network, whose weights may be shared out."""
    own = network.state_dict()
    network.load_state_dict({name: shared_like(value, own.get(name)) for name, value in tensors.items()})


def _check_entries(entries: dict[int, dict[str, Tensor]], parameters: Sequence[Tensor], optimised: int | None) -> None:
    """Refuse entries that differ between parameters, or are neither of a parameter's shape nor one number."""
    names = {frozenset(entry) for entry in entries.values()}
    wanted = len(parameters) if optimised is None else optimised
    if entries and (len(entries) != wanted or not set(entries) <= set(range(len(parameters))) or len(names) > 1):
        raise ValueError("it is of an optimiser of other parameters")
    for index, entry in entries.items():
        for name, value in entry.items():
            if value.ndim and value.shape != parameters[index].shape:
                raise ValueError(f"optimizer.{index}.{name} is {tuple(value.shape)}")
