r"""The path of an item through the flow, and the divergence at its nodes.

A multistep solver asks the network once at every node. The same forward gives the divergence there: the trajectory does
not depend on the probes, so the log-determinant is a quadrature along a known path, with probes of its own at every
node. In the coordinates u of :class:`~sdediff.gaussian.Whitened`, in which the data's own Gaussian does not move,

    log p(u_0) = log p(u_N) + integral of div (du/dphi) dphi

and what is integrated is zero for Gaussian data.

What the two ends of a path add to the error is estimated from the divergence there, without another forward: with
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
from sdediff.likelihood.flow.divergence import Field
from sdediff.likelihood.flow.trace import End, NodeDivergence, Quadrature, Trace
from sdediff.noise import NoiseSource
from sdediff.numerics import all_finite, flatten, wide
from sdediff.samplers.base import Progress, StepSampler, take_steps
from sdediff.types import Level, Split

_CHANCE = 1.25  # of the terms of a defect, in units of their number: measured on exact problems


class DivergenceRecorder(Frame):
    """A denoiser that takes down what a solver saw at its nodes, and how the divergence stood there."""

    def __init__(self, model: Denoiser, trace: Trace) -> None:
        super().__init__(model, model.sde)
        self.trace = trace
        self.states: list[Tensor] = []
        self.velocities: list[Tensor] = []
        self.seen: list[NodeDivergence] = []

    def field(self, level: Level[float]) -> Field:
        """Return the velocity on the angle at a level, as a function of states of the frame and whose they are."""

        def velocities(y: Tensor, rows: Rows | None = None) -> Tensor:
            denoise = self.denoise if rows is None else self.denoise.rows(rows)
            # Gradients ask again, when the call that put the network into evaluation mode is over.
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
        slope, seen = self.trace.look(self.field(level), y, node)
        if not all_finite(slope):
            raise FloatingPointError(f"the model's output is not finite at t = {level.t:g}")
        self.states.append(y)
        self.velocities.append(slope)
        self.seen.append(seen)
        return split_of(slope, y, level)

    def end(self, node: int) -> End:
        """Return what was seen at a node, for what it tells of an end of the path."""
        y, level, white = self.states[node], self.trace.levels[node], self.trace.white
        noise = white.turn(flatten(split_of(self.velocities[node], y, level).eps))
        return End(level, white, y, noise, self.seen[node])


def divergence_at_ends(model: Denoiser, first: Tensor, last: Tensor, trace: Trace) -> tuple[End, End]:
    """Look at the states of the frame at both ends of a path, by a trace placed on these two; a forward each."""
    witness, (start, end) = DivergenceRecorder(model, trace), trace.levels
    witness(first, start)
    witness(last, end)
    return witness.end(0), witness.end(1)


def split_of(slope: Tensor, y: Tensor, level: Level[float]) -> Split:
    """The halves of a state ``y`` of the frame, by the velocity there."""
    return Split.linear(y, slope, (level.cos, -level.sin), (level.sin, level.cos))


@dataclass(frozen=True, eq=False)
class Path:
    """A solve from the first to the last level, and what was seen at its nodes.

    Attributes:
        witness: who saw it.
        rule: the quadrature over the nodes.
        y: the last state of the frame, ``(B, *shape)``.
        states: u at the nodes, ``(N + 1, B, D)``.
        slopes: ``du / d phi`` there, ``(N + 1, B, D)``.
        noise: the noise halves there, in the axes of u, ``(N + 1, B, D)``.
    """

    witness: DivergenceRecorder
    rule: Quadrature
    y: Tensor
    states: Tensor
    slopes: Tensor
    noise: Tensor

    @property
    def levels(self) -> Sequence[Level[float]]:
        """Of the nodes, N + 1."""
        return self.witness.trace.levels

    @property
    def white(self) -> Whitened:
        """The coordinates u."""
        return self.witness.trace.white

    @property
    def seen(self) -> Sequence[NodeDivergence]:
        """Of the divergence, one a node."""
        return self.witness.seen

    def end(self, node: int) -> End:
        """Return what was seen at the first node, 0, or at the last, -1."""
        return self.witness.end(node)

    def gaussian(self) -> float:
        """What the data's own Gaussian adds to the log-determinant, nats."""
        start, end = (self.white.at(level).rho.log() for level in (self.levels[0], self.levels[-1]))
        return float((end - start).sum()) * (self.states.shape[2] // len(start))

    def log_determinant(self) -> Tensor:
        """``log p(y_0) - log p(y_N)`` in the frame, nats ``(B,)``, along the path, by the divergences seen."""
        return self._residual() + self.gaussian()

    def _residual(self) -> Tensor:
        """What the Gaussian leaves of the log-determinant, ``(B,)``."""
        return torch.stack([seen.share for seen in self.seen]).sum(dim=0)

    def missed_between_nodes(self) -> Tensor:
        """What the quadrature misses, nats ``(B,)``.

        Every second node gives the integral less well, and every fourth one still less: the differences d and d' of the
        three go on like a geometric series, ``d r / (1 - r)`` with ``r = d / d'``, if they do so at all; at most d is
        stated, and at least a quarter of it: a small d may be chance. Random probes make noise of r: theirs is d
        itself, with its sign, to be averaged over items.
        """
        coarse = torch.stack([seen.coarse for seen in self.seen]).sum(dim=0)
        near, far = self._residual() - coarse[0], coarse[0] - coarse[1]
        if self.seen[0].probes.shape[1]:
            return near
        ratio = near.abs() / far.abs().clamp(min=torch.finfo(far.dtype).tiny)
        rest = (ratio / (1.0 - ratio).clamp(min=1e-3)).clamp(min=0.25, max=1.0)
        return rest * near.abs()

    def standard_error(self) -> Tensor:
        """Of the probes' part in :meth:`log_determinant`, nats ``(B,)``; 0 for the exact trace."""
        return self.witness.trace.standard_error(self.seen)

    def defect(self) -> Tensor:
        """What the misses of the steps are worth, nats ``(B,)``: the estimated size of the solver's error.

        Along any curve, ``d log p(u) = (-div v + (u' - v) . score) d phi``; a curve that is no solution has the second
        term, too. To first order it needs no forward: every step is compared with the quadrature over its neighbours on
        both sides, and the score is the network's. The terms of a path cancel so far that what is left has the size of
        the error (a factor of 1 to 3 on exact problems), but not its sign. They may cancel by chance where there are
        few: a share of about ``1 / N`` of their root sum of squares is added.
        """
        terms = self.defects()
        return terms.sum(dim=0).abs() + _CHANCE / len(terms) * terms.square().sum(dim=0).sqrt()

    def defects(self) -> Tensor:
        """Return what the miss of each step adds to the log-density, nats ``(N, B)``."""
        miss = self.rule.increments(self.slopes) - (self.states[1:] - self.states[:-1])
        spots = [self.white.at(level) for level in self.levels]
        scores = [-noise * (spot.rho / spot.sin).to(noise) for noise, spot in zip(self.noise, spots, strict=True)]
        score = torch.stack([0.5 * (a + b) for a, b in pairwise(scores)])
        return wide(miss * score).sum(dim=2)


def asks_once_a_node(method: object) -> TypeIs[StepSampler]:
    """Whether a method's solve is one path, of which a network that is asked once at every node sees everything."""
    return isinstance(method, StepSampler) and not method.stochastic and method.evaluations == 1


def follow(
    model: Denoiser,
    x: Tensor,
    sampler: StepSampler,
    trace: Trace,
    source: NoiseSource,
    progress: Progress | None = None,
) -> Path:
    """Solve from the state ``x`` at the first level of a trace placed on its nodes to the last, and look at each."""
    white, levels, witness = trace.white, list(trace.levels), DivergenceRecorder(model, trace)
    y, _, _ = take_steps(sampler, witness, x, levels, source, False, progress)
    witness(y, levels[-1])
    states, slopes, noise = [], [], []
    with torch.no_grad():  # they tell of errors, which have no gradients
        for y_node, slope, level in zip(witness.states, witness.velocities, levels, strict=True):
            spot = white.at(level)
            split, u = split_of(slope, y_node, level), white.into(y_node, spot)
            states.append(u)
            slopes.append(white.slope(split, u, spot))
            noise.append(white.turn(flatten(split.eps)))
    return Path(witness, Quadrature.of(levels, white), y, torch.stack(states), torch.stack(slopes), torch.stack(noise))


WIDEST = 0.999
"""Largest share of the blur in the variance along a direction that is told from all of it."""


def blur_effect(first: End) -> Tensor:
    r"""Return ``log p`` of the data with the noise of the first level less ``log p`` without it, nats ``(B,)``.

    With ``tau = sigma / alpha`` the density obeys the heat equation, ``d log p / d tau^2 = (div s + |s|^2) / 2`` in the
    data's units: to first order the effect is ``tau^2`` times that. Where the blur is not small beside the data it is
    taken to be a Gaussian's, ``1/2 log det(I - S) + tau^2/2 s . (I - S)^{-1} s`` with ``S = -tau^2 ds/dx``, whose
    eigenvalues are the blur's share of the variance along each direction. Known of S are its trace and that of its
    square: ``tr S / kappa`` directions count as having the share ``kappa = tr S^2 / tr S`` each, the others none. That
    is exact for Gaussians equally narrow along some directions; of unequal ones it states too little.
    """
    trace, share = _blur(first)
    log_det = torch.where(share > 0.0, torch.log1p(-share) / share.clamp(min=1e-300), -1.0)
    squared = wide(first.noise).square().sum(dim=1)  # tau^2 |s|^2, s = -cos eps / sin in the data's units
    return 0.5 * (trace * log_det + squared / (1.0 - share))


def blur_share(first: End) -> Tensor:
    """Return the blur's share of the variance along the directions that it blurs, 0 to ``WIDEST``, ``(B,)``."""
    return _blur(first)[1]


def _blur(first: End) -> tuple[Tensor, Tensor]:
    """The trace of S, and the share of the directions that count; 0 where there is no telling."""
    cos, sin, dim = first.level.cos, first.level.sin, first.noise.shape[1]
    trace = sin * (dim * sin + cos * first.seen.trace)
    square = sin**2 * (dim * sin**2 + 2.0 * sin * cos * first.seen.trace + cos**2 * first.seen.square)
    square = square.clamp(min=0.0)
    share = square / trace.clamp(min=torch.finfo(trace.dtype).tiny)
    # no direction's share exceeds the root of the square's trace
    return trace, torch.where(trace > 0.0, torch.minimum(share, square.sqrt()).clamp(max=WIDEST), 0.0)


def prior_effect(last: End, moments: Moments | None) -> Tensor:
    """Return how much the model's own law at the last level exceeds the prior's, ``log p - log prior``, nats ``(B,)``.

    The difference has the gradient ``m = s - s_prior``; ``m . (y - mean) - div m`` is the difference itself where it is
    linear, as that of a mean, and twice it where it is quadratic, as that of a covariance.
    """
    level, white = last.level, last.white
    score = -wide(last.noise) / level.sin
    if moments is None:
        offset = wide(white.turn(flatten(last.y)))
        variances = torch.full_like(offset[0], level.sin**2)
    else:
        rho = white.at(level).rho.to(score).expand(score.shape[1])
        offset, variances = wide(white.into(last.y, white.at(level))) * rho, rho.square()
    variances = variances.to(score)
    mismatch = score + offset / variances
    divergence = -(score.shape[1] * level.sin + level.cos * last.seen.trace) / level.sin
    return (mismatch * offset).sum(dim=1) - (divergence + (1.0 / variances).sum())
