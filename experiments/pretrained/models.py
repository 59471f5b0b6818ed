"""The recipe: a state dict, the chain it was trained on, and what its data are.

Both networks are ordinary modules with ``(x, t)``. What has to be known of a checkpoint is what its training script
says: the betas, what t means, what the network predicts, and which value a black pixel has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import sdediff
from sdediff.data import to_values

from .networks import CNN, UNet


def cnn(folder: Path) -> sdediff.ScoreModel:
    """Asked by ``t = k / 1000``; pixels in [-0.5, 0.5].

    The script's tables start at k = 0, whose beta is a part of every alpha-bar, but trains from k = 1 on: the chain's
    first step is their first two. (The betas 1 .. 1000 alone would make the first noise 0.0109, not 0.0148.)
    """
    state = load_file(folder / "yichizhang_ddpm_mnist_cnn" / "ddpm_mnist_starter.safetensors")
    betas = state["beta_t"][1:].double()
    betas[0] = 1.0 - state["alpha_t"][1].double()
    network = CNN()
    network.load_state_dict({name[3:]: value for name, value in state.items() if name.startswith("gt.")})
    info = sdediff.DataInfo((1, 28, 28), 256, low=-0.5, high=0.5)
    return sdediff.ScoreModel(network.eval(), sdediff.DDPM(betas), "epsilon", data=info)


def unet(folder: Path) -> sdediff.ScoreModel:
    """Asked by an integer from 0 up, a row of a table of embeddings; pixels in [0, 1]."""
    network = UNet()
    network.load_state_dict(load_file(folder / "franfee_ddpm_mnist_unet" / "model_unet_res.safetensors"))
    chain, info = sdediff.DDPM(torch.linspace(1e-4, 0.02, 1000)), sdediff.DataInfo((1, 28, 28), 256, low=0.0, high=1.0)
    return sdediff.ScoreModel(network.eval(), chain, "epsilon", conditioning="interpolated", data=info)


MODELS: dict[str, Callable[[Path], sdediff.ScoreModel]] = {"cnn": cnn, "unet": unet}


def digits(file: Path, part: str) -> Tensor:
    """Levels ``(n, 1, 28, 28)`` of ``x_train`` or ``x_test``, uint8."""
    with np.load(file) as arrays:
        return torch.from_numpy(arrays[part])[:, None]


def with_moments(model: sdediff.ScoreModel, images: Tensor) -> sdediff.ScoreModel:
    """The model, knowing mean and covariance of its training data."""
    model.moments = sdediff.Moments.fit(to_values(images, model.data, dtype=torch.float32))
    return model
