"""A run that nobody trained: random weights, in the folder that training would have written."""

from pathlib import Path

import torch

from sdediff.checkpoint import save
from sdediff.config import Config, build
from sdediff.data import load_dataset


def untrained_run(folder: Path, width: int = 8, *, described: bool = True) -> Path:
    """Write a network with random weights on points; the last layer of an untrained one is zero.

    Args:
        folder: folder of the run.
        width: width of the network.
        described: whether the run says by its configuration what its data are.
    """
    config = Config().updated(
        {"data.name": "moons", "network.name": "mlp", "network.width": width, "network.blocks": 1}
    )
    model = build(config, load_dataset("moons").info)
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=rng)
    save(model, folder)
    if described:
        (folder / "config.json").write_text(config.to_json())
    return folder
