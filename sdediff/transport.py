r"""Deterministic transport: data to latents and back along the probability-flow ODE.

``encode`` and ``decode`` cross one interval, ``[t_min, t_max]``, by one solver, so that each undoes the other up to
the solver's error (Song et al. 2021, section 4.3), or, by ``solver="reversible"``, to rounding. A solve that can be
undone leaves not one state but those of its last few nodes: from a state ``(B, *shape)`` both functions then go to
states ``(B, k, *shape)``, of which ``[:, 0]`` is the end itself, and from such states back to the one they came from.

Data are in their own units, latents in the model's coordinates (:mod:`sdediff.data.units`). The states that a solve
leaves at the data's end are turned all alike, the noisier ones too, so that encoding turns them back.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from sdediff.conditions import ConditionLike
from sdediff.data.levels import to_values
from sdediff.data.remarks import warn_of_levels
from sdediff.data.units import to_data, to_model
from sdediff.denoiser import Denoiser
from sdediff.numerics import check_options, expand, flatten
from sdediff.samplers import Sampler
from sdediff.samplers.base import Progress
from sdediff.samplers.reversible import Reversible, ReversibleBackward, ReversibleForward
from sdediff.sampling import GridLike, check_state, place, resolve, solve

DEFAULT_TOLERANCE = 1e-6


class Options(TypedDict, total=False):
    """What encoding and decoding hand on to :func:`~sdediff.sampling.solve`."""

    steps: int | None
    grid: GridLike | None
    rtol: float | None
    atol: float | None
    progress: Progress | None
    condition: ConditionLike
    differentiable: bool
    keep_mode: bool


def _transport(
    model: Denoiser, x: Tensor, solver: str | Sampler, ends: tuple[float, float], options: Options
) -> Tensor:
    check_options(options, Options)
    given = {key for key, value in options.items() if value is not None}
    if solver == "ode" and not given & {"steps", "grid", "rtol", "atol"}:
        options = {**options, "rtol": DEFAULT_TOLERANCE}
    sampler = resolve(solver, steps=options.get("steps"), rtol=options.get("rtol"), atol=options.get("atol"))
    if sampler.stochastic:
        raise ValueError(f"encoding and decoding need a deterministic solver; {solver!r} is stochastic")
    if isinstance(sampler, Reversible):
        return _reversibly(model, x, sampler, ends, options)
    return solve(model, x, solver, t_from=ends[0], t_to=ends[1], **options).x


def states_of(sampler: Sampler) -> int:
    """Return the number of consecutive states from which a solve can be undone exactly; 1 where it cannot be."""
    return sampler.states if isinstance(sampler, Reversible) else 1


def _reversibly(model: Denoiser, x: Tensor, method: Reversible, ends: tuple[float, float], options: Options) -> Tensor:
    """From a state to the last states of a solve, or from those back to the state."""
    check_state(x)
    undo = _are_states(model, x, method.states)
    # A solve is undone on its own nodes, to the last digit, not on those that a grid has in the other direction.
    start, end = reversed(ends) if undo else ends
    times = place(method, model, options.get("steps"), options.get("grid"), (start, end))
    if (float(times[-1]) - float(times[0])) * (ends[1] - ends[0]) < 0.0:
        times = times.flip(0)
    options = {**options, "grid": times}
    if undo:
        return solve(model, x.flatten(0, 1), ReversibleBackward(method), t_from=ends[0], t_to=ends[1], **options).x
    return solve(model, x, ReversibleForward(method), t_from=ends[0], t_to=ends[1], **options).x.reshape(
        len(x), method.states, *x.shape[1:]
    )


def _are_states(model: Denoiser, x: Tensor, count: int) -> bool:
    """Whether ``x`` is ``(B, count, *shape)``: by the shape of the model's items or, if it knows none, by ``count``."""
    if model.data is not None:
        return tuple(x.shape[1:]) == (count, *model.data.shape)
    return x.ndim > 2 and x.shape[1] == count


def encode(model: Denoiser, x: Tensor, solver: str | Sampler = "ode", **options: Unpack[Options]) -> Tensor:
    """Latents of data: the state at ``t_max`` reached from ``x`` at ``t_min``.

    Args:
        model: a denoiser with its process.
        x: data ``(B, *shape)``, floats in the units of the data or integer levels, which are taken at the centres of
            their bins; or the states that a decoding by ``"reversible"`` left.
        solver: a deterministic solver; ``"ode"`` with no further option is adaptive at 1e-6. ``"reversible"`` gives
            states ``(B, k, *shape)``, the latents and the k - 1 nodes before them, which :func:`decode` takes back to
            ``x`` to rounding, in as many forwards. A model that does not know the shape of its items takes any
            ``(B, k, *shape)`` for such states.
        **options: ``steps``, ``grid``, ``rtol``, ``atol``, ``progress``, ``condition``, ``differentiable`` and
            ``keep_mode`` of :func:`~sdediff.sampling.solve`.

    Raises:
        ValueError: for a stochastic solver, or as :func:`~sdediff.sampling.solve`.
    """
    return _transport(model, _as_values(model, x), solver, (model.sde.t_min, model.sde.t_max), options)


def _as_values(model: Denoiser, x: Tensor) -> Tensor:
    """Return data in the model's coordinates, levels as its values for them; warn of floats that are levels."""
    if model.data is None or not isinstance(x, Tensor) or x.is_complex():
        return x
    if model.data.levels is None:
        return to_model(x, model.data)
    warn_of_levels(x, model.data)
    return x if x.is_floating_point() else to_values(x, model.data, dtype=model.state_dtype)


def decode(model: Denoiser, z: Tensor, solver: str | Sampler = "ode", **options: Unpack[Options]) -> Tensor:
    """Data of latents, in the units of the data: the inverse of :func:`encode`, with the same options.

    By ``"reversible"``, states ``(B, k, *shape)`` give the data they came from, and are good for nothing else: what is
    done to one state but not to the others is amplified a hundredfold. Latents ``(B, *shape)``, as drawn, edited or
    ``z[:, 0]``, give states at the data's end, of which ``[:, 0]`` are the data; :func:`encode` takes them back.

    Raises:
        ValueError: for a stochastic solver, or as :func:`~sdediff.sampling.solve`.
    """
    return to_data(_transport(model, z, solver, (model.sde.t_max, model.sde.t_min), options), model.data)


def slerp(a: Tensor, b: Tensor, fraction: float | Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) between latents ``(B, *shape)``: 0 gives ``a``, 1 gives ``b``.

    Nearly parallel pairs are joined by a straight line, which is the limit.
    """
    u, v = flatten(a).double(), flatten(b).double()
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1)).clamp(min=1e-300)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    share = torch.as_tensor(fraction, dtype=torch.float64, device=a.device)
    straight = angle.sin().abs() < 1e-6
    safe = torch.where(straight, 1.0, angle)
    first = torch.where(straight, 1.0 - share, torch.sin((1.0 - share) * safe) / safe.sin())
    second = torch.where(straight, share, torch.sin(share * safe) / safe.sin())
    return expand(first, a) * a + expand(second, b) * b


def interpolate(
    model: Denoiser,
    x_a: Tensor,
    x_b: Tensor,
    points: int = 8,
    solver: str | Sampler = "ode",
    **options: Unpack[Options],
) -> Tensor:
    """Paths between data: both ends are encoded, joined on the sphere, and decoded.

    Args:
        model: a denoiser with its process.
        x_a: data ``(B, *shape)``, the starts; as for :func:`encode`.
        x_b: data ``(B, *shape)``, the ends.
        points: number of points of each path, both ends included, at least 2.
        solver: as in :func:`encode`.
        **options: as in :func:`encode`.

    Returns:
        ``(points, B, *shape)``, in the units of the data.

    Raises:
        ValueError: for fewer than two points, shapes that differ, or as :func:`encode`.
    """
    if points < 2:
        raise ValueError(f"interpolation needs at least 2 points, not {points}")
    if x_a.shape != x_b.shape:
        raise ValueError(f"both ends need one shape; came {tuple(x_a.shape)} and {tuple(x_b.shape)}")
    model = model.given(options.pop("condition", None))
    model.check_batch(len(x_a))
    pairs = torch.arange(len(x_a), device=x_a.device)
    both, all_points = model.rows(pairs.repeat(2)), model.rows(pairs.repeat(points))
    z = encode(both, torch.cat([x_a, x_b]), solver, **options)
    shape = (points, *x_a.shape)
    # Latents between others are new ones: of the states of a reversible solve the first is joined, and solved from.
    exact = z.shape[1:] != x_a.shape[1:]
    z_a, z_b = (z[:, 0] if exact else z).chunk(2)
    between = torch.cat([slerp(z_a, z_b, float(s)) for s in torch.linspace(0.0, 1.0, points, dtype=torch.float64)])
    path = decode(all_points, between, solver, **options)
    if not exact:
        return path.reshape(shape)
    ends = decode(both, z, solver, **options).reshape(2, *x_a.shape)
    return torch.cat([ends[:1], path[:, 0].reshape(shape)[1:-1], ends[1:]])
