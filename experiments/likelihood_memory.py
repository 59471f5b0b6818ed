"""How much memory a log-likelihood takes: that of a microbatch of paths, whatever the number of items and steps.

    python experiments/likelihood_memory.py

Peak resident memory above that before the call, for items of 784 entries and a small perceptron, each setting in a
process of its own. Expected: about 0.1 GB for any number of items, at 10 and at 100 steps (in one batch 3.4 GB at 10).
Cost: a few minutes on one core.
"""

from __future__ import annotations

import resource
import subprocess
import sys

SETTINGS = ((512, 10), (4096, 10), (512, 100), (4096, 100))


def peak(items: int, steps: int) -> float:
    """Return the peak of one call in this process, GB above what stood before."""
    import torch

    import sdediff
    from sdediff.networks import MLP

    torch.manual_seed(0)
    model = sdediff.ScoreModel(MLP((784,), width=32, blocks=1), sdediff.VPSDE(), "v_prediction", conditioning="logsnr")
    x = torch.randn(items, 784)
    sdediff.log_likelihood(model, x[:2], steps=4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sdediff.log_likelihood(model, x, steps=steps)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(f"{peak(int(sys.argv[1]), int(sys.argv[2])):.2f}")
    else:
        for items, steps in SETTINGS:
            found = subprocess.run(
                [sys.executable, __file__, str(items), str(steps)], capture_output=True, text=True, check=True
            )
            print(f"{items:5d} items, {steps:3d} steps: {found.stdout.strip()} GB")
