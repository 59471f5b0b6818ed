"""Averages of the weights of any width, after the fact: snapshots in a run, and the model that they make."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from sdediff.checkpoint import load
from sdediff.description import own_network
from sdediff.foreign import OwnNetwork
from sdediff.score_model import ScoreModel
from sdediff.tables import subtable
from sdediff.tensors import fill, read_tensors, write_tensors
from sdediff.training import ema
from sdediff.training.sharding import gathered

SNAPSHOTS, PATTERN = "averages", "step_*.safetensors"
"""Folder of the snapshots in a run, and their names."""


class Averages:
    """Power-function averages of a network in training.

    Args:
        network: the network.
        widths: width of each average.

    Raises:
        ValueError: for a width that no power function has.
    """

    def __init__(self, network: nn.Module, widths: Sequence[float]) -> None:
        self.widths, self.gammas = tuple(widths), tuple(ema.exponent(width) for width in widths)
        self.networks = [copy.deepcopy(network).requires_grad_(requires_grad=False) for _ in widths]

    def update(self, network: nn.Module, step: int) -> None:
        """Move all averages towards the network, after ``step`` updates before this one."""
        for average, gamma in zip(self.networks, self.gammas, strict=True):
            ema.update_power(average, network, gamma, step)

    def save(self, folder: Path, step: int, *, main: bool = True) -> None:
        """Write a snapshot after ``step`` steps, in the main process; nothing where no average is wanted."""
        if not self.networks:
            return
        tensors = {
            f"{place}.{name}": value
            for place, network in enumerate(self.networks)
            for name, value in own_network(network)[0].state_dict().items()
        }
        tensors = gathered(tensors, keep=main)
        if not main:
            return
        (folder / SNAPSHOTS).mkdir(exist_ok=True)
        widths = {f"width.{place}": repr(width) for place, width in enumerate(self.widths)}
        write_tensors(folder / SNAPSHOTS / f"step_{step:08d}.safetensors", tensors, {"step": str(step), **widths})


def averaged(run: str | Path, width: float, *, network: OwnNetwork | str | None = None) -> ScoreModel:
    """Return the model of a run with weights averaged over another width.

    The run has to be trained with ``training.averages``, as ``[0.05, 0.1]``; widths between and somewhat beyond follow
    from their snapshots at the checkpoints.

    Args:
        run: folder of the run.
        width: standard deviation of the average's weights in time, relative to the length of the training.
        network: the network of a run whose network is not the library's, as in :func:`sdediff.load`.

    Raises:
        FileNotFoundError: if the run has no snapshots.
        ValueError: for a width that no power function has, or damaged files.
    """
    folder, gamma = Path(run), ema.exponent(width)
    model = load(folder, network=network)
    paths = sorted((folder / SNAPSHOTS).glob(PATTERN))
    if not paths:
        raise FileNotFoundError(f"{folder} has no snapshots of averages: train with --set training.averages=[0.05,0.1]")
    places = [(path, *place) for path in paths for place in _widths(path)]
    times = [step for _, step, _, _ in places]
    factors = ema.combination(times, [ema.exponent(own) for *_, own in places], max(times), gamma)
    weights: dict[str, Tensor] = {}
    for path in paths:  # one file in memory at a time
        tensors, _ = read_tensors(path)
        for (of, _, place, _), factor in zip(places, factors, strict=True):
            if of == path:
                _add(weights, subtable(tensors, f"{place}."), float(factor))
    inside, _ = own_network(model.network)
    fill(inside, {name: value.to(inside.state_dict()[name].dtype) for name, value in weights.items()})
    return model


def _widths(path: Path) -> list[tuple[int, str, float]]:
    """Return step, place and width of the averages in one file.

    Raises:
        ValueError: if it is damaged.
    """
    _, metadata = read_tensors(path)
    try:
        widths = {key.partition(".")[2]: float(value) for key, value in metadata.items() if key.startswith("width.")}
        return [(int(metadata["step"]), place, width) for place, width in widths.items()]
    except (KeyError, ValueError):
        raise ValueError(f"{path} is no snapshot of averages") from None


def _add(total: dict[str, Tensor], tensors: Mapping[str, Tensor], factor: float) -> None:
    """Add the floats of a snapshot times a factor, in double precision; take integers as they are."""
    for name, value in tensors.items():
        if value.is_floating_point():
            total[name] = total.get(name, 0.0) + factor * value.double()
        else:
            total[name] = value
