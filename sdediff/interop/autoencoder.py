"""Latent pipelines of diffusers: an ``AutoencoderKL`` or a ``VQModel`` with the network on its codes.

The codes of the network are ``(z - shift_factor) scaling_factor`` of the autoencoder's z (Rombach et al. 2022, appendix
G). An ``AutoencoderKL`` is a VAE, its observation a Gaussian of deviation 1 about the decoder's output, as in its
training, with the mass of each level's bin. A ``VQModel`` quantises the code before it decodes it; it has no law.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sdediff.conditioning import Conditioning
from sdediff.documents import reason
from sdediff.interop.folder import find_autoencoder, load_folder, read_network
from sdediff.interop.network import AUTOENCODER
from sdediff.latent import VAE, Autoencoder, FirstStage, LatentModel
from sdediff.latent.observations import DiscretisedGaussian
from sdediff.types import DataInfo


class DiffusersEncoder(nn.Module):
    """The encoder of an autoencoder of diffusers, to the parameters of its codes' law, or to the codes of a VQModel.

    Args:
        inner: the autoencoder.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to means and log-variances, or codes, ``(B, ., h, w)``."""
        inner: Any = self.inner
        moments: Tensor = inner.encoder(x)
        return moments if inner.quant_conv is None else inner.quant_conv(moments)


class DiffusersDecoder(nn.Module):
    """The decoder of an autoencoder of diffusers.

    Args:
        inner: the autoencoder.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        """Map codes ``(B, C, h, w)`` to images ``(B, C, H, W)``."""
        inner: Any = self.inner
        image: Tensor = inner.decode(z).sample
        return image


def autoencoder_of(inner: Any, side: tuple[int, ...], name: str = "") -> FirstStage:
    """Return an autoencoder of diffusers as a first stage.

    Args:
        inner: an ``AutoencoderKL`` or a ``VQModel``.
        side: height and width of its codes.
        name: name of the data.

    Raises:
        ValueError: if it cannot be evaluated on such images.
    """
    factor = 2 ** (len(inner.config.block_out_channels) - 1)
    data = DataInfo((inner.config.in_channels, *(factor * length for length in side)), 256, name=name)
    made = VAE if type(inner).__name__ == "AutoencoderKL" else Autoencoder
    return made(DiffusersEncoder(inner), DiffusersDecoder(inner), DiscretisedGaussian(1.0), data=data)


def load_latent(folder: Path, *, conditioning: str | Conditioning | None = None) -> LatentModel:
    """Read a latent pipeline: ``vae/`` or ``vqvae/``, ``unet/`` and ``scheduler/``.

    Raises:
        FileNotFoundError: if a part is missing.
        ValueError: as :func:`~sdediff.interop.load_folder`, or if the autoencoder is not one that is read here, or its
            codes are not those of the network.
    """
    place = find_autoencoder(folder)
    if place is None:
        raise FileNotFoundError(f"no autoencoder in {folder}")
    score_model = load_folder(folder, conditioning=conditioning)
    inner: Any = read_network(place, AUTOENCODER)
    assert score_model.data is not None  # of every folder
    try:
        stage = autoencoder_of(inner, score_model.data.shape[1:], folder.resolve().name)
        shift, factor = inner.config.get("shift_factor") or 0.0, inner.config.scaling_factor
        return LatentModel(stage, score_model, shift=shift, scale=1.0 / factor)
    except Exception as error:  # networks may raise anything for arbitrary settings
        raise ValueError(f"the latent pipeline in {folder} is damaged: {reason(error)}") from None
