"""A state dict of a user's own network class becomes a model in three lines, and is the network that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sdediff
from sdediff import DDPM, DataInfo, ScoreModel

STEPS = 12
INFO = DataInfo((1, 4, 4), levels=8, low=0.0, high=1.0)


class Net(nn.Module):
    """Somebody's network: a convolution either side of an embedding of its second argument."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.enter, self.leave = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not isinstance(self.embed, nn.Embedding):
            t = t[:, None]
        return self.leave(torch.tanh(self.enter(x) + self.embed(t)[:, :, None, None]))


EMBEDDINGS = {
    "time": lambda: nn.Linear(1, 4),
    "label": lambda: nn.Linear(1, 4),
    "interpolated": lambda: nn.Embedding(STEPS, 4),
}


def trained(conditioning: str, seed: int) -> Net:
    """A network whose weights no initialiser would give."""
    network, rng = Net(EMBEDDINGS[conditioning]()), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=rng)
    return network.eval()


def numbers(model: ScoreModel) -> dict[str, Tensor]:
    """What the library says about it."""
    x = torch.arange(32).reshape(2, 1, 4, 4) % 8
    bits, bound = sdediff.bits_per_dim(model, x, steps=9, trace="hutchinson"), sdediff.elbo(model, x)
    found = {"bits": bits.bits_per_dim, "bits, error": bits.probe_error, "bound": bound.total}
    for solver in ("ode", "ancestral", "dpm++2m"):
        found[solver] = sdediff.sample(model, (2, 1, 4, 4), solver=solver, steps=5, seed=1)
    found["latents"] = sdediff.encode(model, found["ode"], "reversible", steps=6)
    return found


@pytest.mark.parametrize("conditioning", EMBEDDINGS)
def test_a_state_dict_in_three_lines_is_the_network_in_memory(conditioning: str, tmp_path: Path) -> None:
    """Bit for bit: the file holds the same weights, and nothing else may matter. Other weights give other numbers."""
    betas, file = torch.linspace(1e-3, 0.5, STEPS), tmp_path / "weights.safetensors"
    network = trained(conditioning, seed=0)
    save_file(network.state_dict(), file)

    loaded = Net(EMBEDDINGS[conditioning]()).eval()
    loaded.load_state_dict(load_file(file))
    model = ScoreModel(loaded, DDPM(betas), "epsilon", conditioning=conditioning, data=INFO)

    here = numbers(ScoreModel(network, DDPM(betas), "epsilon", conditioning=conditioning, data=INFO))
    there = numbers(model)
    other = numbers(ScoreModel(trained(conditioning, seed=1), DDPM(betas), conditioning=conditioning, data=INFO))
    for name, value in here.items():
        assert bool(torch.isfinite(value).all()), name
        assert torch.equal(value, there[name]), name
        assert not torch.equal(value, other[name]), name


@pytest.mark.parametrize(
    ("conditioning", "asked"), [("time", [0.25, 1.0]), ("label", [2.0, 11.0]), ("interpolated", [2, 11])]
)
def test_what_the_network_is_asked_with(conditioning: str, asked: list[float]) -> None:
    """Instant k + 1 of N is ``t = (k + 1) / N``, the timestep k: a real number, or an integer for a table."""
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    model = ScoreModel(network, DDPM(torch.linspace(1e-3, 0.5, STEPS)), conditioning=conditioning, data=INFO)
    for t in (3 / STEPS, 1.0):
        model.epsilon(torch.zeros(2, 1, 4, 4), t)
    kind = torch.int64 if conditioning == "interpolated" else torch.float32
    assert [(t.dtype, t.tolist()) for t in seen] == [(kind, [value] * 2) for value in asked]


def test_weights_of_another_class_are_refused(tmp_path: Path) -> None:
    """``load_state_dict`` is strict: nothing is scored with half of its weights."""
    file = tmp_path / "weights.safetensors"
    save_file(trained("time", seed=0).state_dict(), file)
    with pytest.raises(RuntimeError, match="in loading state_dict"):
        Net(EMBEDDINGS["interpolated"]()).load_state_dict(load_file(file))
