"""Integration of ODEs by torchdiffeq, restricted to the interval given.

Time runs forward from 0 whatever the direction of the problem, ``step_t`` makes the last step end on the end, and the
clock handed to the field is clamped: unbounded, dopri5 probes a level beyond the data and fails there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdediff.numerics import choose, flatten, widest

ADAPTIVE_METHODS = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
"""Adaptive methods and their orders."""
FIXED_METHODS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""Fixed-step methods and their orders."""
_METHODS = ADAPTIVE_METHODS | FIXED_METHODS

Tolerance = float | Sequence[float]
Components = tuple[Tensor, ...]
VectorField = Callable[[float, Components], Components]


def _worst_sample(components: Sequence[Tensor]) -> Tensor:
    """Return the RMS over the features of each sample, the largest over samples and components.

    In one RMS over the whole batch the error of a hard sample would be averaged with those of easy ones, and the error
    of a log-density with those of pixels.
    """
    return torch.stack([flatten(part).square().mean(dim=1).sqrt().max() for part in components]).max()


def integrate(
    field: VectorField,
    state: Components,
    start: float,
    end: float,
    *,
    method: str = "dopri5",
    rtol: Tolerance = 1e-5,
    atol: Tolerance = 1e-5,
    nodes: Sequence[float] | None = None,
) -> Components:
    """Integrate ``d state / d clock = field(clock, state)`` from ``start`` to ``end``, in either direction.

    Args:
        field: function of the clock, a float within the interval, and the state; returns each component's derivative.
        state: components ``(B, ...)``; each comes back in its own dtype.
        start: clock at the given state.
        end: clock at the returned state.
        method: one of ``ADAPTIVE_METHODS`` or ``FIXED_METHODS``.
        rtol: relative tolerance (adaptive methods), one for all or one a component.
        atol: absolute tolerance, likewise.
        nodes: clocks of the steps of fixed-step methods, from ``start`` to ``end``; only these two by default.

    Raises:
        ValueError: for an unknown method.
        FloatingPointError: if the step size underflows or the state overflows.
    """
    import torchdiffeq  # which imports much of scipy

    choose(_METHODS, method, "torchdiffeq method")
    if start == end:
        return state
    direction = 1.0 if end > start else -1.0
    span = abs(end - start)

    def forward(elapsed: Tensor, parts: Components) -> Components:
        clock = start + direction * min(max(float(elapsed), 0.0), span)
        return tuple(direction * part for part in field(clock, parts))

    dtypes = [part.dtype for part in state]
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    device = state[0].device
    clock_dtype = widest(device)
    clocks = [0.0, span] if nodes is None else [abs(node - start) for node in nodes]
    times = torch.tensor(clocks, dtype=clock_dtype, device=device)
    options = {} if method in FIXED_METHODS else {"norm": _worst_sample, "step_t": times[-1:], "dtype": clock_dtype}
    try:
        parts = torchdiffeq.odeint(
            forward,
            tuple(part.to(common) for part in state),
            times,
            rtol=rtol,
            atol=atol,
            method=method,
            options=options,
        )
    except AssertionError as error:  # raised when the step underflows or the state overflows
        raise FloatingPointError(f"{method} gave up ({error}); try looser tolerances") from None
    return tuple(part[-1].to(dtype) for part, dtype in zip(parts, dtypes, strict=True))
