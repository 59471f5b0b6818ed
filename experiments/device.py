"""What an accelerator changes: nothing of the numbers, and how much of the time; on a CPU a smaller table.

    python -m experiments.device                       # the fastest device here; everything
    python -m experiments.device --part parity --part times --json device.json

``parity``: the generator's words and normals; every sampler, the likelihood, the bound and a training step of a small
network, on the device and on the CPU, in float64 and in float32: the largest difference, in units of the result's RMS.
Samplers that choose their own steps, and those of other packages, may choose others after a rounding error.
``times``: a draw of noise over ``torch.randn``; a step of a sampler beside a network that costs nothing, over that of
diffusers (DPM-Solver++(2M), its SDE form) and over ``a x + b eps``.
``sampling``, ``likelihood``, ``training``: a U-Net of 36 M parameters (diffusers' where it is installed; on a CPU a
small one of ours), over the same network's bare forwards and backward passes: 20 steps; 40 steps with two probes; steps
of AdamW. Float32, and bfloat16 with channels last, compiled where there is a GPU.

At the end stands every target beside the worst figure of its rows (``TARGETS``): those of a GPU; on a CPU noise has
another (``experiments.noise time``), and a network of 0.2 M hides less. Expected on one thread of a CPU, in processor
time: parity 0, words equal, normals 5e-7 and 5e-16, sampling below 1.1, likelihood 1.05 to 1.15 (a network ten times as
large 0.98 to 1.02). Cost: under five minutes.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor, nn

import sdediff
from sdediff import Moments, NoiseSource
from sdediff.devices import pick_device
from sdediff.execution import Execution
from sdediff.networks import UNet
from sdediff.noise.devices import draw_normals
from sdediff.noise.laws import host_normals
from sdediff.noise.words import device_words, stream_key, word_blocks

Row = dict[str, Any]


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(work: Callable[[], object], device: torch.device, least: float, repeats: int = 5) -> float:
    """Return the median seconds of some work, after a warm-up, in samples of at least ``least`` seconds."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    work()
    wait(device)
    taken, count = list[float](), 1
    while len(taken) < repeats:
        start = clock()
        for _ in range(count):
            work()
        wait(device)
        passed = clock() - start
        if passed < least and count < 1000:
            count = max(count + 1, min(1000, int(1.2 * count * least / max(passed, 1e-6))))
            continue
        taken.append(passed / count)
    return statistics.median(taken)


def in_turn(works: dict[str, Callable[[], object]], device: torch.device, least: float) -> dict[str, float]:
    """Return the median seconds of several works, one after another in every round."""
    rounds = [{name: seconds(work, device, least, 1) for name, work in works.items()} for _ in range(3)]
    return {name: statistics.median(round_[name] for round_ in rounds) for name in works}


# ---- parity ------------------------------------------------------------------------------------------------------

SMALL = (3, 8, 8)


def small_model(dtype: torch.dtype) -> sdediff.ScoreModel:
    """Return a model of a small attention U-Net whose weights are functions of their place."""
    network = UNet(SMALL, width=8, multipliers=(1, 2))
    for number, parameter in enumerate(network.parameters()):
        wave = torch.arange(parameter.numel(), dtype=torch.float64).mul(0.7 + 0.1 * number).sin()
        parameter.data = (0.2 * wave).reshape(parameter.shape).to(dtype)
    info = sdediff.DataInfo(SMALL, levels=32)
    return sdediff.ScoreModel(network, sdediff.VPSDE(), "v_prediction", conditioning="logsnr", data=info).to(dtype)


def training_step(model: sdediff.ScoreModel, device: torch.device) -> Tensor:
    """Return the parameters after one step of AdamW, as one vector."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    shape = (8, *SMALL)
    x0 = NoiseSource(5, shape, dtype=model.dtype, device=device).normal(0)
    model.loss(x0, seed=6).mean().backward()
    optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def noise_parity(device: torch.device) -> list[Row]:
    """Compare words, as the share that differs, and normals of the device's operations with those of NumPy."""
    key, samples, size = stream_key("normal", 3, 2, 0), torch.arange(64, device=device), 1023
    words, host = device_words(key, samples, size).cpu().numpy().view(np.uint64), np.arange(64, dtype=np.uint64)
    differ = [(words[block.samples, block.numbers] != block.words).sum() for block in word_blocks(key, host, size)]
    rows: list[Row] = [{"what": "words", "share that differs": float(sum(differ)) / words.size}, {"what": "normals"}]
    for dtype in (torch.float64, torch.float32):
        if (dtype, device.type) != (torch.float64, "mps"):
            there = draw_normals(key, samples, size, dtype).cpu()
            difference = (there - host_normals(key, host, size, dtype)).abs().max()
            rows[1][str(dtype).removeprefix("torch.")] = float(difference)
    return rows


def parity(device: torch.device, _: bool) -> list[Row]:
    """Compare results on the device with those on the CPU."""
    shape, levels = (4, *SMALL), torch.arange(4 * 192).reshape(4, *SMALL) % 32
    works: dict[str, Callable[[sdediff.ScoreModel, torch.device], Tensor]] = {}
    for name, sampler in sdediff.SAMPLERS.items():
        steps: dict[str, Any] = {"rtol": 1e-2} if sampler.adaptive else {"steps": 20}
        works[name] = partial(
            lambda model, _, name, steps: sdediff.sample(model, shape, name, seed=3, **steps), name=name, steps=steps
        )
    works["log_likelihood"] = lambda model, where: sdediff.log_likelihood(model, levels.to(where), steps=10).log_prob
    works["elbo"] = lambda model, where: sdediff.elbo(model, levels.to(where), steps=10).total
    works["training step"] = training_step
    rows = noise_parity(device)
    for name, work in works.items():
        row: Row = {"what": name}
        for dtype in (torch.float64, torch.float32):
            if dtype == torch.float64 and device.type == "mps":
                continue
            here = work(small_model(dtype), torch.device("cpu")).double()
            there = work(small_model(dtype).to(device), device).cpu().double()
            row[str(dtype).removeprefix("torch.")] = float((there - here).abs().max() / here.square().mean().sqrt())
        rows.append(row)
    return rows


# ---- times of noise and of steps ---------------------------------------------------------------------------------


class Free(nn.Module):
    """A network that costs nothing: its output is there already."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.weight, self.output = nn.Parameter(output.new_zeros(())), output

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        return self.output


def diffusers_solve(kind: str, x: Tensor, output: Tensor, steps: int) -> Callable[[], object]:
    """Return a solve by a scheduler of diffusers beside the same network."""
    import diffusers

    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type=kind)

    def run() -> None:
        y = x
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            y = scheduler.step(output, timestep, y).prev_sample

    return run


def times(device: torch.device, small: bool) -> list[Row]:
    """Time draws of noise and steps beside a network that costs nothing."""
    rows, steps, least = list[Row](), 20, 0.05 if small else 0.2
    for shape in [(1, 2), (64, 3, 32, 32)] if small else [(1, 2), (64, 3, 32, 32), (256, 3, 64, 64)]:
        source, counter = NoiseSource(0, shape, device=device), iter(range(1 << 30))
        found = in_turn(
            {
                "noise": lambda source=source, counter=counter: source.normal(next(counter)),
                "torch.randn": lambda shape=shape: torch.randn(shape, device=device),
            },
            device,
            least,
        )
        rows += [{"what": f"{name} {shape}", "us": 1e6 * taken} for name, taken in found.items()]
        rows[-2]["ratio"] = found["noise"] / found["torch.randn"]
        output, x = (source.normal(step) for step in (-1, -2))
        model = sdediff.ScoreModel(Free(0.1 * output).to(device), sdediff.VPSDE(), "epsilon")
        works: dict[str, Callable[[], object]] = {
            name: partial(sdediff.solve, model, x, name, steps=steps)
            for name in ("ode", "dpm++2m", "unipc2", "sde", "sde-dpm++2m", "ancestral")
        }
        dim = math.prod(shape[1:])
        known = Moments(torch.zeros(shape[1:]), torch.linspace(0.1, 1.0, dim, dtype=torch.float64))
        whitened = sdediff.ScoreModel(Free(0.1 * output).to(device), model.sde, "v_prediction", moments=known)
        for name in ("ode", "sde"):
            works[f"{name}, moments"] = partial(sdediff.solve, whitened, x, name, steps=steps)
        works["a x + b eps"] = lambda x=x, output=output: [1.01 * x + 0.1 * output for _ in range(steps)]
        peers = {"diffusers DPM++2M": "dpmsolver++", "diffusers SDE-DPM++2M": "sde-dpmsolver++"}
        try:
            works |= {name: diffusers_solve(kind, x, 0.1 * output, steps) for name, kind in peers.items()}
        except ImportError:
            peers = {}
        found = in_turn(works, device, least)
        for name, taken in found.items():
            row = {"what": f"step {name} {shape}", "us": 1e6 * taken / steps}
            if peers and name not in peers:
                noisy = name.startswith(("sde", "ancestral"))
                row["ratio"] = taken / found[list(peers)[noisy]]
            rows.append(row)
    return rows


# ---- a large network ---------------------------------------------------------------------------------------------


def unet(small: bool) -> tuple[str, nn.Module]:
    """Return a U-Net for 3x32x32 with random weights, and its name."""
    if small:
        return "U-Net of ours", UNet((3, 32, 32), width=16, multipliers=(1, 2, 2))
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return "U-Net of ours", UNet((3, 32, 32), width=160, multipliers=(1, 2, 2, 2))
    return "U-Net of diffusers", UNet2DModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


def executions(small: bool) -> dict[str, Execution]:
    """Return the ways in which the network is run."""
    if small:
        return {"float32": Execution(), "bf16": Execution("bf16", channels_last=True)}
    return {"float32": Execution(), "bf16 compiled": Execution("bf16", compile=True, channels_last=True)}


def each_execution(
    device: torch.device, small: bool, name: str, count: int, works: Callable[..., dict[str, Callable[[], object]]]
) -> list[Row]:
    """Time works of the large network in every execution; the first of them over the second."""
    rows = []
    for how, execution in executions(small).items():
        torch.manual_seed(0)
        kind, network = unet(small)
        network, chain = network.to(device).eval(), sdediff.DDPM.linear(1000)
        model = sdediff.ScoreModel(network, chain, "epsilon", conditioning="label").with_execution(execution)
        own, bare = works(model, NoiseSource(0, (count, 3, 32, 32), device=device).normal(0)).items()
        found = in_turn(dict((own, bare)), device, 0.0)
        size = sum(parameter.numel() for parameter in network.parameters())
        what = f"{name} of {count}, {kind} of {size / 1e6:.1f} M, {how}"
        figures = {"us": 1e6 * found[own[0]], "ratio": found[own[0]] / found[bare[0]]}
        rows.append({"what": what, **figures, "over": f"over {bare[0]}"})
    return rows


def bare_forward(model: sdediff.ScoreModel, x: Tensor) -> Tensor:
    """Return the output of a forward at some level, with nothing around the network but its execution."""
    t = torch.full((len(x),), 500.0, device=x.device)
    return model.runner(model.execution, model.network, x, t, model.condition)


def sampling(device: torch.device, small: bool) -> list[Row]:
    """Time 20 steps over 20 forwards."""

    def works(model: sdediff.ScoreModel, x: Tensor) -> dict[str, Callable[[], object]]:
        def bare() -> None:
            with torch.no_grad():
                for _ in range(20):
                    bare_forward(model, x)

        return {"ode": partial(sdediff.sample, model, tuple(x.shape), "ode", steps=20), "20 forwards": bare}

    return each_execution(device, small, "sampling", 8 if small else 256, works)


def likelihood(device: torch.device, small: bool) -> list[Row]:
    """Time a log-likelihood of 40 steps and two probes over as many forwards and backward passes."""
    steps = 10 if small else 40

    def works(model: sdediff.ScoreModel, x: Tensor) -> dict[str, Callable[[], object]]:
        def bare() -> None:
            for _ in range(steps + 1):
                leaf = x.clone().requires_grad_()
                output = bare_forward(model, leaf)
                for _ in range(2):
                    torch.autograd.grad(output, leaf, x, retain_graph=True)
                del output  # its memory, which the next forward would otherwise have beside it

        own = partial(sdediff.log_likelihood, model, x, steps=steps, probes=2)
        return {"log_likelihood": partial(own, batch_size=len(x)), f"{steps + 1} forwards, 2 backward each": bare}

    return each_execution(device, small, "likelihood", 8 if small else 64, works)


def training(device: torch.device, small: bool) -> list[Row]:
    """Time steps of AdamW through the model over those of a bare loop."""

    def works(model: sdediff.ScoreModel, x: Tensor) -> dict[str, Callable[[], object]]:
        counter = iter(range(1 << 30))
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-5) for _ in range(2)]

        def own() -> None:
            optimizers[0].zero_grad()
            model.loss(x, seed=1, step=next(counter)).mean().backward()
            optimizers[0].step()

        def bare() -> None:
            optimizers[1].zero_grad()
            eps = torch.randn_like(x)
            (bare_forward(model, 0.8 * x + 0.6 * eps) - eps).square().mean().backward()
            optimizers[1].step()

        return {"step": own, "bare step": bare}

    return each_execution(device, small, "training", 16 if small else 128, works)


class Target(NamedTuple):
    """A target: the largest figure that the rows of a part may have, those whose name a pattern finds."""

    what: str
    part: str
    pattern: str
    figure: str
    most: float


FIXED = "|".join(re.escape(name) for name, sampler in sdediff.SAMPLERS.items() if not sampler.adaptive)
TARGETS = (
    Target("words that differ", "parity", "^words", "share that differs", 0.0),
    Target("normals, float32", "parity", "^normals", "float32", 1e-6),
    Target("normals, float64", "parity", "^normals", "float64", 1e-15),
    Target("samples after 20 steps, float64", "parity", f"^({FIXED})$", "float64", 1e-12),
    Target("noise over torch.randn", "times", "^noise", "ratio", 2.0),
    Target("step of a stochastic method over diffusers'", "times", "^step (sde|ancestral)", "ratio", 1.0),
    Target("step of 'ode' and multistep methods over diffusers'", "times", "^step (ode|dpm|unipc)", "ratio", 0.6),
    Target("sampling over its forwards, float32", "sampling", "float32$", "ratio", 1.01),
    Target("sampling over its forwards, bf16", "sampling", "bf16", "ratio", 1.03),
    Target("likelihood over its forward and backward passes", "likelihood", "", "ratio", 1.05),
    Target("training step over a bare one, bf16", "training", "bf16", "ratio", 1.05),
)


def judge(found: dict[str, Any]) -> list[Row]:
    """Return every target beside the worst figure of its rows, where it was measured."""
    rows = []
    for target in TARGETS:
        own = [row for row in found.get(target.part, ()) if re.search(target.pattern, row["what"])]
        own = [row for row in own if target.figure in row]
        if own:
            worst = max(own, key=lambda row: row[target.figure])
            met = "met" if worst[target.figure] <= target.most else "MISSED"
            name = f"{target.what}: {met}"
            rows.append({"what": name, "worst": worst[target.figure], "target": target.most, "over": worst["what"]})
    return rows


PARTS = {"parity": parity, "times": times, "sampling": sampling, "likelihood": likelihood, "training": training}


def show(rows: list[Row]) -> None:
    """Print the rows of a part."""
    for row in rows:
        figures = [f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, float)]
        figures += [f"({row['over']})"] if "over" in row else []
        print(f"  {row['what']:72s} {'  '.join(figures)}", flush=True)


@click.command()
@click.option("--device", default="auto", help="Device that is measured.  [default: the fastest]")
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, help="Part.  [default: all]")
@click.option("--json", "file", type=click.Path(path_type=Path), help="File for the table.")
def main(device: str, parts: tuple[str, ...], file: Path | None) -> None:
    where = pick_device(device)
    name = torch.cuda.get_device_name() if where.type == "cuda" else f"{where.type}, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}")
    found: dict[str, Any] = {"device": name, "torch": torch.__version__}
    for part in parts or PARTS:
        start = time.perf_counter()
        found[part] = PARTS[part](where, where.type == "cpu")
        print(f"{part} ({time.perf_counter() - start:.0f} s)")
        show(found[part])
    found["targets"] = judge(found)
    print("targets, and the row that is farthest from each")
    show(found["targets"])
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
