"""The training loop: batches, loss, optimiser step, moving average, checkpoints and metrics.

A run folder holds ``config.json``, the model (moving average) as ``sdediff.load`` reads it, ``state.safetensors`` to
resume from, ``metrics.jsonl`` and ``tb/``. A step is a function of the configuration and the state before it: a
resumed run equals the uninterrupted run bit for bit, on one process or several.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdediff import checkpoint
from sdediff.config import Config, build
from sdediff.data import Dataset
from sdediff.data.held_out import HELD_OUT, check_held_out, save_held_out
from sdediff.data.units import fit_moments
from sdediff.denoiser import ScoreModel
from sdediff.files import write
from sdediff.generation import sample
from sdediff.interrupt import Interrupt
from sdediff.progress import Progress
from sdediff.training import ema
from sdediff.training.batches import Batches, held_out_batch
from sdediff.training.objective import Objective
from sdediff.training.record import BOARD, METRICS, Record
from sdediff.training.state import STATE, load_state, save_state

CONFIG, SAMPLES, PICTURE = "config.json", "samples", "step_"
OnSample = Callable[[Tensor, Path], None]
_MAY_CHANGE = {"steps", "log_every", "held_out_every", "sample_every", "checkpoint_every"}


@dataclass(frozen=True, eq=False)
class TrainResult:
    """Result of a training run.

    Attributes:
        model: the moving average, in evaluation mode.
        run_dir: the folder of the run.
        steps: number of steps done, resumed ones included.
        seconds: duration of this call.
        loss: mean training loss since the last line of metrics.
        held_out_loss: held-out loss of the moving average, weighted like the training loss.
        interrupted: whether Ctrl-C, SIGTERM or SIGHUP ended the run early.
    """

    model: ScoreModel
    run_dir: Path
    steps: int
    seconds: float
    loss: float
    held_out_loss: float
    interrupted: bool


def train(
    config: Config,
    run_dir: str | Path,
    *,
    data: Dataset | None = None,
    resume: bool = False,
    force: bool = False,
    device: str = "cpu",
    progress: bool = True,
    on_sample: OnSample | None = None,
) -> TrainResult:
    """Train a model and write it to ``run_dir``.

    Started by ``torchrun`` or ``accelerate launch``, every process takes its part of each batch.

    Args:
        config: data, process, network and optimisation.
        run_dir: the folder of the run.
        data: the data set that the configuration names, if already loaded; the model's coordinates are those of its
            ``info``, see :func:`~sdediff.data.standardised`.
        resume: continue from the state in ``run_dir``, or from the start if the run was stopped before its first state.
        force: replace the run in ``run_dir``.
        device: device of a single process; several processes choose their own, the CPU if this is ``"cpu"``.
        progress: show a progress bar with the losses or, without a terminal, a line now and then.
        on_sample: function called with 16 samples ``(16, *shape)``, in the data's units, and a path without suffix,
            every ``sample_every`` steps and at the end.

    Raises:
        FileExistsError: if ``run_dir`` holds a run and neither ``resume`` nor ``force`` is set.
        FileNotFoundError: if the data or, with ``resume``, the run is missing.
        ValueError: if the data, the configuration or the state do not fit; in one line.
    """
    folder = Path(run_dir)
    _check_folder(folder, config, resume=resume, force=force)
    if data is None:
        data = config.data.load()
    if resume:
        check_held_out(data, folder)
        data = _in_saved_units(data, folder)
    run = _Trainer(config, folder, device, data)
    step = run.restore() if resume else 0
    if step > config.training.steps:
        raise ValueError(
            f"the run in {folder} has done {step} steps, more than training.steps = {config.training.steps}"
        )
    if run.main and not resume:
        _clear(folder)
        save_held_out(data, folder)
    run.workers.wait_for_everyone()
    return run.train(step, progress=progress, on_sample=on_sample)


class _Trainer:
    """Model, moving average, objective, optimiser and batches of a run."""

    def __init__(self, config: Config, folder: Path, device: str, data: Dataset) -> None:
        from accelerate import Accelerator  # slow to import, and used nowhere else

        settings = config.training
        self.config, self.folder = config, folder
        self.workers: Any = Accelerator(cpu=torch.device(device).type == "cpu")
        self.main = bool(self.workers.is_main_process)
        self.device = torch.device(device) if self.workers.num_processes == 1 else self.workers.device
        self.model = build(config, data.info, fit_moments(data.train, data.info)).to(self.device)
        self.objective = Objective(self.model.sde, settings.time_law, settings.weighting, settings.objective)
        self.average = copy.deepcopy(self.model).requires_grad_(requires_grad=False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=settings.weight_decay
        )
        self.batches = Batches(
            data.train,
            data.info,
            settings.batch_size,
            settings.seed,
            rank=self.workers.process_index,
            world=self.workers.num_processes,
            device=self.device,
            flips=config.data.flips,
        )
        self.held_out = held_out_batch(data.held_out, data.info, settings.seed, device=self.device)
        self.trained: Any = self.workers.prepare_model(self.model, device_placement=False)

    def train(self, step: int, *, progress: bool, on_sample: OnSample | None) -> TrainResult:
        """Train from ``step`` to the end or to a signal."""
        settings, start, begin = self.config.training, time.monotonic(), step
        record = None
        if self.main:
            write(self.folder / CONFIG, self.config.to_json().encode())
            record = Record(self.folder, step)
        total, count, loss, held_out, stop = torch.zeros((), device=self.device), 0, math.nan, math.nan, False
        bar = Progress("training", "step", settings.steps, step, show=progress and self.main)
        with Interrupt() as interrupt, bar:
            while step < settings.steps and not stop:
                total, count, step = total + self.step(step), count + 1, step + 1
                stop = self._any_process(interrupt.wanted)
                end = step == settings.steps or stop
                bar(step, note=_losses(loss=loss, held_out=held_out))
                if end or _due(step, settings.log_every):
                    loss = float(self.workers.reduce(total / count, "mean"))
                    total, count = torch.zeros_like(total), 0
                    if not math.isfinite(loss):
                        raise FloatingPointError(
                            f"the loss is {loss} at step {step}: try a lower training.learning_rate"
                        )
                    if record:
                        rate = (step - begin) / (time.monotonic() - start)
                        record.add(step, loss=loss, learning_rate=self._learning_rate(step - 1), steps_per_second=rate)
                if record and (end or _due(step, settings.held_out_every)):
                    held_out = self.held_out_loss()
                    record.add(step, held_out_loss=held_out)
                if record and (end or _due(step, settings.checkpoint_every)):
                    self.save(step)
                if record and on_sample and settings.sample_every and (end or _due(step, settings.sample_every)):
                    self._sample(step, on_sample)
        if record:
            record.close()
        self.workers.wait_for_everyone()
        held_out = self.held_out_loss() if math.isnan(held_out) else held_out
        seconds = time.monotonic() - start
        return TrainResult(self.average.eval(), self.folder, step, seconds, loss, held_out, stop)

    def step(self, step: int) -> Tensor:
        """Take one optimiser step and return the mean loss of this process's share of the batch."""
        settings = self.config.training
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        self.trained.train()
        batch = self.batches(step)
        loss = self.objective.loss(self.trained, batch.x0, batch.u, batch.eps).mean()
        self.optimizer.zero_grad()
        self.workers.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimizer.step()
        ema.update(self.average, self.model, settings.ema, step)
        return loss.detach()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean loss of the moving average on held-out items, with the same draws every time."""
        batch = self.held_out
        return float(self.objective.loss(self.average.eval(), batch.x0, batch.u, batch.eps).mean())

    def save(self, step: int) -> None:
        """Write the state and the model, in this order: a model older than the state is rebuilt from it."""
        save_state(self.folder, step, self.model, self.average, self.optimizer)
        checkpoint.save(self.average, self.folder, force=True)

    def restore(self) -> int:
        """Restore the last checkpoint and return its step, 0 if the run was stopped before its first checkpoint."""
        if not ((self.folder / STATE).exists() or (self.folder / checkpoint.DESCRIPTION).exists()):
            return 0
        step = load_state(self.folder, self.model, self.average, self.optimizer)
        if self.main and step == self.config.training.steps:  # no further step will write the model
            checkpoint.save(self.average, self.folder, force=True)
        return step

    def _sample(self, step: int, on_sample: OnSample) -> None:
        shape = self.batches.info.shape
        samples = sample(self.average.eval(), (16, *shape), seed=self.config.training.seed)
        (self.folder / SAMPLES).mkdir(exist_ok=True)
        on_sample(samples, self.folder / SAMPLES / f"{PICTURE}{step:06d}")

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then half a cosine to zero."""
        settings = self.config.training
        warm = min(1.0, (step + 1) / (settings.warmup + 1))
        return settings.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))

    def _any_process(self, flag: bool) -> bool:
        """Return whether the flag is set in any process: all must stop at the same step."""
        if self.workers.num_processes == 1:
            return flag
        return bool(self.workers.reduce(torch.tensor(float(flag), device=self.device), "sum") > 0.0)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _in_saved_units(data: Dataset, folder: Path) -> Dataset:
    """Return the data in the coordinates of the model saved in a run's folder, whatever a new fit would give."""
    saved = checkpoint.read_info(folder) if (folder / checkpoint.DESCRIPTION).is_file() else None
    return data if saved is None else replace(data, info=data.info._replace(shift=saved.shift, scale=saved.scale))


def _check_folder(folder: Path, config: Config, *, resume: bool, force: bool) -> None:
    """Refuse a folder that holds another run, or none to resume."""
    if resume and force:
        raise ValueError("resume and force exclude each other: go on with the run, or replace it")
    if not resume:
        if (folder / CONFIG).exists() and not force:
            raise FileExistsError(f"{folder} already holds a run; resume goes on with it, force replaces it")
        return
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"nothing to resume in {folder}: {CONFIG} is missing")
    before, now = (c.model_dump() for c in (Config.load(folder / CONFIG), config))
    changed = [
        f"{section}.{key}"
        for section in now
        for key in {**before[section], **now[section]}
        if before[section].get(key) != now[section].get(key) and not (section == "training" and key in _MAY_CHANGE)
    ]
    if changed:
        raise ValueError(f"the run in {folder} was started with other settings: {', '.join(changed)}")


def _clear(folder: Path) -> None:
    """Remove the files of an earlier run, and only those."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, HELD_OUT, checkpoint.DESCRIPTION, checkpoint.TENSORS, STATE, METRICS):
        (folder / name).unlink(missing_ok=True)
    for picture in (folder / SAMPLES).glob(f"{PICTURE}*"):  # files that users wrote there stay
        picture.unlink()
    shutil.rmtree(folder / BOARD, ignore_errors=True)


def _losses(**losses: float) -> str:
    """Format the losses evaluated so far."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in losses.items() if not math.isnan(value))
