"""The kernels of Triton draw what torch draws: on CUDA, or anywhere by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util

import pytest

SCRIPT = """
import torch
import triton.language as tl
from triton.language.extra import libdevice

# the interpreter has none of the device's library
libdevice.log, libdevice.cos, libdevice.sin = lambda x: tl.log(x), lambda x: tl.cos(x), lambda x: tl.sin(x)

from sdediff.noise import devices, kernels, laws, words

key, samples = words.stream_key("normal", 7, -1, 3), torch.tensor([0, 1, 5, -2**63, -1])
for size in (1, 2, 7, 600):
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 2e-15)):
        ours, plain = kernels.kernel_normals(key, samples, size, dtype), laws.device_normals(key, samples, size, dtype)
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
        ours = kernels.kernel_uniforms(key, samples, size, dtype)
        assert torch.equal(ours, laws.device_uniforms(key, samples, size, dtype))
assert kernels.kernel_normals(key, samples, 0, torch.float32).shape == (5, 0)
devices.check_kernels(kernels, torch.device("cpu"))
"""


@pytest.mark.skipif(util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_draw_what_torch_draws() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], check=True, env=environment)
