"""Batches that memory does not hold: halved until they fit, with the same numbers; by a network that refuses more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdediff
from sdediff import VPSDE, DataInfo, ScoreModel
from sdediff.microbatches import Microbatches

SHAPE = (6,)
FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, max allowed: 9.07 GB)"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"),
    MemoryError(),
]


class Small(nn.Module):
    """A network on a device that holds no more than some items."""

    def __init__(self, most: int, failure: Exception) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, 36, dtype=torch.float64).reshape(6, 6))
        self.most, self.failure, self.sizes = most, failure, list[int]()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.failure
        self.sizes.append(len(x))
        return torch.tanh(x @ self.weight) * t[:, None].cos()


def model_of(network: nn.Module) -> ScoreModel:
    return ScoreModel(network, VPSDE(), "v_prediction", data=DataInfo(SHAPE, levels=8))


LEVELS = torch.arange(60).reshape(10, *SHAPE) % 8

VERBS: dict[str, Callable[[ScoreModel], Any]] = {
    "sample": lambda model: sdediff.sample(model, (10, *SHAPE), steps=4),
    "sample, noise": lambda model: sdediff.sample(model, (10, *SHAPE), "sde", steps=4),
    "sample, density": lambda model: torch.cat(
        [part.reshape(-1) for part in sdediff.sample(model, (10, *SHAPE), steps=4, return_log_prob=True)]
    ),
    "log_likelihood": lambda model: sdediff.log_likelihood(model, LEVELS, steps=4, trace="exact").log_prob,
    "log_likelihood, probes": lambda model: sdediff.log_likelihood(model, LEVELS, steps=4, trace="hutchinson").log_prob,
    "bits_per_dim": lambda model: sdediff.bits_per_dim(model, LEVELS, steps=4).bits_per_dim,
    "elbo": lambda model: sdediff.elbo(model, LEVELS, steps=4).total,
    "elbo, sampled": lambda model: sdediff.elbo(model, LEVELS, steps=torch.inf, draws=8).total,
}


@pytest.mark.parametrize("failure", FAILURES, ids=["cuda", "mps", "cpu", "python"])
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_verbs_halve_what_memory_does_not_hold(verb, failure):
    """10 items, then 5, then 2: each of them with its own noise, as in one batch."""
    roomy, small = Small(1000, failure), Small(3, failure)
    whole, halved = verb(model_of(roomy)), verb(model_of(small))
    assert max(roomy.sizes) >= 8
    assert max(small.sizes) <= 3
    torch.testing.assert_close(halved, whole, rtol=1e-11, atol=1e-11)


def test_a_single_item_that_does_not_fit_is_said():
    with pytest.raises(MemoryError, match="a single item does not fit into memory: CUDA out of memory"):
        sdediff.sample(model_of(Small(0, FAILURES[0])), (2, *SHAPE), steps=2)


def test_other_failures_pass_through():
    with pytest.raises(RuntimeError, match="shape mismatch"):
        sdediff.sample(model_of(Small(0, RuntimeError("shape mismatch"))), (2, *SHAPE), steps=2)


def test_a_size_found_is_kept_and_the_parts_come_in_order():
    tried: list[int] = []

    def work(begin: int, end: int) -> range:
        tried.append(end - begin)
        if end - begin > 5:
            raise MemoryError
        return range(begin, end)

    batches = Microbatches(32)
    for _ in range(2):
        assert [item for part in batches(20, work) for item in part] == list(range(20))
    assert tried == [20, 10, *[5] * 8]


def test_progress_counts_the_batches_that_there_are():
    seen: list[tuple[int, int]] = []
    model = model_of(Small(3, MemoryError()))
    sdediff.sample(model, (10, *SHAPE), "ddim", steps=2, progress=lambda *pair: seen.append(pair))
    assert seen == [(done, 10) for done in range(1, 11)]
