r"""Autoencoders, and variational autoencoders: the first stage of a model in two.

A VAE is the model ``p(z) p(x | z)`` with ``p(z) = N(0, I)`` and an approximate posterior ``q(z | x)``, trained on the
negative bound (Kingma & Welling 2014, eq. 3), by codes ``z = mu + s eps``:

    -log p(x)  <=  E_q[-log p(x | z)] + KL(q(z | x) || N(0, I)).

It is a chain of one step whose forward process is learned. With weight 0 on the divergence and ``s = 0`` it is an
autoencoder, which minimises the reconstruction error alone and has no law of its codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdediff.analytic import Gaussian
from sdediff.latent.bound import Bounded
from sdediff.latent.code_laws import CodeLaw, StandardNormal
from sdediff.latent.first_stage import FirstStage
from sdediff.latent.networks import CODERS, default_coder
from sdediff.latent.observations import Observation, make_observation
from sdediff.latent.posterior import Posterior
from sdediff.networks import initialise
from sdediff.numerics import choose, flatten
from sdediff.score_model import ScoreModel
from sdediff.sde import VPSDE
from sdediff.types import DataInfo


class Autoencoder(FirstStage):
    """An autoencoder: codes without a law; the encoder returns the codes ``(B, C, ...)`` themselves.

    >>> info = sdediff.DataInfo((6,))
    >>> model = sdediff.latent.Autoencoder(torch.nn.Linear(6, 2), torch.nn.Linear(2, 6), data=info)
    >>> model.to_codes(torch.zeros(5, 6)).shape
    torch.Size([5, 2])
    """

    encoder_outputs = 1

    @property
    def prior(self) -> ScoreModel:
        """Refuse: the codes of an autoencoder have no law.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "the codes of an autoencoder (a VQModel is one) have no law, so there is no likelihood or bound: train a "
            "VAE; for samples alone, train a score model on the codes (a latent model)"
        )

    def law(self, output: Tensor) -> Posterior:
        return Posterior(output, torch.full_like(output, -math.inf))

    def loss(self, x: Tensor, values: Tensor, eps: Tensor, *, beta: float = 1.0, free_bits: float = 0.0) -> Tensor:
        return self.reconstruction(x, values, self.posterior(values).mean) / flatten(x).shape[1]

    def bound(self, x: Tensor, **options: Any) -> Any:
        """Refuse: without a law of the codes there is no bound.

        Raises:
            ValueError: always.
        """
        raise ValueError("an autoencoder has no law of its codes, so no bound on a likelihood: train a VAE")


class VAE(FirstStage, Bounded):
    """A variational autoencoder with the prior ``N(0, I)``.

    Args:
        encoder: network from values ``(B, *shape)`` to means and log-variances of the codes, side by side along
            dimension 1: ``(B, 2 C, ...)``.
        decoder: network from codes to the outputs of the observation, as of :class:`Autoencoder`.
        observation: law of the data given a code, as there.
        data: shape, levels, range and units of the data.

    >>> info = sdediff.DataInfo((6,))
    >>> vae = sdediff.latent.VAE(torch.nn.Linear(6, 4), torch.nn.Linear(2, 6), data=info)
    >>> sdediff.sample(vae, (5, 6), "ddim", steps=1).shape
    torch.Size([5, 6])
    """

    encoder_outputs = 2

    def law(self, output: Tensor) -> Posterior:
        return Posterior.of(output)

    @cached_property
    def _prior(self) -> tuple[ScoreModel]:  # a tuple, lest its constants become part of the module
        size = math.prod(self.code_shape)
        return (Gaussian(torch.zeros(size), 1.0, shape=self.code_shape).model(VPSDE()),)

    @property
    def prior(self) -> ScoreModel:
        """The law of the codes, ``N(0, I)``, as an exact score model."""
        return self._prior[0]

    def loss(self, x: Tensor, values: Tensor, eps: Tensor, *, beta: float = 1.0, free_bits: float = 0.0) -> Tensor:
        posterior = self.posterior(values)
        cost = self.reconstruction(x, values, posterior.draw(eps))
        kl = flatten(posterior.kl()).clamp(min=free_bits).sum(dim=1)
        return (cost + beta * kl.to(cost)) / flatten(x).shape[1]

    def parts(self, **density: Any) -> tuple[FirstStage, CodeLaw]:
        if density:
            raise ValueError(f"the codes of a VAE have the law N(0, I), which takes no options: {', '.join(density)}")
        return self, StandardNormal()


def build_first_stage(
    kind: str,
    data: DataInfo,
    *,
    code: Sequence[int] = (16,),
    coder: str = "auto",
    observation: str | Observation = "auto",
    seed: int = 0,
    **parameters: Any,
) -> FirstStage:
    """Return an untrained autoencoder or VAE with networks of the library.

    Args:
        kind: a name of ``FIRST_STAGES``, ``"ae"`` or ``"vae"``.
        data: shape, levels, range and units of the data.
        code: shape of the codes, ``(k,)``, or ``(C, h, w)`` of the last level of a convolutional coder.
        coder: a name of ``CODERS``, or ``"auto"`` for the one that suits the shape.
        observation: law of the data given a code, or its name; see :func:`make_observation`.
        seed: seed of the weights.
        **parameters: parameters of the encoder and the decoder, as ``width`` and ``blocks``.

    Raises:
        ValueError: for unknown names, or parameters that do not fit.

    >>> vae = sdediff.latent.build_first_stage("vae", sdediff.DataInfo((1, 8, 8), levels=17), code=(4,), width=32)
    >>> vae.code_shape
    (4,)
    """
    cls = choose(FIRST_STAGES, kind, "kind of model")
    pair = choose(CODERS, default_coder(data.shape) if coder == "auto" else coder, "coder")
    law = make_observation(observation, data) if isinstance(observation, str) else observation
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; all is drawn anew
        encoder = pair.encoder(data.shape, code, outputs=cls.encoder_outputs, **parameters)
        decoder = pair.decoder(data.shape, code, outputs=law.outputs(data), **parameters)
    generator = torch.Generator().manual_seed(seed)
    for network in (encoder, decoder):
        initialise(network, generator)
    return cls(encoder, decoder, law, data=data)


FIRST_STAGES: dict[str, type[FirstStage]] = {"ae": Autoencoder, "vae": VAE}
"""First stages by name."""


def kind_of(model: FirstStage) -> str:
    """Return the name of the kind of an autoencoder.

    Raises:
        ValueError: for a class that is not of ``FIRST_STAGES``.
    """
    for name, cls in FIRST_STAGES.items():
        if type(model) is cls:
            return name
    raise ValueError(f"autoencoders are {', '.join(cls.__name__ for cls in FIRST_STAGES.values())}, not {model!r}")
