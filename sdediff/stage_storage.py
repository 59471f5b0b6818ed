"""Autoencoders, VAEs and latent models on disk, in the files of :mod:`sdediff.checkpoint`.

The ``model.json`` of an autoencoder has its ``kind``, encoder and decoder with their parameters, the observation and
the data; the tensors are ``encoder.*``, ``decoder.*`` and ``observation.*``. A latent model has ``kind`` alone, the
tensors ``shift`` and ``scale``, and two folders of models, ``first_stage`` and ``score_model``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sdediff.data.section import Data, data_entries
from sdediff.documents import Named, Section, validated
from sdediff.foreign import is_import_path, path_of
from sdediff.interop import DiffusersDecoder, DiffusersEncoder
from sdediff.latent import CODERS, FIRST_STAGES, OBSERVATIONS, FirstStage
from sdediff.latent.autoencoders import kind_of
from sdediff.numerics import choose
from sdediff.tensors import build_for, fill, read_shapes, read_tensors

STAGE_FORMAT = 1


class StageDescription(Section):
    """Content of the ``model.json`` of an autoencoder."""

    format: Literal[1]
    kind: Literal["ae", "vae"]
    encoder: Named
    decoder: Named
    observation: Named
    data: Data


class LatentDescription(Section):
    """Content of the ``model.json`` of a latent model."""

    format: Literal[1]
    kind: Literal["latent"]


def describe_stage(model: FirstStage) -> dict[str, Any]:
    """Return the description of an autoencoder, as JSON values.

    Raises:
        ValueError: if a network has no ``config`` of the parameters that build it again.
    """
    law = next((name for name, cls in OBSERVATIONS.items() if cls is type(model.observation)), None)
    if law is None:
        raise ValueError(f"only observations of the library can be saved, not {type(model.observation).__name__}")
    return {
        "format": STAGE_FORMAT,
        "kind": kind_of(model),
        "encoder": _describe_coder(model.encoder, "encoder"),
        "decoder": _describe_coder(model.decoder, "decoder"),
        "observation": {"name": law, **model.observation.config},
        "data": data_entries(model.data),
    }


def check_exported(model: FirstStage) -> None:
    """Refuse to save an autoencoder of diffusers.

    Raises:
        ValueError: naming what to do instead.
    """
    if isinstance(model.encoder, DiffusersEncoder):
        raise ValueError("autoencoders of diffusers are not saved but exported, with the score model of their codes")


def _describe_coder(network: nn.Module, part: str) -> dict[str, Any]:
    """Return name and parameters of a network of the library, or the place of the class of another one."""
    if isinstance(network, DiffusersEncoder | DiffusersDecoder):
        return {"name": f"diffusers.{type(network.inner).__name__}"}
    names = [name for name, pair in CODERS.items() if getattr(pair, part) is type(network)]
    config = getattr(network, "config", None)
    if names and isinstance(config, Mapping):
        return {"name": names[0], **config}
    return {"name": path_of(network)}


def rebuild_stage(values: Mapping[str, Any], weights: Path, given: nn.Module | None) -> FirstStage:
    """Build the autoencoder of a description and the file of its tensors.

    Args:
        values: content of ``model.json``.
        weights: file of the tensors.
        given: an autoencoder into which the weights are put, for networks that are not the library's.

    Raises:
        ValueError: if they do not fit, or the networks are not the library's and not given.
    """
    description = validated(StageDescription, values)
    model = build_for(lambda: _make(description), read_shapes(weights)) if given is None else given
    if not isinstance(model, FirstStage):
        raise ValueError(f"network= is the autoencoder into which the weights are put, not a {type(model).__name__}")
    tensors, _ = read_tensors(weights)
    fill(model, tensors)
    return model


def stage_data(values: Mapping[str, Any]) -> Data:
    """Return the data of a description."""
    return validated(StageDescription, values).data


def needs_stage(values: Mapping[str, Any]) -> str | None:
    """Return the place of a network that is not the library's, ``None`` if all are."""
    description = validated(StageDescription, values)
    return next((part.name for part in (description.encoder, description.decoder) if is_import_path(part.name)), None)


def _make(description: StageDescription) -> FirstStage:
    observation = description.observation.typed(OBSERVATIONS, "observation", "observation")
    encoder, decoder = (
        _coder({name: getattr(pair, part) for name, pair in CODERS.items()}, getattr(description, part), part)
        for part in ("encoder", "decoder")
    )
    law = choose(OBSERVATIONS, observation.name, "observation")(**observation.parameters)
    return FIRST_STAGES[description.kind](encoder, decoder, law, data=description.data.info())


def _coder(table: Mapping[str, Callable[..., nn.Module]], named: Named, part: str) -> nn.Module:
    typed = named.typed(table, part, part)
    return table[typed.name](**typed.parameters)
