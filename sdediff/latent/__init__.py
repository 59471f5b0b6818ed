"""Models in two stages: autoencoders, VAEs, and score models of their codes.

A VAE is an encoder level below the chain: ``elbo`` is the bound of both. A new observation or pair of networks is one
class and one line of ``OBSERVATIONS`` or ``CODERS``.
"""

from sdediff.latent.autoencoders import FIRST_STAGES, VAE, Autoencoder, build_first_stage
from sdediff.latent.bound import LatentBound, elbo
from sdediff.latent.first_stage import FirstStage
from sdediff.latent.model import DENSITIES, LatentModel, measure_scale
from sdediff.latent.networks import CODERS, default_coder
from sdediff.latent.observations import OBSERVATIONS, Observation, make_observation
from sdediff.latent.posterior import Posterior, active_units
from sdediff.latent.traversal import traverse

__all__ = [
    "CODERS",
    "DENSITIES",
    "FIRST_STAGES",
    "OBSERVATIONS",
    "VAE",
    "Autoencoder",
    "FirstStage",
    "LatentBound",
    "LatentModel",
    "Observation",
    "Posterior",
    "active_units",
    "build_first_stage",
    "default_coder",
    "elbo",
    "make_observation",
    "measure_scale",
    "traverse",
]
