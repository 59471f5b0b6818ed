"""Training as a configuration describes it, from the start or from the state of a run.

A run folder holds ``config.json``, the model (moving average) as ``sdediff.load`` reads it, the model of the least
held-out loss in ``best/``, ``state.safetensors`` to resume from and the states before it, ``metrics.jsonl`` and
``tb/``. A step is a function of the configuration and the state before it: a resumed run equals the uninterrupted run
bit for bit, on one process or several.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from sdediff import checkpoint
from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.data.held_out import check_held_out, save_held_out
from sdediff.files import write
from sdediff.foreign import OwnNetwork
from sdediff.latent.first_stage import FirstStage
from sdediff.training.folder import (
    AUTOENCODER,
    CONFIG,
    TrainingWarning,
    check_folder,
    clear_folder,
    in_saved_units,
    schedule_remark,
)
from sdediff.training.loop import Loop, OnMetrics, OnSample, TrainResult
from sdediff.training.state import Restored, states
from sdediff.training.trackers import Trackers
from sdediff.training.trainer import Trainer


def train(
    config: Config,
    run_dir: str | Path | None,
    *,
    data: Dataset | None = None,
    network: OwnNetwork | None = None,
    first_stage: FirstStage | None = None,
    conditional: bool = False,
    resume: bool = False,
    force: bool = False,
    device: str = "cpu",
    progress: bool = True,
    on_sample: OnSample | None = None,
    on_metrics: OnMetrics | None = None,
) -> TrainResult:
    """Train the model that a configuration describes, and write it to ``run_dir``.

    Started by ``torchrun`` or ``accelerate launch``, every process takes its part of each batch.

    Args:
        config: data, process, network and optimisation.
        run_dir: the folder of the run; ``None`` to write nothing.
        data: the data set that the configuration names, if already loaded; the model's coordinates are those of its
            ``info``, see :func:`~sdediff.data.standardised`.
        network: the network that the configuration names by its import path, a class or a module; see
            :func:`~sdediff.config.build`.
        first_stage: the trained autoencoder of a latent model, or one to be trained further. Without it a latent model
            takes that of ``latent.first_stage`` or trains a VAE first, in the folder ``first_stage`` of the run.
        conditional: whether the network is told the labels of the data, also if it has no parameter ``classes``.
        resume: continue from the state in ``run_dir``, or from the start if the run was stopped before its first state.
        force: replace the run in ``run_dir``.
        device: device of a single process; several processes choose their own, the CPU if this is ``"cpu"``.
        progress: show a progress bar with the losses or, without a terminal, a line now and then.
        on_sample: function called with 16 samples ``(16, *shape)``, in the data's units, and a path without suffix,
            every ``sample_every`` steps and at the end; a picture that it writes there as ``.png`` is shown on the
            board, too.
        on_metrics: function called with the step and the numbers of every line of metrics; if it returns true, the run
            ends after the next step, as by Ctrl-C.

    Raises:
        FileExistsError: if ``run_dir`` holds a run and neither ``resume`` nor ``force`` is set.
        FileNotFoundError: if the data or, with ``resume``, the run is missing.
        ValueError: if the data, the configuration or the state do not fit; in one line.
        FloatingPointError: if the loss blows up; the checkpoints before that stand.

    Warns:
        TrainingWarning: if another checkpoint than the newest is taken, the learning rate takes another course, or a
            held-out likelihood has no value yet.
    """
    folder = None if run_dir is None else Path(run_dir)
    if conditional and config.model.kind != "score":
        raise ValueError(f"only score models are told labels or conditions, not models of kind {config.model.kind!r}")
    if network is not None:
        config = config.with_network(network)
    if folder is not None:
        check_folder(folder, config, resume=resume, force=force)
    elif resume:
        raise ValueError("nothing to resume without the folder of a run")
    if data is None:
        data = config.data.load()
    if resume and folder is not None:
        check_held_out(data, folder)
        data = in_saved_units(data, folder)
    if config.model.kind == "latent" and first_stage is None:
        if config.latent.first_stage is not None:
            first_stage = load_first_stage(config.latent.first_stage, device)
        else:
            trained = _train_first_stage(
                config, folder, data, resume=resume, force=force, device=device, progress=progress
            )
            if trained.interrupted:
                return trained
            first_stage = trained.model  # type: ignore[assignment]  # see TrainResult
    trackers = Trackers(config.training.trackers)
    trainer = Trainer(
        config,
        data,
        device,
        network=network,
        first_stage=first_stage,
        conditional=conditional,
        trackers=trackers.names,
        folder=folder,
    )
    begin = _restore(trainer, folder) if resume and folder is not None else Restored(0)
    if begin.step > (steps := config.training.steps):
        raise ValueError(f"the run in {folder} has done {begin.step} steps, more than training.steps = {steps}")
    if trainer.main and not resume and folder is not None:
        clear_folder(folder)
        save_held_out(data, folder)
    trainer.workers.wait_for_everyone()
    return Loop(trainer, trackers, folder, begin, on_sample=on_sample, on_metrics=on_metrics).run(progress=progress)


def load_first_stage(folder: str | Path, device: str) -> FirstStage:
    """Load the autoencoder of a run.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it is another one.
    """
    loaded = checkpoint.load_any(folder, device=device)
    if not isinstance(loaded, FirstStage):
        raise ValueError(f"the model in {folder} is no autoencoder, but a {type(loaded).__name__}")
    return loaded


def _train_first_stage(
    config: Config, folder: Path | None, data: Dataset, *, resume: bool, force: bool, device: str, progress: bool
) -> TrainResult:
    """Train the VAE of a latent model, in a folder of its own in that of the run, where it can be resumed."""
    steps = config.latent.first_stage_steps or config.training.steps
    own = config.updated({"model.kind": "vae", "training.steps": steps, "training.bits_every": 0})
    place = None if folder is None else folder / AUTOENCODER
    if folder is not None and not resume and os.environ.get("RANK", "0") == "0":
        clear_folder(folder)
        save_held_out(data, folder)
        write(folder / CONFIG, config.to_json().encode())  # with which the whole run can be resumed from now on
    begun = place is not None and (place / CONFIG).is_file()
    return train(own, place, data=data, resume=resume and begun, force=force, device=device, progress=progress)


def _restore(trainer: Trainer, folder: Path) -> Restored:
    """Restore the last checkpoint, that of step 0 if the run was stopped before its first checkpoint."""
    if not (any(states(folder)) or (folder / checkpoint.DESCRIPTION).exists()):
        return Restored(0)
    found = trainer.restore(folder)
    remarks = [found.remark, schedule_remark(Config.load(folder / CONFIG), trainer.config, found.step)]
    for line in filter(None, remarks if trainer.main else ()):
        warnings.warn(line, TrainingWarning, stacklevel=4)
    return found
