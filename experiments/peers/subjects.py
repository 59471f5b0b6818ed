"""The networks of the contest ``real`` by name: which half each belongs to, and what makes its model."""

from __future__ import annotations

import runpy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Fit
from torch import Tensor, nn

import sdediff
from experiments.imperfect import Erring
from experiments.pretrained.models import cnn, unet
from experiments.problems import PROBLEMS
from sdediff.analytic import GaussianMixture

from .networks import TRAINED


@dataclass(frozen=True)
class Subject:
    """A network to solve with.

    Args:
        half: ``choose`` or ``judge``; ``exact`` for exact problems, on which the default was chosen.
        make: ``(runs, shared) -> model``.
    """

    half: str
    make: Callable[[Path, Path], sdediff.ScoreModel]


class OneClass(nn.Module):
    """A conditional network asked for one class."""

    def __init__(self, network: nn.Module, label: int) -> None:
        super().__init__()
        self.network, self.label = network, label

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t, torch.full_like(t, self.label, dtype=torch.long))


def dit(checkpoints: Path) -> sdediff.ScoreModel:
    """The transformer of MNIST, asked by the label t = 0 .. 999 and for fours; pixels in [-1, 1]."""
    network = runpy.run_path(str(checkpoints / "networks.py"))["FranfeeDiT"]()
    (weights,) = (checkpoints / "franfee_dit_mnist_cond").glob("*.safetensors")
    network.load_state_dict(load_file(weights))
    chain = sdediff.DDPM(torch.linspace(1e-4, 0.02, 1000))
    info = sdediff.DataInfo((1, 28, 28), 256)
    return sdediff.ScoreModel(OneClass(network, 4).eval(), chain, "epsilon", conditioning="label", data=info)


def photographs(runs: Path, shared: Path, components: int, seed: int) -> GaussianMixture:
    """A mixture fitted to 8x8 RGB patches of CIFAR-10 (192-D), each from another image; the fit is kept in ``runs``."""
    path = runs / f"photographs-{components}-{seed}.npz"
    if not path.exists():
        rng = np.random.default_rng(seed)
        with np.load(shared / "cifar10_16k.npz") as arrays:
            images = arrays["x_train"]
        images = images[rng.permutation(len(images))[: len(images) // 2]]
        corners = rng.integers(0, 25, size=(len(images), 2))
        patches = np.stack([i[r : r + 8, c : c + 8] for i, (r, c) in zip(images, corners, strict=True)])
        values = patches.reshape(len(images), -1) / 127.5 - 1.0
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # any mixture will do
            fitted = Fit(components, max_iter=25, reg_covar=1e-4, random_state=seed).fit(values)
        np.savez(path, means=fitted.means_, covariances=fitted.covariances_, weights=fitted.weights_)
    with np.load(path) as arrays:
        return GaussianMixture(*(torch.from_numpy(arrays[key]) for key in ("means", "covariances", "weights")))


def scattered(seed: int, dim: int = 8) -> GaussianMixture:
    """Six components of variance 0.05, placed at random."""
    rng = torch.Generator().manual_seed(seed)
    return GaussianMixture(torch.randn(6, dim, generator=rng).double(), torch.full((6,), 0.05).double())


def wrapped(law: GaussianMixture, sde: sdediff.SDE, predicts: str, error: float, moments: bool) -> sdediff.ScoreModel:
    """The exact network of a law with an error of this size in epsilon, with the data's moments or without."""
    exact = law.model(sde)
    (dim,) = exact.data.shape
    network = Erring(exact, dim, predicts, error)
    known: Any = exact.moments if moments else None
    info = sdediff.DataInfo((dim,))
    return sdediff.ScoreModel(network, sde, predicts, conditioning="time", data=info, moments=known)


def _run(name: str, runs: Path, _shared: Path) -> sdediff.ScoreModel:
    return sdediff.load(runs / name).eval()


def _others(make: Callable[[Path], sdediff.ScoreModel], _runs: Path, shared: Path) -> sdediff.ScoreModel:
    return make(shared / "checkpoints")


def _patches(
    fit: tuple[int, int], sde: sdediff.SDE, predicts: str, moments: bool, error: float, runs: Path, shared: Path
) -> sdediff.ScoreModel:
    return wrapped(photographs(runs, shared, *fit), sde, predicts, error, moments)


def _scattered(seed: int, sde: sdediff.SDE, predicts: str, error: float, *_: Path) -> sdediff.ScoreModel:
    return wrapped(scattered(seed), sde, predicts, error, moments=True)


def _exact(name: str, *_: Path) -> sdediff.ScoreModel:
    return PROBLEMS[name]().model(sdediff.VPSDE())


LINEAR, COSINE = sdediff.DDPM.linear(1000), sdediff.DDPM.cosine(1000)
A, B = (12, 0), (20, 1)
SUBJECTS: dict[str, Subject] = {
    **{name: Subject(recipe.half, partial(_run, name)) for name, recipe in TRAINED.items()},
    "mnist-cnn": Subject("choose", partial(_others, cnn)),
    "mnist-unet": Subject("judge", partial(_others, unet)),
    "mnist-dit": Subject("choose", partial(_others, dit)),
    "patches-eps": Subject("choose", partial(_patches, A, sdediff.VPSDE(), "epsilon", False, 0.0)),
    "patches-v-moments": Subject("choose", partial(_patches, A, sdediff.VPSDE(), "v_prediction", True, 0.0)),
    "patches-cosine-eps-2%": Subject("choose", partial(_patches, A, COSINE, "epsilon", True, 0.02)),
    "photos-eps-moments": Subject("judge", partial(_patches, B, sdediff.VPSDE(), "epsilon", True, 0.0)),
    "photos-v": Subject("judge", partial(_patches, B, sdediff.VPSDE(), "v_prediction", False, 0.0)),
    "photos-linear-eps-1%": Subject("judge", partial(_patches, B, LINEAR, "epsilon", False, 0.01)),
    "mixture-cosine-eps-1.5%": Subject("choose", partial(_scattered, 1, COSINE, "epsilon", 0.015)),
    "mixture-flow-v-1%": Subject("choose", partial(_scattered, 1, sdediff.RectifiedFlow(), "v_prediction", 0.01)),
    "mixture-ve-eps-1.5%": Subject("judge", partial(_scattered, 2, sdediff.VESDE(), "epsilon", 0.015)),
    "mixture-linear-v-2%": Subject("judge", partial(_scattered, 2, LINEAR, "v_prediction", 0.02)),
}
EXACT: dict[str, Subject] = {name: Subject("exact", partial(_exact, name)) for name in PROBLEMS}
"""The exact problems of the contest ``run``, measured by ``real`` where they are named."""
