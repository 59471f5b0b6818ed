"""``train``: from data of any form, and a network by name, place or object, to a trained model and its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sdediff import plots
from sdediff.conditions import Condition, ConditionLike
from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.data.dataset import Items, split
from sdediff.data.entries import as_items, info_of
from sdediff.data.units import standardised
from sdediff.devices import pick_device
from sdediff.extras import require
from sdediff.foreign import OwnNetwork, imported, is_import_path
from sdediff.latent.autoencoders import kind_of
from sdediff.latent.first_stage import FirstStage
from sdediff.numerics import choose
from sdediff.settings import LatentSection, TrainingSection
from sdediff.training.conditional import conditional_config
from sdediff.training.loop import OnMetrics, OnSample, TrainResult
from sdediff.training.run import train as train_configuration

GIVEN = "given"
"""Name of data that were handed over, in a run's configuration."""

_SHORT = {
    "sde": "sde.name",
    "prediction": "model.prediction",
    "conditioning": "model.conditioning",
    "model": "model.kind",
    **{name: f"latent.{name}" for name in LatentSection.model_fields},
    **{name: f"training.{name}" for name in TrainingSection.model_fields},
}
"""Settings by a short name."""


def train(
    data: Dataset | ArrayLike | Tensor | str | Path,
    network: str | OwnNetwork | FirstStage = "auto",
    run: str | Path | None = None,
    *,
    condition: ConditionLike = None,
    config: Config | None = None,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
    progress: bool = True,
    on_sample: OnSample | None = None,
    on_metrics: OnMetrics | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a model on data: a score model, or by ``model="vae"``, ``"ae"`` or ``"latent"`` one of two stages.

    Args:
        data: items ``(n, *shape)``, a tensor or an array: integers are levels ``0 .. K - 1`` (bytes always 256), images
            have their channels first, and the columns of continuous rows are standardised inside; a name or a path, as
            on the command line; or a :class:`~sdediff.data.Dataset`, with a hold-out of its own. Of items a fifth is
            held out.
        network: the network of a score model: a name of ``NETWORKS``, ``"auto"`` for the one that suits the shape,
            ``"package.module:Class"``, which is imported, a class, or a module, which is copied with its weights. It is
            called as ``network(x, half_log_snr, *condition)`` unless ``conditioning=`` says otherwise, and a class is
            made with those of ``shape``, ``classes``, ``features`` and ``outputs`` that it takes. Or an autoencoder or
            a VAE (:mod:`sdediff.latent`), which is copied and trained further, or frozen with ``model="latent"``.
        run: folder for the run: settings, metrics, checkpoints, pictures. Without one nothing is written.
        condition: what the network is told of each item, one row an item: labels ``0, 1, ...``, ``(n,)``, or floats,
            as vectors ``(n, D)``; a tensor, or a tuple or a dict of several, ``{"label": labels, "vector": vectors}``:
            the arguments of the network beside state and noise level.
            Labels of a data set by name or path are used where a setting ``network.classes`` says how many there are.
        config: configuration to start from; the default one if not given.
        resume: continue the run in the folder, bit for bit.
        force: replace the run in the folder.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"`` for the fastest.
        progress: show a progress bar with the losses or, without a terminal, a line now and then.
        on_sample: function called with 16 samples ``(16, *shape)`` and a path without suffix at the intervals of
            ``sample_every``; by default it draws a picture.
        on_metrics: function called with the step and the numbers of every line of metrics; if it returns true, the run
            ends after the next step, as by Ctrl-C.
        **settings: ``model``, the kind of model, and of those in two stages ``code``, ``coder``, ``observation`` and
            everything else of :class:`~sdediff.settings.LatentSection`; ``steps``, ``batch_size``, ``learning_rate``
            and everything else of :class:`~sdediff.settings.TrainingSection`; ``sde``, ``prediction``,
            ``conditioning``; others by their full names: ``**{"network.width": 64, "sde.beta_max": 10.0}``.

    Returns:
        The model, the moving average of the weights, in evaluation mode (``.model``), and its run: ``.run_dir``,
        ``.steps``, ``.loss``, ``.held_out_loss``, ``.metrics``.

    Raises:
        FileExistsError: if the folder holds a run and neither ``resume`` nor ``force`` is set.
        ValueError: for data, a network or settings that do not fit, or where the extra ``train`` is not installed; in
            one line.
        FloatingPointError: if the loss blows up.

    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> run = sdediff.train(x, steps=20, batch_size=32, progress=False, device="cpu")
    >>> sdediff.sample(run.model, (4, 2), steps=5).shape
    torch.Size([4, 2])
    """
    require("train", *(("plots",) if run is not None and on_sample is None else ()))
    changes = {_full_name(name): value for name, value in settings.items()}
    own: OwnNetwork | None = None
    first_stage: FirstStage | None = None
    if isinstance(network, FirstStage):
        first_stage = network
        if changes.get("model.kind") != "latent":
            changes["model.kind"] = kind_of(network)
    elif not isinstance(network, str):
        own = network
    elif is_import_path(network):
        own = imported(network)
    elif network != "auto" or config is None:
        changes["network.name"] = network
    if isinstance(data, str | Path):
        changes["data.name"] = str(data)
    else:
        changes["data.name"] = data.info.name or GIVEN if isinstance(data, Dataset) else GIVEN
    chosen = (Config() if config is None else config).updated(changes)
    items = _dataset(data, chosen, condition)
    if condition is not None:
        chosen = conditional_config(chosen, own, items)

    def draw(samples: Tensor, path: Path) -> None:
        plots.picture(samples, items.info, path.with_name(f"{path.name}.png"), reference=items.held_out)

    return train_configuration(
        chosen,
        run,
        data=items,
        network=own,
        first_stage=first_stage,
        conditional=condition is not None,
        resume=resume,
        force=force,
        device=str(pick_device(device)),
        progress=progress,
        on_sample=draw if on_sample is None else on_sample,
        on_metrics=on_metrics,
    )


def _full_name(name: str) -> str:
    """Return the full name of a setting.

    Raises:
        ValueError: for an unknown short name.
    """
    return name if "." in name else choose(_SHORT, name, "setting")


def _dataset(data: object, config: Config, condition: object) -> Dataset:
    """Return data as a data set, the condition of each item as its label.

    Raises:
        ValueError: if they cannot be used.
    """
    if isinstance(data, str | Path):
        data = config.data.load()
    if isinstance(data, Dataset):
        if condition is not None:
            raise ValueError("a data set has labels of its own: condition= is for items given as a tensor or an array")
        return data
    x, told = as_items(_array(data), "the data"), _condition(condition)
    for rows in told.tensors():
        if len(rows) != len(x):
            raise ValueError(f"the condition has {len(rows)} rows for {len(x)} items: give one row an item")
    only = [*told.tensors()]
    label = only[0] if len(only) == 1 and told.named.keys() <= {"label", "vector"} else None
    info = info_of(GIVEN, x)
    found = split(Items(x, label), info, config.data.seed)
    found = replace(found, info=standardised(found.train, info)) if config.data.standardise else found
    if label is not None or not told:
        return found
    parts = [told.rows(np.asarray(ids, dtype=np.int64)) for ids in (found.train_ids, found.held_out_ids)]
    return replace(found, train_condition=parts[0], held_out_condition=parts[1])


def _array(values: object) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a tensor or anything like an array as an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype in (torch.bfloat16, torch.float16) else values.numpy()
    return np.asarray(values)


def _condition(given: ConditionLike) -> Condition:
    """Return what is given as a condition of labels, int64 ``(n,)``, and floats ``(n, ...)``."""
    if isinstance(given, Mapping):
        return Condition.of({name: _rows(value) for name, value in given.items()})
    several = given if isinstance(given, tuple) else () if given is None else (given,)
    return Condition.of(tuple(_rows(value) for value in several))


def _rows(values: object) -> Tensor:
    """Return one tensor of a condition as labels, int64 ``(n,)``, or floats ``(n, ...)``."""
    array = _array(values)
    if array.dtype.kind not in "biuf" or array.ndim < 1:
        raise ValueError(f"a condition is labels or vectors, one row an item, not {array.shape} of {array.dtype}")
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
