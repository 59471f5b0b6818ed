"""The state of a run between two steps: one safetensors file, so that it is whole or the one before."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sdediff.checkpoint import write_tensors
from sdediff.tensors import read_tensors

STATE = "state.safetensors"


def save_state(
    folder: Path, step: int, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write weights, their moving average and the optimiser's moments after ``step`` steps."""
    tensors = {f"trained.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
    write_tensors(folder / STATE, tensors, {"step": str(step)})


def load_state(folder: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put everything back in place.

    Returns:
        The number of steps that were done.

    Raises:
        FileNotFoundError: if the folder holds no state.
        ValueError: if it is damaged or belongs to another model.
    """
    path = folder / STATE
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume in {folder}: {STATE} is missing")
    tensors, metadata = read_tensors(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    entries: dict[int, dict[str, Tensor]] = {}
    try:
        for name, value in part("optimizer.").items():
            index, _, entry = name.partition(".")
            entries.setdefault(int(index), {})[entry] = value
        network.load_state_dict(part("trained."))
        average.load_state_dict(part("average."))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
        return int(metadata["step"])
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit this run: {reason}") from None
