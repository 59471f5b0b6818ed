"""The peers' benchmark on trained networks, where all configurations would take hours: those that led elsewhere.

Like ``run``, with the configurations that led on the exact problems (all candidates for best there at these numbers of
forwards, from ``peers.json`` of a run), each on its own grids for this process; reference dopri5 at 1e-6. Ours: the
default, untuned. The second form takes a network trained by others, a convolutional DDPM of MNIST (291k parameters,
epsilon): ``CHECKPOINTS`` holds ``networks.py`` and ``yichizhang_ddpm_mnist_cnn/``.

    python -m experiments.peers.leaders runs/peers/peers.json --run runs/digits --starts 64
    python -m experiments.peers.leaders runs/peers/peers.json --mnist CHECKPOINTS

Cost: about three minutes on one core.
"""

from __future__ import annotations

import json
import runpy
import tempfile
from functools import partial
from pathlib import Path

import click
import torch
from safetensors.torch import load_file
from tqdm import tqdm

import sdediff

from . import measure
from .contest import Entry, entries
from .measure import Cache, Errors, Problem, of_ours, of_peer
from .report import geometric_mean

BUDGETS = (8, 10, 15, 20)


def network(folder: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """The network and the betas of its chain."""
    net = runpy.run_path(str(folder / "networks.py"))["CwCNN"]()
    state = load_file(folder / "yichizhang_ddpm_mnist_cnn" / "ddpm_mnist_starter.safetensors")
    net.load_state_dict({name[3:]: value for name, value in state.items() if name.startswith("gt.")})
    # the file's alpha-bar has beta_0 in it, too: the first instant's noise is that of both
    betas = torch.cat([1.0 - state["alpha_t"][1:2].double(), state["beta_t"][2:].double()])
    return net.eval(), betas


def candidates(problem: Problem, record: Path) -> list[Entry]:
    """The entries that led on the exact problems, on their own grids."""
    leading = {
        (score["label"], score["budget"])
        for found in json.loads(record.read_text())["problems"].values()
        for score in found["peers"]
        if score["field"] == 0
    }
    return [e for e in entries(problem) if e.field == 0 and e.budget in BUDGETS and (e.label, e.budget) in leading]


@click.command()
@click.argument("record", type=click.Path(exists=True, path_type=Path))
@click.option("--run", "trained", type=click.Path(exists=True, path_type=Path))
@click.option("--mnist", type=click.Path(exists=True, path_type=Path))
@click.option("--starts", default=16, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "sdediff-peers")
def main(record: Path, trained: Path | None, mnist: Path | None, starts: int, cache: Path) -> None:
    torch.set_num_threads(1)
    if (trained is None) == (mnist is None):
        raise click.UsageError("give either --run or --mnist")
    problem = measure.trained(trained, starts, cache) if mnist is None else of_mnist(mnist, starts, cache)
    known, scores = Cache(cache, problem.name, starts), list[tuple[Entry, Errors]]()
    for entry in tqdm(candidates(problem, record)):
        errors = known.get(entry.key, partial(of_peer, problem, entry.peer, entry.times, entry.budget))
        scores.append((entry, errors))
        known.save()
    with torch.no_grad():
        ours = {n: of_ours(problem, "ode", n) for n in BUDGETS}
    for metric in ("rms", "median"):
        best = {n: min((getattr(e, metric), entry.label) for entry, e in scores if entry.budget == n) for n in BUDGETS}
        ratios = {n: getattr(ours[n], metric) / best[n][0] for n in BUDGETS}
        for n in BUDGETS:
            figures = f"ode {getattr(ours[n], metric):.2e}, best peer {best[n][0]:.2e}, ratio {ratios[n]:.2f}"
            print(f"{problem.name} {metric:7} {n:3} forwards: {figures}   {best[n][1]}")
        print(f"{problem.name} {metric:7} geometric mean of the ratios {geometric_mean(ratios.values()):.3f}")


def of_mnist(checkpoints: Path, starts: int, cache: Path) -> Problem:
    """The network of others as a problem."""
    net, betas = network(checkpoints)
    info = sdediff.DataInfo((1, 28, 28), low=-0.5, high=0.5)
    model = sdediff.ScoreModel(net, sdediff.DDPM(betas), "epsilon", data=info)
    return measure.problem("mnist-cnn", model, starts, cache, 1e-6)


if __name__ == "__main__":
    main()
