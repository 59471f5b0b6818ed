"""Started by torchrun: scores items in several processes, by the loop itself and by the command line."""

import sys
from pathlib import Path

import numpy as np
import torch

from sdediff.cli import main
from sdediff.evaluation import Processes, evaluate

CASES = {"more": (11, 2), "few": (1, 2), "uneven": (5, 4), "measured": (40, None)}
"""Items and batch size: an uneven last round; fewer items than processes; a round that one process has less of."""


def work(x, first):
    """Values of the items and of their places, so that a wrong share shows."""
    places = torch.arange(first, first + len(x), dtype=torch.float64)
    return {"value": x.double().sum(dim=1), "place": places}


def told(x, first, condition):
    """What came with the items."""
    return {**work(x, first), "label": condition.positional[0].double()}


def run(folder, *args):
    processes = Processes()
    for name, (count, size) in CASES.items():
        items = torch.arange(2.0 * count).reshape(count, 2)
        scores = evaluate(
            work, items, seed=3, batch_size=size, target=2.0 if name == "measured" else None, processes=processes
        )
        if processes.main:
            np.savez(Path(folder) / f"{name}.npz", **scores.columns)
    scores = evaluate(
        told, torch.arange(22.0).reshape(11, 2), seed=3, batch_size=2, condition=torch.arange(11), processes=processes
    )
    if processes.main:
        np.savez(Path(folder) / "told.npz", **scores.columns)
    processes.wait()
    main(["likelihood", *args])


if __name__ == "__main__":
    run(*sys.argv[1:])
