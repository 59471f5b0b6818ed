r"""The configuration of a diffusers scheduler as a process, a sampler and a grid.

Its table of ``alpha-bar`` (float32, as the network saw it in training) is the chain: timestep k is the instant
``t = (k + 1) / N``. The other settings concern sampling: the timesteps visited, the noise of a step, the clipping of
the clean half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.documents import Finite, Positive, reason, validated
from sdediff.interop.network import SCHEDULER, DiffusersNetwork, construct, diffusers_class
from sdediff.numerics import choose
from sdediff.samplers.ancestral import Ancestral
from sdediff.samplers.base import Sampler
from sdediff.samplers.ddim import DDIM
from sdediff.score_model import ScoreModel
from sdediff.sde import DDPM
from sdediff.wrappers import Clip, Threshold

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
VARIANCE_TYPES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "marginal",
    "fixed_large_log": "marginal",
    "learned_range": "learned",
    "learned": "posterior",
}
"""Variances of :class:`~sdediff.samplers.ancestral.Ancestral` by diffusers' names. "learned" predicts the variance
itself, without bounds, and is not used."""

_LONGEST_CHAIN = 100_000  # steps
_STAND_IN = 2.0**-24  # alpha-bar that some schedulers write in place of 0


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


class SchedulerSettings(BaseModel):
    """Settings of a scheduler that are validated here; others are left to the scheduler."""

    model_config = ConfigDict(extra="allow")

    num_train_timesteps: Annotated[int, Field(ge=1, le=_LONGEST_CHAIN)] = 1000
    beta_start: Finite | None = None
    beta_end: Finite | None = None
    trained_betas: Annotated[
        Annotated[list[Finite], Field(min_length=1, max_length=_LONGEST_CHAIN)] | None, BeforeValidator(_as_list)
    ] = None
    prediction_type: str = "epsilon"
    variance_type: str | None = None
    timestep_spacing: str = "leading"
    steps_offset: Annotated[int, Field(ge=0, le=_LONGEST_CHAIN)] = 0
    clip_sample: bool = False
    clip_sample_range: Positive = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.995
    sample_max_value: Positive = 1.0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False


def build_scheduler(config: Mapping[str, Any]) -> Any:
    """Build the scheduler of a configuration.

    Raises:
        ValueError: if diffusers has no such class, does not accept the configuration, or it trains no chain.
    """
    name = config.get("_class_name")
    cls = diffusers_class(name, SCHEDULER)
    validated(SchedulerSettings, dict(config), "scheduler")
    try:
        scheduler = construct(cls, dict(config))
    except Exception as error:  # constructors may raise anything for arbitrary settings
        raise ValueError(f"diffusers refuses this {name}: {reason(error)}") from None
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor) or table.ndim != 1 or table.numel() == 0:
        raise ValueError(f"this {name} has no table of betas")
    return scheduler


def prediction_of(config: Mapping[str, Any]) -> str:
    """Return the name of the network's prediction.

    Raises:
        ValueError: if it is not one of ``PREDICTION_TYPES``.
    """
    name = str(build_scheduler(config).config.get("prediction_type", "epsilon"))
    return choose({known: known for known in PREDICTION_TYPES}, name, "prediction_type")


def chain_of(config: Mapping[str, Any]) -> DDPM:
    """Return the chain on which the network was trained.

    The chain is that of ``rescale_betas_zero_snr`` too where the scheduler is of a class that does not know it, but
    keeps the setting of the one that the network was trained with.

    Raises:
        ValueError: if alpha-bar is zero at its end and the network predicts the noise, which does not determine the
            data there; or if alpha-bar does not fall throughout.
    """
    bar = build_scheduler(config).alphas_cumprod.double()
    rescaled = bool(config.get("rescale_betas_zero_snr"))
    if (float(bar[-1]) == 0.0 or rescaled) and prediction_of(config) == "epsilon":
        raise ValueError(
            "rescale_betas_zero_snr leaves no signal at the last timestep, where a network that predicts epsilon "
            "says nothing about the data; it needs v_prediction or sample"
        )
    unaware = rescaled and float(bar[-1]) > _STAND_IN
    if rescaled and not unaware:
        bar[-1] = 0.0
    log_bar = bar.log()
    chain = DDPM(-torch.expm1(log_bar.diff(prepend=log_bar.new_zeros(1))))
    return chain.zero_terminal_snr() if unaware else chain


class Scheduled(NamedTuple):
    """Arguments for :func:`~sdediff.solve` that reproduce a scheduler.

    Attributes:
        model: the denoiser with the scheduler's clipping or thresholding. Its eps follows from the clipped x0, as in
            DDPM, and in DDIM with ``use_clipped_model_output``. Likelihood and encoding need the model without it.
        solver: DDIM, or the ancestral sampler with the scheduler's variance.
        times: the visited timesteps as times of the chain, and the time of the end.
    """

    model: Denoiser
    solver: Sampler
    times: Tensor


def scheduled(model: ScoreModel, steps: int, config: Mapping[str, Any] | None = None) -> Scheduled:
    """Return the arguments of :func:`~sdediff.solve` that reproduce a scheduler's solve in a number of steps.

    Args:
        model: a model whose network is one of diffusers.
        steps: ``num_inference_steps``.
        config: configuration of another scheduler over the same chain; the model's own by default.

    Raises:
        ValueError: if there is no scheduler; if it is neither DDPM nor DDIM; or if a step does not begin where the
            previous one ended (DDIM strides ``N // steps`` timesteps whatever the spacing of those it visits).
    """
    config = _own_config(model) if config is None else config
    if config is None:
        raise ValueError("the model has no scheduler of diffusers: give config")
    scheduler = build_scheduler(config)
    method = choose(SUPPORTED_SCHEDULERS, str(config["_class_name"]), "scheduler")
    scheduler.set_timesteps(steps)
    timesteps = [int(k) for k in scheduler.timesteps]
    starts, stops = [k + 1 for k in timesteps], method.stops(scheduler, timesteps, steps)
    for i, (start, end) in enumerate(zip(starts[1:], stops[:-1], strict=True), start=1):
        if start != end:
            raise ValueError(
                f"{config['_class_name']} with timestep_spacing {scheduler.config.timestep_spacing!r} in {steps} steps "
                f"ends step {i} at timestep {end - 1} and asks the network at {start - 1}: no grid does that"
            )
    nodes = starts + stops[-1:] * (stops[-1] != starts[-1])  # a step of length zero is left out
    if len(nodes) < 2:
        raise ValueError(f"{steps} steps of {config['_class_name']} go nowhere")
    times = torch.tensor(nodes, dtype=torch.float64) / scheduler.config.num_train_timesteps
    return Scheduled(_bounds(scheduler.config).of(model), method.solver(scheduler.config), times)


def _own_config(model: ScoreModel) -> Mapping[str, Any] | None:
    """Return the configuration of the scheduler that was saved with the model's network, if any."""
    return model.network.config["scheduler"] if isinstance(model.network, DiffusersNetwork) else None  # type: ignore[return-value]


class SampleBounds(NamedTuple):
    """Clip or threshold the clean half as a scheduler does when it samples.

    Attributes:
        words: description in a few words; empty for nothing.
        of: function that wraps a denoiser, or returns it as it is.
    """

    words: str
    of: Callable[[Denoiser], Denoiser]


def _bounds(config: Mapping[str, Any]) -> SampleBounds:
    if config.get("thresholding"):
        quantile, most = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        words = f"x0 is thresholded at its {quantile:g} quantile, up to {most:g}"
        return SampleBounds(words, partial(Threshold, quantile=quantile, most=most, low=-1.0, high=1.0))
    if config.get("clip_sample"):
        most = config["clip_sample_range"]
        return SampleBounds(f"x0 is clipped to [{-most:g}, {most:g}]", partial(Clip, low=-most, high=most))
    return SampleBounds("", lambda model: model)


def sample_bounds(model: ScoreModel) -> SampleBounds:
    """Return the clipping or thresholding of the scheduler that was saved with a model's network.

    ``sample_bounds(model).of(model)`` samples as the scheduler does; likelihood and encoding need the model itself.

    >>> sdediff.interop.sample_bounds(sdediff.ScoreModel(sdediff.networks.MLP((2,)), sdediff.VPSDE())).words
    ''
    """
    own = _own_config(model)
    return _bounds({} if own is None else build_scheduler(own).config)


class SupportedScheduler(NamedTuple):
    """A scheduler that is one of the library's samplers on some grid.

    Attributes:
        solver: the sampler, from the configuration.
        stops: the instants, counted from 0 for the data, at which its steps end.
    """

    solver: Callable[[Mapping[str, Any]], Sampler]
    stops: Callable[[Any, list[int], int], list[int]]


def _ancestral(config: Mapping[str, Any]) -> Sampler:
    return Ancestral(choose(VARIANCE_TYPES, config["variance_type"], "variance_type"))


def _next_timestep(scheduler: Any, timesteps: list[int], _steps: int) -> list[int]:
    return [max(int(scheduler.previous_timestep(k)), -1) + 1 for k in timesteps]


def _fixed_stride(scheduler: Any, timesteps: list[int], steps: int) -> list[int]:
    stride = scheduler.config.num_train_timesteps // steps
    last = 0 if scheduler.config.set_alpha_to_one else 1
    return [k - stride + 1 if k >= stride else last for k in timesteps]


SUPPORTED_SCHEDULERS = {
    "DDPMScheduler": SupportedScheduler(_ancestral, _next_timestep),
    "DDIMScheduler": SupportedScheduler(lambda _config: DDIM(), _fixed_stride),
}
