"""What half precision of the network costs: in bits a dimension, and in the samples, beside the solver's own error.

    sdediff train --data digits && python -m experiments.precision runs/digits

The same probes, dequantisation and starts in every precision: float32, bfloat16 and float16 by autocast. The bits are
those of the run's held-out items, and their difference from float32 item by item, its mean and its RMS, to be read
beside the stated standard error of the probes. The samples' RMS difference from float32, at the same number of steps,
is to be read beside the solver's error: their RMS difference from four times the steps.

Expected on a digits network of 600 training steps, 60 items: bfloat16 shifts the mean by 3e-5 bits/dim (RMS 4e-4, where
the probes' error of one item is 0.014) and the samples by 0.002, about as much as the solver's own error in 20 steps
(0.0016); float16 by a tenth of that. Cost: two minutes on one core.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

import sdediff
from sdediff.data import load_dataset
from sdediff.execution import AUTOCASTS, Execution


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--items", default=200, show_default=True, help="Held-out items and samples.")
@click.option("--steps", default=20, show_default=True, help="Steps of the samples; a path of a likelihood has 40.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="File for the table.")
def main(run: Path, items: int, steps: int, device: str, file: Path | None) -> None:
    model = sdediff.load(run, device=device)
    held_out = load_dataset(model.data.name, seed=0).held_out[:items].to(device)
    ways = {"float32": Execution(), **{name: Execution(autocast=name) for name in AUTOCASTS}}
    shape, found = (items, *model.data.shape), {}
    finer = sdediff.sample(model, shape, "ode", steps=4 * steps, seed=1)
    for name, execution in ways.items():
        result = sdediff.log_likelihood(model, held_out, steps=40, execution=execution)
        x = sdediff.sample(model, shape, "ode", steps=steps, seed=1, execution=execution)
        found[name] = result.bits_per_dim, x
    bits, x = found["float32"]
    error = float(result.standard_error.square().mean().sqrt()) / (math.log(2.0) * held_out[0].numel())
    table = {
        name: {
            "bits/dim": float(own.mean()),
            "shift": float((own - bits).mean()),
            "RMS": float((own - bits).square().mean().sqrt()),
            "samples": float((samples - x).square().mean().sqrt()),
        }
        for name, (own, samples) in found.items()
    }
    solver = float((x - finer).square().mean().sqrt())
    print(f"{items} items; probes' standard error of one {error:.4f} bits/dim; error of {steps} steps {solver:.4f}")
    print(f"{'':10s}" + "".join(f"{name:>12s}" for name in table["float32"]))
    for name, row in table.items():
        print(f"{name:10s}" + "".join(f"{value:12.6f}" for value in row.values()))
    if file is not None:
        file.write_text(json.dumps({"probes": error, "solver": solver, **table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
