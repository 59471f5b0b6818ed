"""Traversals: what the data of a code become along one of its entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdediff.staged import Staged


def traverse(
    model: Staged, x: Tensor, entries: Sequence[int] | None = None, *, points: int = 9, span: float = 3.0
) -> Tensor:
    """Return the data of the code of an item as one entry after the other runs over the prior.

    Args:
        model: a VAE, an autoencoder or a latent model.
        x: items ``(B, *shape)``: the first is traversed, the variance over all orders the entries.
        entries: entries of the flattened code; by default the eight that vary most over the items.
        points: number of values, evenly from ``-span`` to ``span``.
        span: largest value, in the coordinates of the prior, where most codes lie within 3.

    Returns:
        ``(points, len(entries), *shape)``, in the units of the data.

    Raises:
        ValueError: for fewer than two points, or entries that the code does not have.

    >>> vae = sdediff.latent.build_first_stage("vae", sdediff.DataInfo((6,)), code=(4,), width=16)
    >>> sdediff.latent.traverse(vae, torch.zeros(2, 6), points=3).shape
    torch.Size([3, 4, 6])
    """
    if points < 2:
        raise ValueError(f"a traversal needs at least 2 points, not {points}")
    codes = model.to_codes(x).flatten(1)
    size = codes.shape[1]
    chosen = codes.var(dim=0, correction=0).argsort(descending=True)[:8].tolist() if entries is None else list(entries)
    if not all(0 <= entry < size for entry in chosen):
        raise ValueError(f"a code has the entries 0 to {size - 1}, not {chosen}")
    values = torch.linspace(-span, span, points, dtype=codes.dtype, device=codes.device)
    z = codes[:1].repeat(points * len(chosen), 1).reshape(points, len(chosen), size)
    for row, entry in enumerate(chosen):
        z[:, row, entry] = values
    decoded = model.from_codes(z.reshape(-1, *model.code_shape))
    return decoded.reshape(points, len(chosen), *decoded.shape[1:])
