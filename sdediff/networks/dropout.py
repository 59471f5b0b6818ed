"""Dropout without a random generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def check_dropout(probability: float) -> None:
    """Refuse a number that is no probability of dropout.

    Raises:
        ValueError: outside [0, 1).
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"dropout is a probability in [0, 1), not {probability:g}")


class HashedDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose draws are a hash of each entry and its place in the item.

    In training the entries hold fresh noise, so that the draws are new at every step; yet a step done again, as after a
    resumption, drops the same, and no global generator is touched.

    Args:
        probability: probability by which an entry is dropped, in [0, 1); the others are scaled to keep the mean.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of ``(B, ...)`` in training mode."""
        if not self.training:
            return x
        place = torch.arange(x[:1].numel(), dtype=torch.int32, device=x.device).reshape(1, *x.shape[1:])
        word = _hash(x.detach().float().contiguous().view(torch.int32) ^ place * _signed(0x9E3779B1))
        kept = word >= int(self.probability * (1 << 32)) - (1 << 31)
        return x * kept.to(x.dtype) * (1.0 / (1.0 - self.probability))


def _signed(word: int) -> int:
    """Return the integer of 32 bits with a sign that has the bits of ``word``."""
    return word - (1 << 32) if word >= 1 << 31 else word


def _hash(word: Tensor) -> Tensor:
    """Return int32 words, each of which depends on all bits of the input (the last steps of MurmurHash3)."""
    word = (word ^ (word >> 16 & 0xFFFF)) * _signed(0x85EBCA6B)  # shifts without the sign
    word = (word ^ (word >> 13 & 0x7FFFF)) * _signed(0xC2B2AE35)
    return word ^ (word >> 16 & 0xFFFF)


def activation(dropout: float) -> nn.Module:
    """Return SiLU, with dropout after it if its probability is above 0."""
    return nn.Sequential(nn.SiLU(), HashedDropout(dropout)) if dropout > 0.0 else nn.SiLU()
