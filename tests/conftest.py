"""What all tests share: one thread (the machine's cores are shared by the workers) and a watch on global state."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from catalogue import PROCESSES
from sdediff import SDE

torch.set_num_threads(1)


@pytest.fixture(params=PROCESSES.values(), ids=PROCESSES.keys())
def sde(request: pytest.FixtureRequest) -> SDE:
    """Every process of the catalogue."""
    process: SDE = request.param
    return process


@pytest.fixture
def global_generators_untouched() -> Iterator[None]:
    """Fail the test that draws from, or seeds, a global random generator."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), torch_state)
    after = np.random.get_state()  # noqa: NPY002
    assert np.array_equal(after[1], numpy_state[1])
    assert after[2:] == numpy_state[2:]
    assert random.getstate() == python_state
