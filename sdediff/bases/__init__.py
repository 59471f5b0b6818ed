r"""Orthonormal bases of items, as turns of their coordinates: a matrix, a cosine transform, blocks, one after another.

A basis is an orthogonal matrix U ``(D, D)`` whose columns are directions; a covariance diagonal in it is
``U diag(v) U^T``. As a matrix it takes ``D^2`` numbers, 1.2 GB for an image of 3x64x64. Where that is too many it is a
product of turns that cost ``O(D (H + W))`` and ``O(D + G k^2)``: the cosine transform along all but the first axis, in
which the covariance of stationary data is nearly diagonal, and small matrices on groups of coordinates.
"""

from sdediff.bases.axes import Axes as Axes
from sdediff.bases.base import Basis as Basis
from sdediff.bases.base import Identity as Identity
from sdediff.bases.base import Matrix as Matrix
from sdediff.bases.base import as_basis as as_basis
from sdediff.bases.blocks import Blocks as Blocks
from sdediff.bases.chain import Chain as Chain
from sdediff.bases.cosine import Cosine as Cosine
