"""Bases: orthonormal, the same as their matrices, whole again from their tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from sdediff.bases import Axes, Basis, Blocks, Chain, Cosine, Identity, Matrix, as_basis
from sdediff.gaussian import Moments
from sdediff.moments_storage import moments_tensors, read_moments

SHAPE = (3, 4, 5)
DIM = math.prod(SHAPE)


def random_rotation(*size: int) -> Tensor:
    rng = torch.Generator().manual_seed(sum(size))
    return torch.linalg.qr(torch.randn(*size, size[-1], dtype=torch.float64, generator=rng))[0]


def blocks(groups: int, size: int) -> Blocks:
    order = torch.randperm(DIM, generator=torch.Generator().manual_seed(groups))
    return Blocks(order[: groups * size].reshape(groups, size), random_rotation(groups, size))


BASES: dict[str, Callable[[], Basis]] = {
    "axes": Identity,
    "matrix": lambda: Matrix(random_rotation(DIM)),
    "cosine": lambda: Cosine.of(SHAPE),
    "blocks of some": lambda: blocks(2, 7),
    "blocks of all": lambda: blocks(DIM // 4, 4),
    "chain": lambda: Chain((Cosine.of(SHAPE), blocks(20, 3), blocks(2, 7), Matrix(random_rotation(DIM)))),
    "empty chain": lambda: Chain(()),
}


@pytest.mark.parametrize("name", BASES)
def test_a_basis_is_its_matrix(name: str) -> None:
    """The rows of the axes are orthonormal, and both turns are products with them, of any leading dimensions."""
    basis = BASES[name]()
    rows = Axes(basis, DIM, torch.zeros(0, dtype=torch.float64)).matrix
    torch.testing.assert_close(rows @ rows.T, torch.eye(DIM, dtype=torch.float64), rtol=0.0, atol=1e-13)
    x = torch.randn(2, 5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for y in (x, x[0], x[0, 0]):
        torch.testing.assert_close(basis.rotate(y), y @ rows.T, rtol=0.0, atol=1e-13)
        torch.testing.assert_close(basis.rotate_back(y), y @ rows, rtol=0.0, atol=1e-13)
    assert basis.to(x.float()).rotate(x.float()).dtype == torch.float32
    basis.check(SHAPE)
    assert len(repr(Moments(torch.zeros(SHAPE), torch.ones(DIM), basis)).splitlines()) < 10


def test_axes_come_in_parts_where_there_are_many() -> None:
    """Beyond 1,024 dimensions a few at a time, and they are those of the whole."""
    axes = Axes(Cosine.of((1, 1100)), 1100, torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(axes.rows(1000, 1003), Cosine.of((1, 1100)).matrices[0][1000:1003])
    assert "matrix" not in vars(axes)


def test_the_cosine_transform_is_the_usual_one() -> None:
    x = np.random.default_rng(0).normal(size=(6, *SHAPE))
    expected = dctn(x, axes=(2, 3), norm="ortho").reshape(6, -1)
    found = Cosine.of(SHAPE).rotate(torch.from_numpy(x).flatten(1))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("name", BASES)
def test_moments_come_back_from_their_tensors(name: str) -> None:
    basis = BASES[name]()
    moments = Moments(torch.zeros(SHAPE).double(), torch.rand(DIM).double(), basis)
    again = read_moments(moments_tensors(moments), SHAPE)
    x = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_basis(again.basis).rotate(x.flatten(1)), basis.rotate(x.flatten(1)))
    assert torch.equal(again.variances, moments.variances)


DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no mean": (lambda t: t.pop("mean"), "not made of"),
    "another name": (lambda t: t.update(more=torch.zeros(1)), "not made of"),
    "a matrix too": (lambda t: t.update(basis=torch.eye(DIM)), "not made of"),
    "an unknown turn": (lambda t: t.update({"basis.3.twist.angle": torch.zeros(1)}), "part 3 of the basis"),
    "a gap": (lambda t: t.update({"basis.7.matrix.matrix": torch.eye(DIM)}), "part 3 of the basis"),
    "two turns in one place": (lambda t: t.update({"basis.0.matrix.matrix": torch.eye(DIM)}), "part 0 of the basis"),
    "half of a turn": (lambda t: t.pop("basis.1.blocks.index"), "not made of: matrices"),
    "another shape": (lambda t: t.update({"basis.0.cosine.shape": torch.tensor([3, 5, 4])}), "transform of items"),
    "a huge transform": (lambda t: t.update({"basis.0.cosine.shape": torch.tensor([1, 1 << 40])}), "1 to 4096"),
    "a shape of floats": (lambda t: t.update({"basis.0.cosine.shape": torch.ones(3)}), "one tensor, the shape"),
    "coordinates twice": (lambda t: t["basis.1.blocks.index"].fill_(1), "must be different"),
    "coordinates outside": (lambda t: t["basis.1.blocks.index"].add_(1), "0 .. 59"),
    "coordinates of floats": (lambda t: t.update({"basis.1.blocks.index": torch.ones(20, 3)}), "integer coordinates"),
    "a negative variance": (lambda t: t["variances"].sub_(2.0), "no mean and covariance"),
    "NaN": (lambda t: t["mean"].fill_(math.nan), "NaN"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_moments_are_refused_in_one_line(name: str) -> None:
    damage, message = DAMAGE[name]
    basis = Chain((Cosine.of(SHAPE), blocks(20, 3), blocks(2, 7)))
    tensors = moments_tensors(Moments(torch.zeros(SHAPE), torch.ones(DIM), basis))
    damage(tensors)
    with pytest.raises(ValueError, match=message) as found:
        read_moments(tensors, SHAPE)
    assert "\n" not in str(found.value)
