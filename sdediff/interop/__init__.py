"""Models of diffusers. Only this folder imports ``diffusers``, and only when such a model is read or written."""

from sdediff.interop.autoencoder import DiffusersDecoder, DiffusersEncoder, load_latent
from sdediff.interop.folder import find_autoencoder, find_model, load_folder
from sdediff.interop.hub import fetch_model, is_hub_name
from sdediff.interop.network import DiffusersNetwork
from sdediff.interop.schedulers import SampleBounds, Scheduled, sample_bounds, scheduled
from sdediff.interop.writing import export

__all__ = [
    "DiffusersDecoder",
    "DiffusersEncoder",
    "DiffusersNetwork",
    "SampleBounds",
    "Scheduled",
    "export",
    "fetch_model",
    "find_autoencoder",
    "find_model",
    "is_hub_name",
    "load_folder",
    "load_latent",
    "sample_bounds",
    "scheduled",
]
