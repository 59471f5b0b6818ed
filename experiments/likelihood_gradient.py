"""Memory of the gradient of a likelihood, with respect to weights and data, against the number of nodes.

A small convolutional network, one probe a node. ``naive`` records every node's graph, as autograd does if nothing is
done about it; ``ours`` is ``log_likelihood(..., differentiable=True)``. Each measurement is a process of its own,
warmed up with a few nodes: the growth of its peak resident memory after that is what more nodes cost.

    python experiments/likelihood_gradient.py [--nodes 25 50 100 200] [--kinds ours naive] [--size 16] [--width 32]

Expected: naive grows by 3.4 MiB a node, ours by 0.04 MiB: the states and what the probes gave, 20 times a state of
2 KiB. Cost: about 2 minutes on 1 core.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import sdediff

BATCH, DEPTH = 2, 6
WARM = 4  # nodes of the run that fills allocator, thread pools and lazy imports


class Network(nn.Module):
    """Convolutions with the time as a second channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [2, *[width] * (DEPTH - 1), 1]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(channels):
            layers += [nn.Conv2d(wide, narrow, 3, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5 / 2.0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.layers(torch.cat([x, t.reshape(-1, 1, 1, 1).expand_as(x)], dim=1))
        return found


def naive(model: sdediff.ScoreModel, x: Tensor, nodes: int) -> Tensor:
    """Nats ``(B,)`` by Euler's method and one probe a node, every node on one graph."""
    sde = model.sde
    levels = sde.levels(sdediff.GRIDS["reference"](sde, nodes, sde.t_min, sde.t_max))
    probes = sdediff.NoiseSource(0, tuple(x.shape))
    y, total = x, x.new_zeros(len(x))
    for step, (here, there) in enumerate(pairwise(levels)):
        width, probe = float(there.angle - here.angle), torch.sign(probes.normal(step))
        value = model(y, here).mix(-here.sin, here.cos)
        (product,) = torch.autograd.grad((value * probe).sum(), y, create_graph=True)
        total = total + width * (product * probe).flatten(1).sum(dim=1)
        y = y + width * value
    return total - 0.5 * y.square().flatten(1).sum(dim=1)


def ours(model: sdediff.ScoreModel, x: Tensor, nodes: int) -> Tensor:
    found = sdediff.log_likelihood(model, x, steps=nodes, trace="hutchinson", probes=1, differentiable=True)
    return found.log_prob


KINDS: dict[str, Callable[[sdediff.ScoreModel, Tensor, int], Tensor]] = {"ours": ours, "naive": naive}


def peak() -> float:
    """MiB ever resident in this process."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(kind: str, nodes: int, size: int, width: int) -> dict[str, float]:
    """Growth of this process's peak memory, MiB, and seconds."""
    torch.set_num_threads(1)
    model = sdediff.ScoreModel(Network(width), sdediff.VPSDE())
    x = sdediff.NoiseSource(1, (BATCH, 1, size, size)).normal(0).requires_grad_()

    def gradient(count: int) -> None:
        score = KINDS[kind](model, x, count).double().sum()
        torch.autograd.grad(score, [x, *model.parameters()])

    gradient(WARM)
    before, begin = peak(), time.perf_counter()
    gradient(nodes)
    return {"grown": peak() - before, "before": before, "seconds": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--size", type=int, default=16, help="of the images")
    parser.add_argument("--width", type=int, default=32, help="channels of the network")
    parser.add_argument("--child", action="store_true", help="measure one kind and count in this process, as JSON")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.kinds[0], options.nodes[0], options.size, options.width)))
        return
    state = BATCH * options.size**2 * 4 / 2**20
    print(f"peak memory of a gradient beyond that of {WARM} nodes, MiB (a state: {state:.3f})")
    print(f"{'':6} {'nodes':>6} {'MiB':>9} {'a node':>9} {'seconds':>8}")
    for kind in options.kinds:
        for nodes in options.nodes:
            shape = ["--size", str(options.size), "--width", str(options.width)]
            call = [sys.executable, __file__, "--child", "--kinds", kind, "--nodes", str(nodes), *shape]
            found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
            each = found["grown"] / (nodes - WARM)
            print(f"{kind:6} {nodes:6} {found['grown']:9.1f} {each:9.4f} {found['seconds']:8.2f}", flush=True)


if __name__ == "__main__":
    main()
