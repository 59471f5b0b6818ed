r"""The first stage of a model in two: networks between data and codes, and the law of the data given a code."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdediff.data.levels import to_values
from sdediff.data.units import check_units, to_data, to_model
from sdediff.foreign import evaluating, tensor_of
from sdediff.latent.observations import Observation, make_observation
from sdediff.latent.posterior import Posterior
from sdediff.staged import Staged
from sdediff.types import DataInfo


class FirstStage(Staged):
    """Encoder, decoder and the law of the data given a code.

    Args:
        encoder: network from values ``(B, *shape)`` in the model's units to what :meth:`law` reads.
        decoder: network from codes to the outputs of the observation, ``(B, outputs * C, ...)`` for data
            ``(B, C, ...)``.
        observation: law of the data given a code, or its name in :data:`~sdediff.latent.OBSERVATIONS`; ``"auto"`` for
            the one that suits the data.
        data: shape, levels, range and units of the data.

    Raises:
        ValueError: if the outputs of the networks do not fit the data; of other calls, if data or codes do not fit.
    """

    encoder_outputs: ClassVar[int]
    """Number of tensors like the codes that the encoder returns, side by side along dimension 1."""

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, observation: str | Observation = "auto", *, data: DataInfo
    ) -> None:
        super().__init__()
        check_units(data)
        self.encoder, self.decoder, self.data = encoder, decoder, data
        self.observation = make_observation(observation, data) if isinstance(observation, str) else observation
        count = self.observation.outputs(data)
        self._code_shape, came = self._shapes()
        wanted = (1, count * data.shape[0], *data.shape[1:])
        if came != wanted:
            law = type(self.observation).__name__
            raise ValueError(f"the decoder returns {came} for one code; {law} on data {data.shape} wants {wanted}")

    @torch.no_grad()
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of an item's codes and of the decoder's output for it, ``(1, ...)``.

        The networks are evaluated on the ``meta`` device, which costs nothing, and on their own only if that fails.
        """

        def shapes(device: torch.device | str) -> tuple[tuple[int, ...], tuple[int, ...]]:
            def output(network: nn.Module, x: Tensor) -> Tensor:
                own = {
                    name: value.to(device) for name, value in (*network.named_parameters(), *network.named_buffers())
                }
                return tensor_of(functional_call(network, own, (x,)))

            example = torch.zeros(1, *self.data.shape, dtype=self.dtype, device=device)
            mean = self.law(output(self.encoder, example)).mean
            return tuple(mean.shape[1:]), tuple(output(self.decoder, mean).shape)

        with evaluating(self):
            try:
                return shapes("meta")
            except Exception:  # networks may raise anything there
                return shapes(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the networks."""
        return next(self.encoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return next(self.encoder.parameters()).device

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of the codes of an item."""
        return self._code_shape

    @abstractmethod
    def law(self, output: Tensor) -> Posterior:
        """Return the law of the codes that the encoder's output ``(B, ...)`` describes."""

    @abstractmethod
    def loss(self, x: Tensor, values: Tensor, eps: Tensor, *, beta: float = 1.0, free_bits: float = 0.0) -> Tensor:
        """Return the training loss of each item, nats a dimension ``(B,)``.

        Args:
            x: data, levels where they are integers.
            values: the data in the model's units, levels dequantised.
            eps: standard normals of the shape of the codes.
            beta: weight of the divergence from the prior (Higgins et al. 2017).
            free_bits: nats of divergence that each entry of the code may have at no cost (Kingma et al. 2016).
        """

    def posterior(self, values: Tensor) -> Posterior:
        """Return the law of the codes of values ``(B, *shape)`` in the model's units."""
        return self.law(tensor_of(self.encoder(values)))

    def outputs(self, z: Tensor) -> Tensor:
        """Return the outputs of the decoder at codes ``(B, *code_shape)``, ``(B, outputs, *shape)``."""
        output = tensor_of(self.decoder(z))
        return output.reshape(len(z), -1, *self.data.shape)

    def values(self, x: Tensor) -> Tensor:
        """Return data, floats in their units or levels, as values in the model's units.

        Raises:
            ValueError: for data of another shape.
        """
        self.check_shape(x.shape[1:])
        x = x.to(self.device)
        if x.is_floating_point():
            return to_model(x, self.data).to(self.dtype)
        return to_values(x, self.data, dtype=self.dtype)

    @torch.no_grad()
    def to_codes(self, x: Tensor) -> Tensor:
        """Return the codes of data, the means of their posteriors."""
        with evaluating(self):
            return self.posterior(self.values(x)).mean

    @torch.no_grad()
    def from_codes(self, z: Tensor) -> Tensor:
        """Return the means of the data of codes ``(B, *code_shape)``, floats in the data's units."""
        if tuple(z.shape[1:]) != self.code_shape:
            raise ValueError(f"the codes have shape {self.code_shape}, not {tuple(z.shape[1:])}")
        with evaluating(self):
            outputs = self.outputs(z.to(self.device, self.dtype))
            return to_data(self.observation.mean(outputs, self.data), self.data)

    def reconstruction(self, x: Tensor, values: Tensor, z: Tensor) -> Tensor:
        """Return ``-log p(x | z)`` in nats ``(B,)``, of the values where the observation is continuous.

        Args:
            x: data, levels where they are integers.
            values: the data in the model's units.
            z: codes.
        """
        observed = x if self.observation.integers else values
        return -self.observation.log_prob(observed, self.outputs(z), self.data)
