r"""The path of an item through the flow, and the divergence at its nodes.

A multistep solver evaluates the network once at every node. The same forward gives the divergence there: the trajectory
does not depend on the probes, so the log-determinant is a quadrature along a given path, with probes of its own at
every node. In the coordinates u of :class:`~sdediff.gaussian.Whitened`, in which the data's own Gaussian does not move,

    log p(u_0) = log p(u_N) + integral of div (du/dphi) dphi

and the integrand is zero for Gaussian data.

The errors that the two ends of a path add are estimated from the divergence there, without another forward: with
``s = -eps / sin`` the score the model states in the frame, its Jacobian is ``-(sin I + cos J) / sin``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from typing_extensions import TypeIs

from sdediff.conditions import Rows
from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x, velocity
from sdediff.foreign import evaluating
from sdediff.gaussian import Moments, Whitened
from sdediff.likelihood.flow.divergence import VectorField
from sdediff.likelihood.flow.trace import NodeDivergence, PathEnd, Quadrature, Trace
from sdediff.noise import NoiseSource
from sdediff.numerics import all_finite, flatten, wide
from sdediff.samplers.base import Progress, StepSampler, take_steps
from sdediff.types import Level, Split

_CANCELLATION = 1.25  # share of the terms of a defect that may cancel by chance, times their number: measured


class DivergenceRecorder(Frame):
    """A denoiser that records the states, velocities and divergences at a solver's nodes."""

    def __init__(self, model: Denoiser, trace: Trace) -> None:
        super().__init__(model, model.sde)
        self.trace = trace
        self.states: list[Tensor] = []
        self.velocities: list[Tensor] = []
        self.divergences: list[NodeDivergence] = []

    def field(self, level: Level[float]) -> VectorField:
        """Return the velocity on the angle at a level, as a function of states of the frame and their rows."""

        def velocities(y: Tensor, rows: Rows | None = None) -> Tensor:
            denoise = self.denoise if rows is None else self.denoise.rows(rows)
            # Gradients evaluate it again, when the call that put the network into evaluation mode is over.
            with evaluating(denoise) if self.trace.parameters is not None else nullcontext():
                return velocity(denoise(to_x(y, level), level), level)

        return velocities

    def __call__(self, y: Tensor, level: Level, rows: Rows | None = None) -> Split:
        """Split the state ``y`` at the next node."""
        node, levels = len(self.states), self.trace.levels
        if node == len(levels) or level != levels[node] or rows is not None:
            raise ValueError(
                "the likelihood needs a solver that asks the network once at every node, and only there: let the "
                "solver say how often it asks, or take another, for example 'ode' or, with rtol, 'adaptive'"
            )

        self.nfe += self.denoise.nfe(level)
        slope, divergence = self.trace.evaluate(self.field(level), y, node)
        if not all_finite(slope):
            raise FloatingPointError(f"the model's output is not finite at t = {level.t:g}")
        self.states.append(y)
        self.velocities.append(slope)
        self.divergences.append(divergence)
        return split_of(slope, y, level)

    def end(self, node: int) -> PathEnd:
        """Return the record of a node at an end of the path."""
        y, level, whitened = self.states[node], self.trace.levels[node], self.trace.whitened
        noise = whitened.rotate(flatten(split_of(self.velocities[node], y, level).eps))
        return PathEnd(level, whitened, y, noise, self.divergences[node])


def divergence_at_ends(model: Denoiser, first: Tensor, last: Tensor, trace: Trace) -> tuple[PathEnd, PathEnd]:
    """Evaluate both ends of a path, given their states of the frame and a trace at these two nodes; a forward each."""
    recorder, (start, end) = DivergenceRecorder(model, trace), trace.levels
    recorder(first, start)
    recorder(last, end)
    return recorder.end(0), recorder.end(1)


def split_of(slope: Tensor, y: Tensor, level: Level[float]) -> Split:
    """Return the split of a state ``y`` of the frame, by the velocity there."""
    return Split.linear(y, slope, (level.cos, -level.sin), (level.sin, level.cos))


@dataclass(frozen=True, eq=False)
class Path:
    """A solve from the first to the last level, with the divergence at its nodes.

    Attributes:
        recorder: denoiser that recorded the path.
        rule: quadrature over the nodes.
        y: last state of the frame, ``(B, *shape)``.
        states: coordinates u at the nodes, ``(N + 1, B, D)``.
        slopes: velocities ``du / d phi`` there, ``(N + 1, B, D)``.
        noise: noise halves there, in the axes of u, ``(N + 1, B, D)``.
    """

    recorder: DivergenceRecorder
    rule: Quadrature
    y: Tensor
    states: Tensor
    slopes: Tensor
    noise: Tensor

    @property
    def levels(self) -> Sequence[Level[float]]:
        """Levels of the N + 1 nodes."""
        return self.recorder.trace.levels

    @property
    def whitened(self) -> Whitened:
        """Coordinates u of the data's own Gaussian."""
        return self.recorder.trace.whitened

    @property
    def divergences(self) -> Sequence[NodeDivergence]:
        """Divergences at the N + 1 nodes."""
        return self.recorder.divergences

    def end(self, node: int) -> PathEnd:
        """Return the record of the first node, 0, or the last, -1."""
        return self.recorder.end(node)

    def gaussian(self) -> float:
        """Return the part of the data's own Gaussian in the log-determinant, nats."""
        start, end = (self.whitened.at(level).rho.log() for level in (self.levels[0], self.levels[-1]))
        return float((end - start).sum()) * (self.states.shape[2] // len(start))

    def log_determinant(self) -> Tensor:
        """Return ``log p(y_0) - log p(y_N)`` in the frame, nats ``(B,)``, by the divergences along the path."""
        return self._residual() + self.gaussian()

    def _residual(self) -> Tensor:
        """Return the log-determinant without the Gaussian's part, ``(B,)``."""
        return torch.stack([divergence.share for divergence in self.divergences]).sum(dim=0)

    def quadrature_error(self) -> Tensor:
        """Return the estimated error of the quadrature, nats ``(B,)``.

        The integrals by every second and by every fourth node are less accurate: the differences d and d' of the three
        are continued as a geometric series, ``d r / (1 - r)`` with ``r = d / d'``; at most d is stated, and at least a
        quarter of it: a small d may be chance. With random probes r is noise: the estimate is d itself, with its sign,
        to be averaged over items.
        """
        coarse = torch.stack([divergence.coarse for divergence in self.divergences]).sum(dim=0)
        near, far = self._residual() - coarse[0], coarse[0] - coarse[1]
        if self.divergences[0].probes.shape[1]:
            return near
        ratio = near.abs() / far.abs().clamp(min=torch.finfo(far.dtype).tiny)
        rest = (ratio / (1.0 - ratio).clamp(min=1e-3)).clamp(min=0.25, max=1.0)
        return rest * near.abs()

    def standard_error(self) -> Tensor:
        """Return the probes' standard error of :meth:`log_determinant`, nats ``(B,)``; 0 for the exact trace."""
        return self.recorder.trace.standard_error(self.divergences)

    def defect(self) -> Tensor:
        """Return the estimated size of the solver's error, nats ``(B,)``.

        Along any curve, ``d log p(u) = (-div v + (u' - v) . score) d phi``; the second term is 0 for a solution only.
        To first order it needs no forward: every step is compared with the quadrature over its neighbours on both
        sides, and the score is the network's. The terms of a path cancel so far that their sum has the size of the
        error (a factor of 1 to 3 on exact problems), but not its sign. They may cancel by chance where there are few: a
        share of about ``1 / N`` of their root sum of squares is added.
        """
        terms = self.defects()
        return terms.sum(dim=0).abs() + _CANCELLATION / len(terms) * terms.square().sum(dim=0).sqrt()

    def defects(self) -> Tensor:
        """Return the effect of each step's defect on the log-density, nats ``(N, B)``."""
        defects = self.rule.increments(self.slopes).sub_(self.states[1:]).add_(self.states[:-1])
        gaussians = [self.whitened.at(level) for level in self.levels]
        scores = [-noise * (own.rho / own.sin).to(noise) for noise, own in zip(self.noise, gaussians, strict=True)]
        return torch.stack(
            [wide(e * (a + b)).sum(dim=1) for e, (a, b) in zip(defects, pairwise(scores), strict=True)]
        ).mul_(0.5)


def evaluates_once_per_node(method: object) -> TypeIs[StepSampler]:
    """Tell whether a method solves one deterministic path with one evaluation of the network a node."""
    return isinstance(method, StepSampler) and not method.stochastic and method.evaluations == 1


def solve_path(
    model: Denoiser,
    x: Tensor,
    sampler: StepSampler,
    trace: Trace,
    source: NoiseSource,
    progress: Progress | None = None,
) -> Path:
    """Solve from the state ``x`` at the first node of a trace to its last node, with the divergence at each."""
    whitened, levels, recorder = trace.whitened, list(trace.levels), DivergenceRecorder(model, trace)
    y, _, _ = take_steps(sampler, recorder, x, levels, source, False, progress)
    recorder(y, levels[-1])
    states, slopes, noise = [], [], []
    with torch.no_grad():  # for the error estimates, which have no gradients
        for y_node, slope, level in zip(recorder.states, recorder.velocities, levels, strict=True):
            gaussian = whitened.at(level)
            split, u = split_of(slope, y_node, level), whitened.whiten(y_node, gaussian)
            states.append(u)
            slopes.append(whitened.slope(split, u, gaussian))
            noise.append(whitened.rotate(flatten(split.eps)))
    return Path(
        recorder, Quadrature.of(levels, whitened), y, torch.stack(states), torch.stack(slopes), torch.stack(noise)
    )


MAX_BLUR_SHARE = 0.999
"""Largest share of the blur in the variance along a direction; larger shares are set to it."""


def blur_effect(first: PathEnd) -> Tensor:
    r"""Return ``log p`` of the data with the noise of the first level less ``log p`` without it, nats ``(B,)``.

    With ``tau = sigma / alpha`` the density obeys the heat equation, ``d log p / d tau^2 = (div s + |s|^2) / 2`` in the
    data's units: to first order the effect is ``tau^2`` times that. Where the blur is not small beside the data the
    effect on a Gaussian is taken, ``1/2 log det(I - S) + tau^2/2 s . (I - S)^{-1} s`` with ``S = -tau^2 ds/dx``, whose
    eigenvalues are the blur's share of the variance along each direction. S is given by its trace and that of its
    square: ``tr S / kappa`` directions have the share ``kappa = tr S^2 / tr S`` each, the others none. That is exact
    for Gaussians equally narrow along some directions; for unequal ones it is too small.
    """
    trace, share = _blur(first)
    log_det = torch.where(share > 0.0, torch.log1p(-share) / share.clamp(min=1e-300), -1.0)
    squared = wide(first.noise).square().sum(dim=1)  # tau^2 |s|^2, s = -cos eps / sin in the data's units
    return 0.5 * (trace * log_det + squared / (1.0 - share))


def blur_share(first: PathEnd) -> Tensor:
    """Return the blur's share of the variance along the narrow directions, 0 to ``MAX_BLUR_SHARE``, ``(B,)``."""
    return _blur(first)[1]


def _blur(first: PathEnd) -> tuple[Tensor, Tensor]:
    """Return the trace of S and the share kappa, 0 where it is undetermined."""
    cos, sin, dim = first.level.cos, first.level.sin, first.noise.shape[1]
    of_j = first.divergence
    trace = sin * (dim * sin + cos * of_j.trace)
    square = sin**2 * (dim * sin**2 + 2.0 * sin * cos * of_j.trace + cos**2 * of_j.square)
    square = square.clamp(min=0.0)
    share = square / trace.clamp(min=torch.finfo(trace.dtype).tiny)
    # no direction's share exceeds the root of the square's trace
    return trace, torch.where(trace > 0.0, torch.minimum(share, square.sqrt()).clamp(max=MAX_BLUR_SHARE), 0.0)


def prior_effect(last: PathEnd, moments: Moments | None) -> Tensor:
    """Return ``log p - log prior`` of the model's own distribution at the last level, nats ``(B,)``.

    The difference has the gradient ``m = s - s_prior``; ``m . (y - mean) - div m`` is the difference itself where it is
    linear, as that of a mean, and twice it where it is quadratic, as that of a covariance.
    """
    level, whitened = last.level, last.whitened
    score = -wide(last.noise) / level.sin
    if moments is None:
        offset = wide(whitened.rotate(flatten(last.y)))
        variances = torch.full_like(offset[0], level.sin**2)
    else:
        rho = whitened.at(level).rho.to(score).expand(score.shape[1])
        offset, variances = wide(whitened.whiten(last.y, whitened.at(level))) * rho, rho.square()
    variances = variances.to(score)
    mismatch = score + offset / variances
    divergence = -(score.shape[1] * level.sin + level.cos * last.divergence.trace) / level.sin
    return (mismatch * offset).sum(dim=1) - (divergence + (1.0 / variances).sum())
