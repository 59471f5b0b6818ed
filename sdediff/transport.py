r"""Deterministic transport: data to latents and back along the probability-flow ODE.

``encode`` and ``decode`` cross one interval, ``[t_min, t_max]``, by one solver, so that each undoes the other up to
the solver's error (Song et al. 2021, section 4.3), or, by ``solver="reversible"``, to rounding. A reversible
solve returns the states of its last k nodes rather than one: from a state ``(B, *shape)`` both functions then give
states ``(B, k, *shape)``, of which ``[:, 0]`` is the last, and from such states the one state that they came from.

Data are in their own units, latents in the model's coordinates (:mod:`sdediff.data.units`). All k states at the data's
end are converted to the data's units, the noisier ones too, so that encoding converts them back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from sdediff.data.levels import to_values
from sdediff.data.remarks import warn_of_levels
from sdediff.data.units import to_data, to_model
from sdediff.denoiser import Denoiser, check_denoiser
from sdediff.numerics import expand, flatten, wide
from sdediff.options import SolveOptions, StepOptions, check_count, check_options, subset
from sdediff.samplers import Sampler
from sdediff.samplers.reversible import Reversible, ReversibleBackward, ReversibleForward
from sdediff.sampling import check_state, node_times, resolve, solve, told, untold
from sdediff.staged import Staged

DEFAULT_TOLERANCE = 1e-6


def _transport(
    model: Denoiser, x: Tensor, solver: str | Sampler, interval: tuple[float, float], options: SolveOptions
) -> Tensor:
    check_options(options, SolveOptions)
    if solver == "ode" and all(value is None for value in subset(options, StepOptions).values()):
        options = {**options, "rtol": DEFAULT_TOLERANCE}
    sampler = resolve(solver, **subset({**options, "grid": None}, StepOptions))
    if sampler.stochastic:
        raise ValueError(f"encoding and decoding need a deterministic solver; {solver!r} is stochastic")
    if isinstance(sampler, Reversible):
        return _transport_reversibly(model, x, sampler, interval, options)
    return solve(model, x, solver, t_from=interval[0], t_to=interval[1], **options).x


def states_of(sampler: Sampler) -> int:
    """Return the number of consecutive states that a solver needs to be reversed exactly; 1 where it cannot be."""
    return sampler.states if isinstance(sampler, Reversible) else 1


def _transport_reversibly(
    model: Denoiser, x: Tensor, method: Reversible, interval: tuple[float, float], options: SolveOptions
) -> Tensor:
    """Return the last states of a solve from a state, or the state from such states."""
    check_state(x)
    undo = _are_states(model, x, method.states)
    # A solve is reversed on its own nodes, to the last digit, not on those of the grid in the other direction.
    start, end = reversed(interval) if undo else interval
    times = node_times(method, model, options.get("steps"), options.get("grid"), (start, end))
    if (float(times[-1]) - float(times[0])) * (interval[1] - interval[0]) < 0.0:
        times = times.flip(0)
    options = {**options, "grid": times}
    if undo:
        return solve(
            model, x.flatten(0, 1), ReversibleBackward(method), t_from=interval[0], t_to=interval[1], **options
        ).x
    return solve(model, x, ReversibleForward(method), t_from=interval[0], t_to=interval[1], **options).x.reshape(
        len(x), method.states, *x.shape[1:]
    )


def _are_states(model: Denoiser, x: Tensor, count: int) -> bool:
    """Return whether ``x`` is ``(B, count, *shape)``, by the shape of the model's items or else by ``count``."""
    if model.data is not None:
        return tuple(x.shape[1:]) == (count, *model.data.shape)
    return x.ndim > 2 and x.shape[1] == count


def encode(
    model: Denoiser | Staged, x: Tensor, solver: str | Sampler = "ode", **options: Unpack[SolveOptions]
) -> Tensor:
    """Encode data as latents: the state at ``t_max`` reached from ``x`` at ``t_min``.

    Args:
        model: a denoiser with its process, or a model in two stages (:mod:`sdediff.latent`): its codes are encoded.
        x: data ``(B, *shape)``, floats in the units of the data or integer levels, which are taken at the centres of
            their bins; or the states ``(B, k, *shape)`` of a decoding by ``"reversible"``.
        solver: a deterministic solver; ``"ode"`` with no options of its steps is adaptive at 1e-6. ``"reversible"``
            gives states ``(B, k, *shape)``, the latents and the k - 1 nodes before them, from which :func:`decode`
            recovers ``x`` to rounding, in as many forwards. A model that does not know the shape of its items takes
            any ``(B, k, *shape)`` for such states.
        **options: ``steps``, ``grid``, ``rtol``, ``atol``, ``progress``, ``condition``, ``execution``, ``guidance``,
            ``null``, ``guidance_interval``, ``differentiable`` and ``keep_mode``, see
            :class:`~sdediff.options.SolveOptions`.

    Raises:
        ValueError: for a stochastic solver, or as :func:`~sdediff.sampling.solve`.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.encode(model, torch.tensor([[2.0, 0.0]])).round(decimals=2)  # the mean goes to the mean
    tensor([[0.0100, 0.0000]])
    """
    if isinstance(model, Staged):
        return encode(model.prior, model.to_codes(x), solver, **options)
    check_denoiser(model)
    return _transport(model, _as_values(model, x), solver, (model.sde.t_min, model.sde.t_max), options)


def _as_values(model: Denoiser, x: Tensor) -> Tensor:
    """Return data in the model's coordinates, levels at their values; warn of floats that are levels."""
    if model.data is None or not isinstance(x, Tensor) or x.is_complex():
        return x
    if model.data.levels is None:
        return to_model(x, model.data)
    warn_of_levels(x, model.data)
    return x if x.is_floating_point() else to_values(x, model.data, dtype=model.state_dtype)


def decode(
    model: Denoiser | Staged, z: Tensor, solver: str | Sampler = "ode", **options: Unpack[SolveOptions]
) -> Tensor:
    """Decode latents to data in their units: the inverse of :func:`encode`, with the same options.

    By ``"reversible"``, states ``(B, k, *shape)`` give the data they came from, and have no other use: a change of one
    state alone is amplified a hundredfold. Latents ``(B, *shape)``, as drawn, edited or ``z[:, 0]``, give states at the
    data's end, of which ``[:, 0]`` are the data; :func:`encode` inverts them.

    Raises:
        ValueError: for a stochastic solver, or as :func:`~sdediff.sampling.solve`.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> x = torch.tensor([[2.5, 0.5]])
    >>> torch.allclose(sdediff.decode(model, sdediff.encode(model, x)), x, atol=1e-4)
    True
    """
    if isinstance(model, Staged):
        return model.decoded(decode(model.prior, z, solver, **options))
    check_denoiser(model)
    return to_data(_transport(model, z, solver, (model.sde.t_max, model.sde.t_min), options), model.data)


def slerp(a: Tensor, b: Tensor, fraction: float | Tensor) -> Tensor:
    """Interpolate on the sphere (Shoemake 1985) between latents ``(B, *shape)``: 0 gives ``a``, 1 gives ``b``.

    Nearly parallel pairs are interpolated linearly, the limit.
    """
    u, v = wide(flatten(a)), wide(flatten(b))
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1)).clamp(min=torch.finfo(u.dtype).tiny)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    share = torch.as_tensor(fraction, dtype=u.dtype, device=u.device)
    straight = angle.sin().abs() < 1e-6
    safe = torch.where(straight, 1.0, angle)
    first = torch.where(straight, 1.0 - share, torch.sin((1.0 - share) * safe) / safe.sin())
    second = torch.where(straight, share, torch.sin(share * safe) / safe.sin())
    return expand(first, a) * a + expand(second, b) * b


def interpolate(
    model: Denoiser | Staged,
    x_a: Tensor,
    x_b: Tensor,
    points: int = 8,
    solver: str | Sampler = "ode",
    **options: Unpack[SolveOptions],
) -> Tensor:
    """Interpolate between data: both are encoded, interpolated on the sphere, and decoded.

    Args:
        model: a denoiser with its process.
        x_a: first data of each pair, ``(B, *shape)``, as for :func:`encode`.
        x_b: last data of each pair, ``(B, *shape)``.
        points: number of points of each path, both data included, at least 2.
        solver: solver as of :func:`encode`.
        **options: options as of :func:`encode`.

    Returns:
        ``(points, B, *shape)``, in the units of the data.

    Raises:
        ValueError: for fewer than two points, shapes that differ, or as :func:`encode`.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.interpolate(model, torch.tensor([[1.5, 0.5]]), torch.tensor([[2.5, 0.5]]), points=3, steps=10).shape
    torch.Size([3, 1, 2])
    """
    check_count("points", points)
    if points < 2:
        raise ValueError(f"interpolation needs at least 2 points, not {points}")
    if x_a.shape != x_b.shape:
        raise ValueError(f"both ends need one shape; came {tuple(x_a.shape)} and {tuple(x_b.shape)}")
    if isinstance(model, Staged):
        codes = interpolate(model.prior, model.to_codes(x_a), model.to_codes(x_b), points, solver, **options)
        return model.decoded(codes.flatten(0, 1)).reshape(points, *x_a.shape)
    check_denoiser(model)
    model = told(model, options)
    options = untold(options)
    model.check_batch(len(x_a))
    pairs = torch.arange(len(x_a), device=x_a.device)
    both, all_points = model.rows(pairs.repeat(2)), model.rows(pairs.repeat(points))
    z = encode(both, torch.cat([x_a, x_b]), solver, **options)
    shape = (points, *x_a.shape)
    # Interpolated latents have no history: only the first of the states of a reversible solve is interpolated.
    exact = z.shape[1:] != x_a.shape[1:]
    z_a, z_b = (z[:, 0] if exact else z).chunk(2)
    between = torch.cat([slerp(z_a, z_b, float(s)) for s in torch.linspace(0.0, 1.0, points, dtype=torch.float64)])
    path = decode(all_points, between, solver, **options)
    if not exact:
        return path.reshape(shape)
    data = decode(both, z, solver, **options).reshape(2, *x_a.shape)
    return torch.cat([data[:1], path[:, 0].reshape(shape)[1:-1], data[1:]])
