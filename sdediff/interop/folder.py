"""Folders of diffusers: ``unet/`` and ``scheduler/`` as its pipelines save them, or a model with its scheduler beside.

Reading opens local files only, weights as safetensors only, and builds only classes of a fixed list; nothing else that
a folder names is imported or run. diffusers' own ``from_pretrained`` is not called.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sdediff.conditioning import Conditioning
from sdediff.data.section import MOST_ENTRIES
from sdediff.documents import read_document, reason, shown
from sdediff.interop.network import MODEL, AllowedClasses, DiffusersNetwork, check_timesteps, construct, diffusers_class
from sdediff.interop.schedulers import VARIANCE_TYPES, chain_of, prediction_of
from sdediff.numerics import choose
from sdediff.score_model import ScoreModel
from sdediff.tensors import build_for, fill, read_shapes, read_tensors
from sdediff.types import DataInfo

NETWORK_FILE, SCHEDULER_FILE, INDEX_FILE = "config.json", "scheduler_config.json", "model_index.json"
_SPATIAL = {"UNet1DModel": 1}
"""Dimensions of an item beside its channels, for networks that do not work on images."""
_AUTOENCODERS = ("vae", "vqvae", "movq", "first_stage_model")
READ_AUTOENCODERS = ("vae", "vqvae")
"""Folders of the autoencoders that are read."""
_WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.(?P<variant>\w+))?(?P<part>-\d+-of-\d+)?\.safetensors")
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of attention by the names that diffusers gave them before its version 0.17."""


def find_model(folder: Path) -> Path | None:
    """Return the folder of the network in a folder of diffusers, ``None`` if there is no network.

    Raises:
        ValueError: if it is a pipeline whose network does not work on the data themselves.
    """
    for place in (folder / "unet", folder):
        if (place / NETWORK_FILE).is_file() and "_class_name" in _read_json(place / NETWORK_FILE):
            coder = next((name for name in _AUTOENCODERS if (folder / name).is_dir()), None)
            if coder is not None and find_autoencoder(folder) is None:
                raise ValueError(
                    f"{folder} is a latent pipeline: its network knows the codes of an autoencoder ({coder}/), not the "
                    f"data, and that autoencoder cannot be read; load {place} for the network on codes alone"
                )
            return place
    if (folder / "transformer" / NETWORK_FILE).is_file():
        name = shown(_read_json(folder / "transformer" / NETWORK_FILE).get("_class_name"))
        raise ValueError(
            f"{folder} is a pipeline with a transformer ({name}), which works on the codes of an autoencoder: only "
            "networks on pixels (unet/) are read here"
        )
    if (folder / INDEX_FILE).is_file():
        name = shown(_read_json(folder / INDEX_FILE).get("_class_name"))
        raise ValueError(
            f"{folder} is a pipeline of diffusers ({name}) without unet/: only networks on pixels are read"
        )
    return None


def find_autoencoder(folder: Path) -> Path | None:
    """Return the folder of the autoencoder in a folder of diffusers, ``None`` if there is none that is read here."""
    places = [folder / name for name in READ_AUTOENCODERS]
    return next((place for place in places if (place / NETWORK_FILE).is_file()), None)


def load_folder(
    folder: Path, *, data: DataInfo | None = None, conditioning: str | Conditioning | None = None
) -> ScoreModel:
    """Read the model of a folder, without the clipping that the scheduler may apply when sampling.

    :func:`~sdediff.interop.schedulers.sample_bounds` has that, as a wrapper of the model.

    Weights in half precision alone (``variant="fp16"``) are read into single precision, as diffusers does. A network
    that is trained with classes needs ``condition={"class_labels": ...}``.

    Args:
        folder: folder that diffusers saved.
        data: description of the data; by default the network's shape with 256 levels on [-1, 1], for a network on the
            codes of an autoencoder continuous.
        conditioning: see :class:`~sdediff.score_model.ScoreModel`; by default ``"label"``, for a network with a table
            of embeddings ``"interpolated"``.

    Raises:
        FileNotFoundError: if there is no network or no scheduler.
        ValueError: if diffusers is not installed, the weights are pickled or do not fit, or the network or the
            scheduler is of an unsupported kind.
    """
    place = find_model(folder)
    if place is None:
        raise FileNotFoundError(
            f"no model of diffusers in {folder}: neither unet/{NETWORK_FILE} nor {NETWORK_FILE} is there"
        )
    scheduler = _scheduler_config(folder, place)
    try:
        return _model(folder, place, scheduler, data, conditioning)
    except (OSError, ValueError):
        raise
    except Exception as error:  # constructors may raise anything for arbitrary settings
        raise ValueError(f"the network in {place} is damaged: {reason(error)}") from None


def _model(
    folder: Path,
    place: Path,
    config: dict[str, Any],
    data: DataInfo | None,
    conditioning: str | Conditioning | None,
) -> ScoreModel:
    process, predicted = chain_of(config), prediction_of(config)
    inner = read_network(place, MODEL)
    settings: Mapping[str, Any] = inner.config  # type: ignore[assignment]
    shape = _item_shape(settings, type(inner).__name__, place) if data is None else data.shape
    channels, twice = settings["out_channels"], bool(settings["out_channels"] == 2 * shape[0])
    variance = str(config.get("variance_type") or "fixed_small")
    learned = choose(VARIANCE_TYPES, variance, "variance_type") == "learned" and twice
    if channels != shape[0] and not (twice and variance.startswith("learned")):
        raise ValueError(
            f"the network in {place} returns {channels} channels for {shape[0]} (variance_type {variance})"
        )
    network = DiffusersNetwork.of(inner, config, shape[0] if twice and not learned else None)
    network.check(shape)
    levels = None if any((place.parent / name).is_dir() for name in _AUTOENCODERS) else 256
    return ScoreModel(
        network,
        process,
        predicted,
        conditioning=("interpolated" if network.table else "label") if conditioning is None else conditioning,
        data=DataInfo(shape, levels, name=folder.resolve().name) if data is None else data,
        learned_variance=learned,
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: if the file holds none.
    """
    try:
        return read_document(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {reason(error)}") from None


def _scheduler_config(folder: Path, place: Path) -> dict[str, Any]:
    places = (folder / "scheduler", folder, place.parent / "scheduler")
    for candidate in places:
        if (candidate / SCHEDULER_FILE).is_file():
            return _read_json(candidate / SCHEDULER_FILE)
    raise FileNotFoundError(
        f"no scheduler in {folder}: neither scheduler/{SCHEDULER_FILE} nor {SCHEDULER_FILE}; it says on which chain "
        "the network was trained"
    )


def _weight_files(place: Path) -> list[Path]:
    """Return the files of the weights: those without a variant, or those of the only variant.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if there are pickles alone, or several variants.
    """
    variants: dict[str, list[Path]] = {}
    for path in sorted(place.iterdir()):
        if found := _WEIGHTS.fullmatch(path.name):
            variants.setdefault(found["variant"] or "", []).append(path)
    if not variants:
        pickles = [path.name for path in sorted(place.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        if pickles:
            raise ValueError(
                f"{place / pickles[0]} is a pickle, which could execute anything: only safetensors are read "
                "(diffusers' own save_pretrained writes them)"
            )
        raise FileNotFoundError(f"no weights in {place}: no diffusion_pytorch_model.safetensors")
    if "" not in variants and len(variants) > 1:
        raise ValueError(f"{place} holds the variants {', '.join(variants)} of its weights: leave one of them there")
    files = variants.get("") or next(iter(variants.values()))
    return [path for path in files if "-of-" not in path.name] or files


def read_network(place: Path, allowed: AllowedClasses) -> nn.Module:
    """Read the network of a folder; the weights must be exactly those of the network.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if it is of another class, or damaged.
    """
    settings = _read_json(place / NETWORK_FILE)
    cls = diffusers_class(settings.get("_class_name"), allowed)
    check_timesteps(cls, settings)
    files = _weight_files(place)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        shapes |= {_renamed(name): shape for name, shape in read_shapes(path).items()}
    try:
        inner = build_for(lambda: construct(cls, settings), shapes)
        weights = {_renamed(name): value for path in files for name, value in read_tensors(path)[0].items()}
        single = {name: value.float() if value.is_floating_point() and value.itemsize < 4 else value
                  for name, value in weights.items()}  # fmt: skip
        fill(inner, single)
    except OSError:
        raise
    except Exception as error:  # constructors may raise anything for arbitrary settings
        raise ValueError(f"the network in {place} is damaged: {reason(error)}") from None
    return inner


def _renamed(name: str) -> str:
    """Return the present name of a weight."""
    *path, layer, kind = name.split(".") if name.count(".") > 1 else ("", "", name)
    if layer not in _RENAMED or not any("attentions" in part for part in path):
        return name
    return ".".join((*path, _RENAMED[layer], kind))


def _item_shape(config: Mapping[str, Any], name: str, place: Path) -> tuple[int, ...]:
    size = config.get("sample_size")
    if size is None:
        raise ValueError(f"the network in {place} does not say its sample_size: give data=DataInfo(shape=...)")
    sides = [size] * _SPATIAL.get(name, 2) if isinstance(size, int) else list(size)
    shape = (config["in_channels"], *sides)
    if not all(isinstance(side, int) and side >= 1 for side in shape) or math.prod(shape) > MOST_ENTRIES:
        raise ValueError(f"the network in {place} is for items of shape {shown(shape)}: no such items are known")
    return shape
