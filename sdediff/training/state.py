"""The state of a run between two steps, in one safetensors file, which is replaced in one step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sdediff.documents import reason
from sdediff.noise import STREAM
from sdediff.tables import subtable
from sdediff.tensors import check_finite, read_tensors, write_tensors

STATE = "state.safetensors"


def save_state(
    folder: Path, step: int, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write weights, their moving average and the optimiser's moments after ``step`` steps."""
    tensors = {f"trained.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
    write_tensors(folder / STATE, tensors, {"step": str(step), "stream": str(STREAM)})


def load_state(folder: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore weights, moving average and optimiser in place.

    Returns:
        The number of steps done.

    Raises:
        FileNotFoundError: if the folder holds no state.
        ValueError: if it is damaged, belongs to another model, or draws another stream of noise.
    """
    path = folder / STATE
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume in {folder}: {STATE} is missing")
    tensors, metadata = read_tensors(path)
    stream = metadata.get("stream", "1")  # the first had no number
    if stream != str(STREAM):
        raise ValueError(f"{path} was made with stream {stream} of the noise, now it is {STREAM}; begin a new run")

    entries: dict[int, dict[str, Tensor]] = {}
    try:
        check_finite(tensors)
        for name, value in subtable(tensors, "optimizer.").items():
            index, _, entry = name.partition(".")
            entries.setdefault(int(index), {})[entry] = value
        network.load_state_dict(subtable(tensors, "trained."))
        average.load_state_dict(subtable(tensors, "average."))
        _check_entries(entries, optimizer)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
        step = int(metadata["step"])
        if step < 0:
            raise ValueError(f"it was written after {step} steps")
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this run: {reason(error)}") from None
    return step


def _check_entries(entries: dict[int, dict[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """Refuse entries that differ between parameters, or are neither of a parameter's shape nor one number."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {frozenset(entry) for entry in entries.values()}
    if entries and (set(entries) != set(range(len(parameters))) or len(names) > 1):
        raise ValueError("it is of an optimiser of other parameters")
    for index, entry in entries.items():
        for name, value in entry.items():
            if value.ndim and value.shape != parameters[index].shape:
                raise ValueError(f"optimizer.{index}.{name} is {tuple(value.shape)}")
