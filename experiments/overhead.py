"""What a solver costs beside its network: seconds outside the forwards, as a share of the whole.

Every sampler solves for 64 digits with the default digits network (untrained: weights do not matter) while a clock runs
inside the network; the median over the repeats is printed. The share of the default ``"ode"`` is to stay below 5 %.
With ``--profile`` the most expensive operators of one ``"ode"`` solve are listed.

    python experiments/overhead.py --profile

Expected on two cores: 3 % for "ode", 2 to 6 % for the others, 10 to 12 % for the wrappers of torchsde. Cost: a minute.
"""

from __future__ import annotations

import statistics
import time

import click
import torch
from torch import Tensor

import sdediff
from sdediff.config import Config, build
from sdediff.data import load_dataset


class Timed(torch.nn.Module):
    """A network that adds up the seconds spent in it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        start = time.perf_counter()
        output = self.network(x, conditioning)
        self.seconds += time.perf_counter() - start
        return output


@click.command()
@click.option("--batch", default=64, show_default=True)
@click.option("--repeats", default=9, show_default=True)
@click.option("--profile", is_flag=True, help="Print the operator profile of one solve.")
def main(batch: int, repeats: int, profile: bool) -> None:
    model = build(Config(), load_dataset("digits", seed=0).info, None).eval()
    model.network = timed = Timed(model.network)
    x = model.sde.prior_sample((batch, *model.data.shape), seed=0)
    sdediff.solve(model, x, "ode")  # warm up
    print(f"{'solver':20} {'forwards':>8} {'ms/forward':>11} {'outside':>9}")
    for name, sampler in sdediff.SAMPLERS.items():
        options = {"rtol": 1e-2} if sampler.adaptive else {"steps": 10}
        shares, per_forward = [], []
        for _ in range(repeats):
            timed.seconds, start = 0.0, time.perf_counter()
            nfe = sdediff.solve(model, x, name, **options).nfe
            shares.append(1.0 - timed.seconds / (time.perf_counter() - start))
            per_forward.append(1e3 * timed.seconds / nfe)
        print(f"{name:20} {nfe:8} {statistics.median(per_forward):11.2f} {statistics.median(shares):9.1%}")
    if profile:
        with torch.profiler.profile() as record:
            sdediff.solve(model, x, "ode", steps=10)
        print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


if __name__ == "__main__":
    main()
