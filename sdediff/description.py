"""The description of a model as JSON values: process, network, prediction, conditioning and data."""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from sdediff.conditioning import CONDITIONINGS
from sdediff.data.section import Data, data_entries
from sdediff.documents import AnyEntry, Entry, Finite, Named, Section, description_of, validated
from sdediff.foreign import is_import_path, path_of
from sdediff.interop import DiffusersNetwork
from sdediff.networks import NETWORKS, Levelled
from sdediff.parametrization import PREDICTIONS
from sdediff.score_model import ScoreModel
from sdediff.sde import SDES

MODEL_FORMAT = 1
SAVED_NETWORKS: Mapping[str, Callable[..., nn.Module]] = ChainMap({"diffusers": DiffusersNetwork}, NETWORKS)
"""Networks that can be saved, those added to :data:`sdediff.networks.NETWORKS` later included."""


class ExactLevels(Section):
    """Levels of the exact last layer: their number, the lowest and the highest value."""

    levels: Annotated[int, Field(ge=2, le=1 << 32)]
    low: Finite = -1.0
    high: Finite = 1.0


class Description(Section):
    """Content of ``model.json``."""

    format: Literal[1]
    sde: Named
    network: Named
    exact_levels: ExactLevels | None = None
    prediction: Entry
    conditioning: Entry
    learned_variance: bool = False
    data: Data | None


def describe_model(model: ScoreModel) -> dict[str, Any]:
    """Return the description from which :func:`load` builds a model, as JSON values.

    Raises:
        ValueError: if a part is not one of the library's own.
    """
    network, head = own_network(model.network)
    if not is_dataclass(model.sde):
        raise ValueError(f"only processes that are dataclasses can be saved, not {type(model.sde).__name__}")
    sde = {field.name: getattr(model.sde, field.name) for field in fields(model.sde) if field.init}
    return {
        "format": MODEL_FORMAT,
        "sde": {"name": _name_of(SDES, type(model.sde), "process"), **sde},
        "network": _describe_network(network),
        **({"exact_levels": head.config} if head is not None else {}),  # absent in older files
        "prediction": description_of(PREDICTIONS, model.prediction, "prediction"),
        "conditioning": description_of(CONDITIONINGS, model.interface, "conditioning"),
        **({"learned_variance": True} if model.learned_variance else {}),
        "data": None if model.data is None else data_entries(model.data),
    }


def own_network(network: object) -> tuple[nn.Module, Levelled | None]:
    """Return the network inside, and the exact layer around it if there is one."""
    head, inner = (network, network.network) if isinstance(network, Levelled) else (None, network)
    if not isinstance(inner, nn.Module):
        raise ValueError(f"only networks that are torch modules can be saved, not {type(inner).__name__}")
    return inner, head


def _describe_network(network: nn.Module) -> dict[str, Any]:
    """Return name and parameters of a network of the library, or place and parameters of another one's class."""
    names = [name for name, entry in SAVED_NETWORKS.items() if entry is type(network)]
    config = getattr(network, "config", None)
    if not names:
        return {"name": path_of(network), **(config if isinstance(config, Mapping) and _is_json(config) else {})}
    if not isinstance(config, Mapping):
        raise ValueError(f"{type(network).__name__} can be saved with a dict `config` of the parameters that build it")
    return {"name": names[0], **config}


def _is_json(values: Mapping[Any, Any]) -> bool:
    try:
        json.dumps(dict(values), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return "name" not in values and all(isinstance(key, str) for key in values)


def _name_of(table: Mapping[str, AnyEntry], entry: AnyEntry, what: str) -> str:
    for name, other in table.items():
        if other is entry:
            return name
    raise ValueError(f"only a {what} of the library can be saved ({', '.join(table)}), not {entry!r}")


def typed_parts(description: Description) -> tuple[Named, Named, ExactLevels | None]:
    """Return process, network and exact layer, with validated parameters."""
    network, levels = _exact_levels(description)
    sde = description.sde.typed(SDES, "sde", "process")
    if not is_import_path(network.name):
        network = network.typed(SAVED_NETWORKS, "network", "network")
    outputs = network.parameters.get("outputs")
    if levels is not None and outputs not in (None, levels.levels):
        raise ValueError(f"an exact layer of {levels.levels} levels is no layer for a network of {outputs} outputs")
    return sde, network, levels


def _exact_levels(description: Description) -> tuple[Named, ExactLevels | None]:
    """Return the network and its exact layer, which version 0.1.0 wrote among the network's parameters."""
    old, keys = description.network.parameters, ("levels", "low", "high")
    if description.network.name not in ("mlp", "unet") or not all(key in old for key in keys):
        return description.network, description.exact_levels
    head = {key: old.pop(key) for key in keys}
    if head["levels"] is None:
        return Named(name=description.network.name, **old), None
    levels = validated(ExactLevels, head, "network")
    return Named(name=description.network.name, **{**old, "outputs": levels.levels}), levels
