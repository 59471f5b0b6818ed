"""What all tests share: one thread unless ``OMP_NUM_THREADS`` says more (the workers share the machine's cores), and a
watch on global state."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from catalogue import PROCESSES
from sdediff import SDE
from sdediff.interrupt import ENDING

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's background job inherits it, and hands it on
    signal.signal(signal.SIGINT, signal.default_int_handler)
for number in ENDING:  # as nohup leaves them
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


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
