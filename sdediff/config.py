"""Configuration of a training run: an immutable, validated tree, read from TOML or JSON, changed by dotted overrides.

``sde`` and ``network`` name an entry of a table; their other keys are the parameters of that entry, checked against
its signature. Predictions, conditionings, weightings and time laws are named alone, or as a table with a name and
parameters. The defaults are the digits run.
"""

from __future__ import annotations

import inspect
import json
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field

from sdediff.conditioning import CONDITIONINGS
from sdediff.data import Dataset, Reading, load_dataset
from sdediff.data.layout import AUTO
from sdediff.data.reading import REFUSE
from sdediff.denoiser import ScoreModel
from sdediff.documents import Entry, Named, Positive, Section, instance, read_document, typed_entry, validated
from sdediff.gaussian import Moments
from sdediff.networks import NETWORKS, Levelled, default_network, described, initialise
from sdediff.numerics import choose
from sdediff.parametrization import PREDICTIONS
from sdediff.sde import DDPM, SDE, SDES
from sdediff.types import DataInfo

PROCESSES: Mapping[str, Callable[..., SDE]] = ChainMap({"ddpm": DDPM.linear, "ddpm-cosine": DDPM.cosine}, SDES)  # type: ignore[arg-type]
"""Processes of a configuration, those added to ``SDES`` later included; chains are given by length, not by betas."""

EXACT_LEVELS_UP_TO = 32
"""Largest number of levels for which integer data get the exact last layer, :class:`sdediff.networks.LevelHead`."""

_COUNT_LIMIT = 1 << 31  # of steps or items: more than any run has, and no overflow

Count = Annotated[int, Field(ge=0, lt=_COUNT_LIMIT)]
Natural = Annotated[int, Field(gt=0, lt=_COUNT_LIMIT)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


class DataSection(Section):
    """The data set.

    Attributes:
        name: a name of ``DATASETS``, or a path.
        seed: seed of the hold-out, and of synthetic points.
        standardise: whether the model sees continuous rows of a file with mean 0 and deviation 1 in each column; data
            and samples keep their units in any case.
        flips: whether training images are mirrored left to right, half of them in every batch.
        kind: what an item of a file is, a name of ``KINDS``.
        layout: the axes of an item in a file, a name of ``LAYOUTS``.
        size: side in pixels to which the images of a folder are resized and cropped.
        missing: what becomes of missing values, a name of ``MISSING``.
        text: what becomes of columns of a table that are no numbers, a name of ``TEXT``.
        damaged: what becomes of damaged images of a folder, a name of ``DAMAGED``.
        label: column of a table that holds the class of each row.
        array: array of a file that holds several.
    """

    name: str = "digits"
    seed: Seed = 0
    standardise: bool = True
    flips: bool = False
    kind: str = AUTO
    layout: str = AUTO
    size: Natural | None = None
    missing: str = REFUSE
    text: str = REFUSE
    damaged: str = REFUSE
    label: str | None = None
    array: str | None = None

    def reading(self) -> Reading:
        """Return the choices of the reader.

        Raises:
            ValueError: for a choice that is none, or choices that do not go together.
        """
        return Reading(**self.model_dump(exclude={"name", "seed", "standardise", "flips"}))

    def load(self) -> Dataset:
        """Load the data set, see :func:`~sdediff.data.load_dataset`."""
        return load_dataset(self.name, self.seed, standardise=self.standardise, **asdict(self.reading()))


class SdeSection(Named):
    """The forward process: a name of ``PROCESSES`` and its parameters."""

    name: str = "cosine"


class NetworkSection(Named):
    """The network: a name of ``NETWORKS`` and its parameters; ``"auto"`` takes the one for the data's shape."""

    name: str = "auto"


class ModelSection(Section):
    """The network's output and its noise-level input: entries of ``PREDICTIONS`` and ``CONDITIONINGS``."""

    prediction: Entry = "v_prediction"
    conditioning: Entry = "logsnr"


class TrainingSection(Section):
    """The optimisation. Intervals are in steps; 0 means never.

    Attributes:
        steps: optimiser steps.
        batch_size: items a step, over all processes.
        learning_rate: AdamW's rate after the warm-up; it falls to zero along a half cosine.
        weight_decay: AdamW's weight decay.
        warmup: steps of linear warm-up.
        clip: bound on the norm of the gradient.
        ema: decay of the moving average of the weights, which is the saved model.
        time_law: distribution of the noise levels, an entry of ``TIME_LAWS``.
        weighting: weighting of the noise levels, an entry of ``WEIGHTINGS``.
        objective: mixture of losses, an entry of ``OBJECTIVES``; those with the bound learn a variance.
        seed: seed of the weights, the order of the data, the levels and the noise.
        log_every: steps between two lines of metrics.
        held_out_every: steps between two losses on held-out data.
        sample_every: steps between two sample pictures.
        checkpoint_every: steps between two checkpoints (one is written at the end in any case).
    """

    steps: Natural = 2000
    batch_size: Natural = 128
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.01
    warmup: Count = 100
    clip: Positive = 1.0
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.995
    time_law: Entry = "uniform"
    weighting: Entry = "velocity"
    objective: Entry = "denoising"
    seed: Seed = 0
    log_every: Count = 20
    held_out_every: Count = 200
    sample_every: Count = 500
    checkpoint_every: Count = 250


class Config(Section):
    """All settings of a training run."""

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
        from sdediff.training.objective import typed_objective  # its package imports this module

        config = validated(cls, values)
        sde = config.sde.typed(PROCESSES, "sde", "process")
        PROCESSES[sde.name](**sde.parameters)  # which checks the values
        network = config.network
        if network.name != "auto":
            network = network.typed(NETWORKS, "network", "network", given=_FROM_DATA)
        config.data.reading()  # which checks the choices
        typed = {
            "prediction": typed_entry(PREDICTIONS, config.model.prediction, "model.prediction", "prediction"),
            "conditioning": typed_entry(CONDITIONINGS, config.model.conditioning, "model.conditioning", "conditioning"),
        }
        objective = typed_objective(config.training.time_law, config.training.weighting, config.training.objective)
        model, training = config.model.model_copy(update=typed), config.training.model_copy(update=objective)
        return config.model_copy(update={"sde": sde, "network": network, "model": model, "training": training})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``.toml`` or ``.json`` file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not TOML or JSON, or a setting is wrong; in one line.
        """
        path = Path(path)
        choose({".toml": None, ".json": None}, path.suffix.lower(), f"kind of configuration file ({path})")
        if not path.exists():
            raise FileNotFoundError(f"no configuration file {path}")
        try:
            values = read_document(path)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        try:
            return cls.of(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def updated(self, overrides: Mapping[str, Any]) -> Self:
        """Return a copy with settings changed, for example ``{"training.steps": "100", "sde.name": "flow"}``.

        Strings are read as the setting's type; lists as JSON. Naming another process or network drops the parameters
        of the old one; so does naming another entry elsewhere, whose parameters are a level below:
        ``{"training.weighting": "min-snr", "training.weighting.gamma": "2"}``.

        Raises:
            ValueError: in one line, for an unknown setting or a value that does not fit.
        """
        values = self.model_dump()
        for section in ("sde", "network"):
            if overrides.get(f"{section}.name", values[section]["name"]) != values[section]["name"]:
                values[section] = {}
        for key, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):  # names before parameters
            section, _, name = key.partition(".")
            if section not in values or not name:
                raise ValueError(f"unknown setting {key!r}; sections are: {', '.join(values)}")
            name, _, parameter = name.partition(".")
            if not parameter:
                values[section][name] = _decoded(value)
                continue
            entry = values[section].get(name)
            if not isinstance(entry, str | dict):
                raise ValueError(f"unknown setting {key!r}: {section}.{name} has no parameters")
            entry = {"name": entry} if isinstance(entry, str) else entry
            values[section][name] = {**entry, parameter: _decoded(value)}
        return type(self).of(values)

    def to_json(self) -> str:
        """Return the configuration as indented JSON, which :meth:`load` reads."""
        return self.model_dump_json(indent=2) + "\n"


def build(config: Config, data: DataInfo, moments: Moments | None = None) -> ScoreModel:
    """Return the untrained model that a configuration describes; its weights are a function of ``training.seed``.

    A network that can return several tensors (a parameter ``outputs``) gets the exact last layer on data of few levels,
    or returns the place of a learned variance where the objective trains one.

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
    from sdediff.training.objective import learns_variance  # its package imports this module

    make = choose(NETWORKS, section.name, "network")
    parameters = section.typed(NETWORKS, "network", "network", given=_FROM_DATA).parameters
    levels = data.levels if data.levels is not None and data.levels <= EXACT_LEVELS_UP_TO else None
    several, learned = "outputs" in inspect.signature(make).parameters, learns_variance(config.training.objective)
    exact = levels is not None and _takes_levels(config) and several and not learned
    if learned and not several:
        raise ValueError(f"a learned variance needs a network with the parameter outputs, which {section.name} has not")
    outputs = {"outputs": levels} if exact else {"outputs": 2} if learned else {}
    parameters = {"shape": data.shape, **parameters, **outputs}
    with torch.random.fork_rng(devices=[]):  # constructors draw weights from the global generator, which are replaced
        network = described(make(**parameters), parameters)
    if levels is not None and exact:
        network = Levelled(network, levels, data.low, data.high)
    initialise(network, torch.Generator().manual_seed(config.training.seed))
    return ScoreModel(
        network,
        PROCESSES[config.sde.name](**config.sde.parameters),
        prediction=instance(PREDICTIONS, config.model.prediction, "prediction"),
        conditioning=config.model.conditioning
        if isinstance(config.model.conditioning, str)
        else instance(CONDITIONINGS, config.model.conditioning, "conditioning"),
        moments=moments,
        data=data,
        learned_variance=learned,
    )


_FROM_DATA = ("shape", "outputs")
"""Parameters of networks that follow from the data."""


def _takes_levels(config: Config) -> bool:
    """Return whether the network predicts the velocity of the VP frame, which the exact layer for levels computes."""
    return config.model.prediction == "v_prediction" and config.model.conditioning == "logsnr"


def _decoded(value: Any) -> Any:
    """Parse a string that holds a JSON list; other values are left to the setting's type."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{value!r} is not a list: {error}") from None
    return value
