"""Configuration of a training run: an immutable, validated tree, read from TOML or JSON, changed by dotted overrides.

``sde`` and ``network`` name an entry of a table; their other keys are the parameters of that entry, checked against
its signature. Predictions, conditionings, weightings and time laws are named alone, or as a table with a name and
parameters. The defaults are the digits run.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn

from sdediff.conditioning import CONDITIONINGS
from sdediff.data import Dataset, Reading, load_dataset
from sdediff.data.layout import AUTO
from sdediff.data.reading import REFUSE
from sdediff.documents import Entry, Named, Section, instance, read_document, typed_entry, validated
from sdediff.foreign import OwnNetwork, is_import_path, needs_network, path_of
from sdediff.gaussian import Moments
from sdediff.latent.networks import CODERS
from sdediff.latent.observations import OBSERVATIONS
from sdediff.networks import NETWORKS, Levelled, default_network, described, initialise
from sdediff.numerics import choose
from sdediff.parametrization import PREDICTIONS
from sdediff.score_model import ScoreModel
from sdediff.sde import DDPM, SDE, SDES
from sdediff.settings import LatentSection, Natural, Seed, TrainingSection
from sdediff.types import DataInfo

PROCESSES: Mapping[str, Callable[..., SDE]] = ChainMap({"ddpm": DDPM.linear, "ddpm-cosine": DDPM.cosine}, SDES)  # type: ignore[arg-type]
"""Processes of a configuration, those added to ``SDES`` later included; chains are given by length, not by betas."""

EXACT_LEVELS_UP_TO = 32
"""Largest number of levels for which integer data get the exact last layer, :class:`sdediff.networks.LevelHead`."""


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
    """The network: a name of ``NETWORKS`` and its parameters; ``"auto"`` takes the one for the data's shape.

    A network of the user's own is named by the place of its class, ``package.module:Class``. A configuration never
    imports it: who trains or loads such a run names the class, or hands it over.
    """

    name: str = "auto"


class ModelSection(Section):
    """The model.

    Attributes:
        kind: a score model, an autoencoder, a variational one, or a score model on the codes of one.
        prediction: output of a score model's network, an entry of ``PREDICTIONS``.
        conditioning: its input for the noise level, an entry of ``CONDITIONINGS``.
    """

    kind: Literal["score", "ae", "vae", "latent"] = "score"
    prediction: Entry = "v_prediction"
    conditioning: Entry = "logsnr"


class Config(Section):
    """All settings of a training run."""

    data: DataSection = DataSection()
    sde: SdeSection = SdeSection()
    network: NetworkSection = NetworkSection()
    model: ModelSection = ModelSection()
    latent: LatentSection = LatentSection()
    training: TrainingSection = TrainingSection()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Validate a nested mapping.

        Raises:
            ValueError: in one line, naming each wrong setting.
        """
        from sdediff.training.objective import typed_objective  # their package imports this module
        from sdediff.training.schedules import typed_schedule

        config = validated(cls, values)
        sde = config.sde.typed(PROCESSES, "sde", "process")
        PROCESSES[sde.name](**sde.parameters)  # which checks the values
        network = config.network
        if network.name != "auto" and not is_import_path(network.name):
            network = network.typed(NETWORKS, "network", "network", given=_FROM_DATA)
        config.data.reading()  # which checks the choices
        typed = {
            "prediction": typed_entry(PREDICTIONS, config.model.prediction, "model.prediction", "prediction"),
            "conditioning": typed_entry(CONDITIONINGS, config.model.conditioning, "model.conditioning", "conditioning"),
        }
        stage = {
            "coder": _typed_coder(config.latent.coder),
            "observation": _typed_unless_auto(OBSERVATIONS, config.latent.observation, "observation"),
        }
        optimisation = typed_objective(config.training.time_law, config.training.weighting, config.training.objective)
        optimisation["schedule"] = typed_schedule(config.training.schedule)
        model, training = config.model.model_copy(update=typed), config.training.model_copy(update=optimisation)
        latent = config.latent.model_copy(update=stage)
        changed = {"sde": sde, "network": network, "model": model, "latent": latent, "training": training}
        return config.model_copy(update=changed)

    @property
    def weighting(self) -> str | Named:
        """The weighting of the noise levels; where the setting is ``"auto"``, that for what the network predicts."""
        from sdediff.training.weightings import suited_weighting  # whose package imports this module

        entry = self.training.weighting
        return (
            suited_weighting(instance(PREDICTIONS, self.model.prediction, "prediction")) if entry == "auto" else entry
        )

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

    def with_network(self, network: OwnNetwork) -> Self:
        """Return a copy that names a network of the user's own, with parameters of the types that its class takes.

        Raises:
            ValueError: for what is no network, or parameters that the class does not take.
        """
        name, section = path_of(network), self.network
        parameters = section.parameters if section.name in ("auto", name) else {}
        if isinstance(network, nn.Module):
            if parameters:
                raise ValueError(f"a network that is built already takes no parameters, not {', '.join(parameters)}")
            return self.model_copy(update={"network": NetworkSection(name=name)})
        named = NetworkSection(name=name, **parameters)
        return self.model_copy(update={"network": named.typed({name: network}, "network", "network", given=_FROM_DATA)})


def build(
    config: Config, data: DataInfo, moments: Moments | None = None, *, network: OwnNetwork | None = None
) -> ScoreModel:
    """Return the untrained model that a configuration describes; its weights are a function of ``training.seed``.

    A network that can return several tensors (a parameter ``outputs``) gets the exact last layer on data of few levels,
    or returns the place of a learned variance where the objective trains one.

    Args:
        config: the configuration.
        data: shape, levels and range of the data.
        moments: mean and covariance of the data, if the model is to keep them.
        network: the network that the configuration names by its import path: its class, which is called with those of
            ``shape`` and ``outputs`` that it takes and draws its own weights; or a module, which is copied with its
            weights.

    Raises:
        ValueError: if the network does not fit the shape of the data, or is one's own and not given.
    """
    from sdediff.training.objective import learns_variance  # its package imports this module

    learned = learns_variance(config.training.objective)
    core, levels = _network(config, data, network, learned=learned)
    if levels is not None:
        core = Levelled(core, levels, data.low, data.high)
    if network is None:
        initialise(core, torch.Generator().manual_seed(config.training.seed))
    return ScoreModel(
        core,
        PROCESSES[config.sde.name](**config.sde.parameters),
        prediction=instance(PREDICTIONS, config.model.prediction, "prediction"),
        conditioning=config.model.conditioning
        if isinstance(config.model.conditioning, str)
        else instance(CONDITIONINGS, config.model.conditioning, "conditioning"),
        moments=moments,
        data=data,
        learned_variance=learned,
    )


def _network(config: Config, data: DataInfo, own: OwnNetwork | None, *, learned: bool) -> tuple[nn.Module, int | None]:
    """Return the network for data, and the number of levels if the exact layer is to be put on top."""
    section = config.network
    if section.name == "auto":
        section = section.model_copy(update={"name": default_network(data.shape)})
    if isinstance(own, nn.Module):
        return copy.deepcopy(own), None
    if own is None and is_import_path(section.name):
        raise ValueError(needs_network("this configuration", section.name))
    make = choose(NETWORKS, section.name, "network") if own is None else own
    section = section.typed({section.name: make}, "network", "network", given=_FROM_DATA)
    taken = inspect.signature(make).parameters
    levels = data.levels if data.levels is not None and data.levels <= EXACT_LEVELS_UP_TO else None
    exact = levels if _takes_levels(config) and "outputs" in taken and not learned else None
    if learned and "outputs" not in taken:
        raise ValueError(f"a learned variance needs a network with the parameter outputs, which {section.name} has not")
    parameters = {**({"shape": data.shape} if own is None or "shape" in taken else {}), **section.parameters}
    parameters |= {"outputs": 2} if learned else {"outputs": exact} if exact is not None else {}
    # Constructors draw from the global generator, which is put back; those of the library's networks are drawn anew.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.training.seed)
        return described(make(**parameters), parameters), exact


def _typed_unless_auto(
    table: Mapping[str, Any], entry: str | Named, name: str, given: tuple[str, ...] = ()
) -> str | Named:
    """Return an entry of the section ``latent`` with parameters of the types that it takes; ``"auto"`` as it is."""
    return entry if entry == "auto" else typed_entry(table, entry, f"latent.{name}", name, given=given)


def _typed_coder(entry: str | Named) -> str | Named:
    """Return the networks of an autoencoder with parameters of the types that they take."""
    encoders = {name: pair.encoder for name, pair in CODERS.items()}
    return _typed_unless_auto(encoders, entry, "coder", (*_FROM_DATA, "code"))


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
