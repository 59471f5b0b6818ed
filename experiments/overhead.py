"""What a solver costs beside its network: seconds outside the forwards, as a share of the whole.

For every sampler: time of a solve of 64 digits, time of as many bare forwards of the same network on the same states,
paired in one run and repeated in turn. The share of the default ``"ode"`` is to stay below 5 %. With ``--profile`` the
table of the most expensive operators of one ``"ode"`` solve is printed.

    python experiments/overhead.py                 # the default digits network, untrained: weights do not matter
    python experiments/overhead.py --profile

Cost: about two minutes on two cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch

import sdediff
from sdediff.config import Config


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command()
@click.option("--batch", default=64, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--profile", is_flag=True, help="Print the operator profile of one solve.")
def main(batch: int, repeats: int, profile: bool) -> None:
    model = default_model()
    x = model.sde.prior_sample((batch, *model.data.shape), seed=0)
    print(f"{'solver':20} {'forwards':>8} {'ms/forward':>11} {'overhead':>9}")
    for name, sampler in sdediff.SAMPLERS.items():
        options = {"rtol": 1e-2} if sampler.adaptive else {"steps": 10}
        nfe = sdediff.solve(model, x, name, **options).nfe
        t = torch.full((batch,), 0.5)
        shares, per_forward = [], []
        with torch.no_grad():
            for _ in range(repeats):
                bare = seconds(lambda nfe=nfe, t=t: [model.network(x, t) for _ in range(nfe)])
                whole = seconds(lambda name=name, options=options: sdediff.solve(model, x, name, **options))
                shares.append(1.0 - bare / whole)
                per_forward.append(1e3 * bare / nfe)
        print(f"{name:20} {nfe:8} {statistics.median(per_forward):11.2f} {statistics.median(shares):9.1%}")
    if profile:
        with torch.profiler.profile() as record:
            sdediff.solve(model, x, "ode", steps=10)
        print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def default_model() -> sdediff.ScoreModel:
    from sdediff.config import build
    from sdediff.data import load_dataset

    config = Config()
    return build(config, load_dataset("digits", seed=0).info, None).eval()


if __name__ == "__main__":
    main()
