r"""Likelihood as other packages compute it: one adaptive solve of the state and its log-density, one probe kept.

Each method takes the data for the state at ``t_min`` (noise of ``tan(theta) = 1e-3`` on the linear VP process), follows
the probability-flow ODE in the coordinates that are natural to it, watches the whole batch with one error norm, and
ends with the prior ``N(0, I)`` of its own frame:

* score_sde: x in t, written out after Song et al. (2021, eq. 39 and appendix D.2): ``solve_ivp`` RK45 at 1e-5 on
  the concatenated state; drift and divergence ask the network separately, so two forwards an evaluation.
* k-diffusion: ``log_likelihood`` of the installed package, ``x / alpha`` in sigma, dopri5.
* torchdiffeq: x in t as a pair with its log-density, dopri5; with one probe, or with the exact trace, whose 64 products
  are batched four by four (more spill the caches and are slower).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from sdediff import Denoiser, Level
from sdediff.dynamics import Frame

from .kdiffusion_peers import _load, _model

Score = Callable[[Denoiser, Tensor, Tensor], Tensor]
"""``(model, x, probe) -> log_prob``: ``(B, D)`` twice, to nats ``(B,)``."""
Divergence = Callable[[Tensor, Tensor], Tensor]
"""``(v, x) -> div v``, ``(B,)``, given the graph from x to v."""

_AT_ONCE = 4


class Method(NamedTuple):
    """A peer's way to a log-density.

    Attributes:
        name: package, method, tolerance.
        score: one run with one probe.
        probed: whether the probe matters, so that runs with others may be averaged.
    """

    name: str
    score: Score
    probed: bool = True


class Counter:
    """What a network is asked for, all items together.

    Attributes:
        forwards: states.
        products: vector-Jacobian products; ``K`` cotangents batched into one backward pass are K a state.
    """

    def __init__(self) -> None:
        self.forwards = self.products = 0

    def watch(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same network, counted."""

        def counted(x: Tensor, *conditions: Any) -> Tensor:
            self.forwards += len(x)
            output = network(x, *conditions)
            if output.requires_grad:
                output.register_hook(self._pulled)
            return output

        return counted

    def _pulled(self, cotangent: Tensor) -> None:
        # Cotangents that autograd batches arrive as one tensor that hides their number; a plain one gets a 1 here.
        self.products += len(torch._remove_batch_dim(cotangent, 1, 1, 0)) * len(cotangent)


def standard_normal(z: Tensor) -> Tensor:
    """Log-density, ``(B, D)`` to ``(B,)``."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)


def hutchinson(probe: Tensor) -> Divergence:
    def estimate(value: Tensor, x: Tensor) -> Tensor:
        (product,) = torch.autograd.grad((value * probe).sum(), x)
        return (product * probe).sum(dim=1)

    return estimate


def exact(value: Tensor, x: Tensor) -> Tensor:
    total = x.new_zeros(len(x))
    for rows in torch.eye(x.shape[1], dtype=x.dtype).split(_AT_ONCE):
        cotangents = rows[:, None, :].expand(-1, len(x), -1)
        (products,) = torch.autograd.grad(value, x, cotangents, retain_graph=True, is_grads_batched=True)
        total = total + torch.einsum("kbd,kd->b", products, rows)
    return total


def flow(model: Denoiser, x: Tensor, t: float) -> Tensor:
    """``dx / dt`` of the probability-flow ODE (Song et al. 2021, eq. 13)."""
    sde = model.sde
    (level,) = sde.levels([t])
    noise: Level[float] = level
    return sde.drift(x, t) + 0.5 * float(sde.diffusion(t)) ** 2 / noise.sigma * model(x, noise).eps


def score_sde(model: Denoiser, x: Tensor, probe: Tensor, *, tolerance: float) -> Tensor:
    """The method of score_sde: scipy integrates all items and their log-densities as one vector, in float64."""
    divergence = hutchinson(probe)

    def rates(t: float, flat: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(flat[: x.numel()]).reshape(x.shape).to(x)
        with torch.no_grad():
            drift = flow(model, state, t)
        leaf = state.clone().requires_grad_()
        change = divergence(flow(model, leaf, t), leaf)
        return np.concatenate([drift.reshape(-1).double().numpy(), change.double().numpy()])

    start = np.concatenate([x.reshape(-1).double().numpy(), np.zeros(len(x))])
    span = (model.sde.t_min, model.sde.t_max)
    end = torch.from_numpy(solve_ivp(rates, span, start, method="RK45", rtol=tolerance, atol=tolerance).y[:, -1])
    return standard_normal(end[: x.numel()].reshape(x.shape)) + end[x.numel() :]


def kdiffusion(model: Denoiser, x: Tensor, probe: Tensor, *, tolerance: float) -> Tensor:
    """The package's own function, its random signs replaced."""
    low, high = (float(level.sin / level.cos) for level in model.sde.levels([model.sde.t_min, model.sde.t_max]))

    def bits(*_: Any, **__: Any) -> Tensor:
        return (probe + 1.0) / 2.0

    with mock.patch.object(torch, "randint_like", bits):
        found, _ = _load().log_likelihood(_model(Frame(model, model.sde)), x, low, high, atol=tolerance, rtol=tolerance)
    return found.double()


def dopri5(model: Denoiser, x: Tensor, divergence: Divergence, *, tolerance: float) -> Tensor:
    def rates(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = state[0].detach().requires_grad_()
            value = flow(model, leaf, float(t))
            change = divergence(value, leaf)
        return value.detach(), change

    # The clock is float64 whatever the state: in float32 steps near t_min = 1e-5 underflow.
    span = torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64)
    # Without step_t the last step goes beyond t_max, where there is no process, and is interpolated back.
    options = {"step_t": span[-1:]}
    start = (x, x.new_zeros(len(x)))
    with torch.no_grad():
        z, change = odeint(rates, start, span, rtol=tolerance, atol=tolerance, method="dopri5", options=options)
    return standard_normal(z[-1].double()) + change[-1].double()


def _probed(model: Denoiser, x: Tensor, probe: Tensor, *, tolerance: float) -> Tensor:
    return dopri5(model, x, hutchinson(probe), tolerance=tolerance)


def _exact(model: Denoiser, x: Tensor, _probe: Tensor, *, tolerance: float) -> Tensor:
    return dopri5(model, x, exact, tolerance=tolerance)


def methods() -> list[Method]:
    """All of them, those with the exact trace last."""
    probed = {f"torchdiffeq dopri5 {tol:.0e}": partial(_probed, tolerance=tol) for tol in (1e-3, 1e-4, 1e-5)}
    traced = {f"torchdiffeq exact {tol:.0e}": partial(_exact, tolerance=tol) for tol in (1e-3, 1e-4, 1e-5)}
    return [
        Method("score_sde RK45 1e-05", partial(score_sde, tolerance=1e-5)),
        Method("k-diffusion 1e-05", partial(kdiffusion, tolerance=1e-5)),
        *(Method(name, score) for name, score in probed.items()),
        *(Method(name, score, probed=False) for name, score in traced.items()),
    ]
