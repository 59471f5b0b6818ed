"""Covariances without structure: the whole, and the diagonal alone."""

from __future__ import annotations

import torch

from sdediff.covariances.items import Covariance, Items
from sdediff.covariances.shrinkage import towards_a_sphere, towards_their_mean


def diagonal(items: Items, shrink: bool) -> Covariance:
    """Estimate the variances of the entries."""
    total = sum((part.square().sum(dim=0) for part in items.parts()), start=torch.zeros_like(items.mean))
    variances = total / items.count
    return Covariance(towards_their_mean(variances, items.count) if shrink and items.count > 1 else variances)


def full(items: Items, shrink: bool) -> Covariance:
    """Estimate the whole covariance."""
    if items.count < 2:
        return diagonal(items, shrink)
    products = sum((part.T @ part for part in items.parts()), start=items.mean.new_zeros(items.dim, items.dim))
    covariance = products / items.count
    variances, basis = torch.linalg.eigh(towards_a_sphere(covariance, items.count) if shrink else covariance)
    return Covariance(variances.clamp(min=0.0), basis)
