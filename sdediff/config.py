"""Configuration: one typed, validated, immutable tree, read from TOML or JSON and changed by dotted overrides.

``sde`` and ``network`` name an entry of a table; their other keys are the parameters of that entry, checked against
its signature. The defaults are the digits run.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from sdediff.conditioning import CONDITIONINGS
from sdediff.data.layout import AUTO, LAYOUTS
from sdediff.denoiser import ScoreModel
from sdediff.moments import Moments
from sdediff.networks import NETWORKS, default_network, initialise
from sdediff.numerics import choose
from sdediff.predictions import PREDICTIONS
from sdediff.sde import DDPM, SDE, SDES
from sdediff.types import DataInfo

PROCESSES: dict[str, Callable[..., SDE]] = {**SDES, "ddpm": DDPM.linear, "ddpm-cosine": DDPM.cosine}
"""What a configuration may name; chains come by their length instead of their betas."""

MOST_LEVELS = 32
"""Integer data with at most so many levels get the exact last layer, :class:`sdediff.networks.LevelHead`."""

M = TypeVar("M", bound=BaseModel)

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


class Section(BaseModel):
    """A part of the configuration: frozen, no unknown keys, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataSection(Section):
    """Which data.

    Attributes:
        name: of ``DATASETS``, or a path.
        seed: of the hold-out, and of synthetic points.
        layout: the axes of an item in a file, a name of ``LAYOUTS``.
    """

    name: str = "digits"
    seed: Seed = 0
    layout: str = AUTO


class Named(BaseModel):
    """An entry of a table by name; every other key is one of its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys beside ``name``."""
        return dict(self.model_extra or {})

    def typed(
        self, table: Mapping[str, Callable[..., Any]], where: str, what: str, *, given: tuple[str, ...] = ()
    ) -> Self:
        """The same with parameters of the types that the entry of ``table`` takes; those ``given`` come from elsewhere.

        Raises:
            ValueError: in one line, for an unknown name or parameters that do not fit.
        """
        checked = _validated(_schema(choose(table, self.name, what), given), self.parameters, where)
        return type(self)(name=self.name, **{key: getattr(checked, key) for key in sorted(checked.model_fields_set)})


class SdeSection(Named):
    """The forward process: a name of ``PROCESSES`` and its parameters."""

    name: str = "cosine"


class NetworkSection(Named):
    """The network: a name of ``NETWORKS`` and its parameters; ``"auto"`` takes the one for the data's shape."""

    name: str = "auto"


class ModelSection(Section):
    """What the network predicts and what it is asked with."""

    prediction: str = "v_prediction"
    conditioning: str = "logsnr"


class TrainingSection(Section):
    """The optimisation. Intervals are in steps; 0 switches the thing off.

    Attributes:
        steps: optimiser steps.
        batch_size: items a step, over all processes.
        learning_rate: AdamW's, after the warm-up; it falls to zero along a half cosine.
        weight_decay: AdamW's.
        warmup: steps of linear warm-up.
        clip: bound on the norm of the gradient.
        ema: decay of the moving average of the weights, the ones that are kept.
        time_law: how noise levels are drawn, a name of ``TIME_LAWS``.
        weighting: how they are weighted, a name of ``WEIGHTINGS``.
        seed: of the weights, the order of the data, the levels and the noise.
        log_every: steps between two lines of metrics.
        held_out_every: steps between two losses on held-out data.
        sample_every: steps between two sample pictures.
        checkpoint_every: steps between two checkpoints (one is written at the end in any case).
    """

    steps: Annotated[int, Field(gt=0)] = 2000
    batch_size: Annotated[int, Field(gt=0)] = 128
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.01
    warmup: Count = 100
    clip: Positive = 1.0
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.995
    time_law: str = "uniform"
    weighting: str = "velocity"
    seed: Seed = 0
    log_every: Count = 20
    held_out_every: Count = 200
    sample_every: Count = 500
    checkpoint_every: Count = 250


class Config(Section):
    """Everything a training run depends on."""

    data: DataSection = DataSection()
    sde: SdeSection = SdeSection()
    network: NetworkSection = NetworkSection()
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Validate a nested mapping.

        Raises:
            ValueError: in one line, naming each wrong setting.
        """
        config = _validated(cls, values)
        sde = config.sde.typed(PROCESSES, "sde", "process")
        PROCESSES[sde.name](**sde.parameters)  # its own check of the values
        network = config.network
        if network.name != "auto":
            network = network.typed(NETWORKS, "network", "network", given=("shape",))
        choose(LAYOUTS, config.data.layout, "layout")
        choose(PREDICTIONS, config.model.prediction, "prediction")
        choose(CONDITIONINGS, config.model.conditioning, "conditioning")
        return config.model_copy(update={"sde": sde, "network": network})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``.toml`` or ``.json`` file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not TOML or JSON, or a setting is wrong; in one line.
        """
        path = Path(path)
        readers: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}
        reader = choose(readers, path.suffix.lower(), f"kind of configuration file ({path})")
        if not path.is_file():
            raise FileNotFoundError(f"no configuration file {path}")
        try:
            values = reader(path.read_text(encoding="utf-8"))
        except ValueError as error:  # both decoders' errors, and bytes that are no text
            raise ValueError(f"{path} cannot be read: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a table of sections, not a {type(values).__name__}")
        return cls.of(values)

    def updated(self, overrides: Mapping[str, Any]) -> Self:
        """The same with settings changed, for example ``{"training.steps": "100", "sde.name": "flow"}``.

        Strings are read as the setting's type; lists as JSON. Naming another process or network drops the parameters
        of the old one.

        Raises:
            ValueError: in one line, for an unknown setting or a value that does not fit.
        """
        values = self.model_dump()
        for section in ("sde", "network"):
            if overrides.get(f"{section}.name", values[section]["name"]) != values[section]["name"]:
                values[section] = {}
        for key, value in overrides.items():
            section, _, name = key.partition(".")
            if section not in values or not name:
                raise ValueError(f"unknown setting {key!r}; sections are: {', '.join(values)}")
            values[section][name] = _decoded(value)
        return type(self).of(values)

    def to_json(self) -> str:
        """The configuration as indented JSON; :meth:`load` reads it back."""
        return self.model_dump_json(indent=2) + "\n"


def build(config: Config, data: DataInfo, moments: Moments | None = None) -> ScoreModel:
    """The untrained model that a configuration describes; its weights are a function of ``training.seed``.

    Args:
        config: the configuration.
        data: shape, levels and range of the data.
        moments: mean and covariance of the data, if the model is to keep them.

    Raises:
        ValueError: if the network does not fit the shape of the data.
    """
    section = config.network
    if section.name == "auto":
        section = section.model_copy(update={"name": default_network(data.shape)})
    parameters = section.typed(NETWORKS, "network", "network", given=("shape",)).parameters
    if data.levels is not None and data.levels <= MOST_LEVELS and _takes_levels(config):
        parameters = {"levels": data.levels, "low": data.low, "high": data.high, **parameters}
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; what they draw is replaced
        network = NETWORKS[section.name](shape=data.shape, **parameters)
    initialise(network, torch.Generator().manual_seed(config.training.seed))
    return ScoreModel(
        network,
        PROCESSES[config.sde.name](**config.sde.parameters),
        prediction=config.model.prediction,
        conditioning=config.model.conditioning,
        moments=moments,
        data=data,
    )


def _takes_levels(config: Config) -> bool:
    """Whether the network's output is the velocity of the VP frame, which the exact layer for levels computes."""
    return config.model.prediction == "v_prediction" and config.model.conditioning == "logsnr"


def _decoded(value: Any) -> Any:
    """A string that holds a JSON list becomes one; all else is left to the setting's type."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{value!r} is not a list: {error}") from None
    return value


@cache
def _schema(entry: Callable[..., Any], given: tuple[str, ...]) -> type[BaseModel]:
    """The parameters of a table's entry, from its signature."""
    parameters = inspect.signature(entry, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in parameters if p.name not in given
    }
    settings = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return create_model(getattr(entry, "__name__", "Entry"), __config__=settings, **fields)


def _validated(model: type[M], values: Any, where: str = "") -> M:
    """Validate, with all complaints in one line."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(_complaint(model, item, where) for item in error.errors())) from None


def _complaint(model: type[BaseModel], error: Any, where: str) -> str:
    path = [where] * bool(where) + [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        for part in error["loc"][:-1]:
            model = model.model_fields[str(part)].annotation  # type: ignore[assignment]
        return f"unknown setting {'.'.join(path)}; choose one of: {', '.join(model.model_fields) or '(none)'}"
    return f"{'.'.join(path)}: {error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"
