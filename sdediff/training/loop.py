"""The training loop: steps, metrics, held-out figures, checkpoints and previews, each at its interval."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdediff import checkpoint
from sdediff.files import write
from sdediff.interrupt import Interrupt
from sdediff.progress import Progress
from sdediff.score_model import ScoreModel
from sdediff.training.folder import BEST, CONFIG, PICTURE, SAMPLES, TrainingWarning
from sdediff.training.record import Record, read_record
from sdediff.training.state import Losses, Restored
from sdediff.training.trackers import Trackers
from sdediff.training.trainer import Trainer
from sdediff.types import brief

OnSample = Callable[[Tensor, Path], None]
OnMetrics = Callable[[int, Mapping[str, float]], bool | None]

FIRST_PREVIEW = 60.0
"""Seconds after which the first preview is drawn, if its step has not come."""
BLOWN_UP = 10.0
"""Multiple of the first loss, or of 1 if that is smaller, from which on a run is given up: a network that knows nothing
has a loss of order 1."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """Result of a training run.

    Attributes:
        model: the moving average, in evaluation mode; of a configuration in two stages the autoencoder, VAE or latent
            model (:mod:`sdediff.latent`), for which the type is too narrow, as that of :func:`sdediff.load` is.
        run_dir: the folder of the run; ``None`` if nothing was written.
        steps: number of steps done, resumed ones included.
        seconds: duration of this call.
        loss: mean training loss since the last line of metrics.
        held_out_loss: held-out loss of the moving average, weighted like the training loss.
        interrupted: whether Ctrl-C, SIGTERM, SIGHUP or a callback ended the run early.
        metrics: the lines of metrics, those of a resumed run included: ``step`` and numbers by name.
    """

    model: ScoreModel
    run_dir: Path | None
    steps: int
    seconds: float
    loss: float
    held_out_loss: float
    interrupted: bool
    metrics: tuple[Mapping[str, float], ...] = ()

    __repr__ = brief


class Loop:
    """The steps of a run from one step on, and what is done between them."""

    def __init__(
        self,
        trainer: Trainer,
        trackers: Trackers,
        folder: Path | None,
        begin: Restored,
        *,
        on_sample: OnSample | None,
        on_metrics: OnMetrics | None,
    ) -> None:
        self.trainer, self.settings, self.trackers = trainer, trainer.config.training, trackers
        self.folder, self.begin, self.start = folder, begin.step, time.monotonic()
        self.on_sample, self.on_metrics = on_sample, on_metrics
        self.losses, self.loss, self.held_out = begin.losses, math.nan, math.nan
        lines = read_record(folder) if folder is not None and begin.step else []
        self.first = next((line["loss"] for line in lines if "loss" in line), math.nan)
        self.drawn = self.ended = False
        self.record = Record(folder if trainer.main else None, begin.step)

    def run(self, *, progress: bool) -> TrainResult:
        """Train to the end or to a signal."""
        trainer, settings, step, stop = self.trainer, self.settings, self.begin, False
        if trainer.main and self.folder is not None:
            write(self.folder / CONFIG, trainer.config.to_json().encode())
        self.trackers.start(trainer.workers, trainer.config)
        total, since = torch.zeros((), device=trainer.device), step
        bar = Progress("training", "step", settings.steps, step, show=progress and trainer.main)
        with Interrupt() as interrupt, bar:
            while step < settings.steps and not stop:
                total, step = total + trainer.step(step), step + 1
                stop = trainer.any_process(interrupt.wanted or self.ended)
                end = step == settings.steps or stop
                bar(step, note=self._note(step))
                log = end or _due(step, settings.log_every)
                if log or _due(step, settings.checkpoint_every):
                    self.losses = self.losses.with_more(float(trainer.workers.reduce(total, "mean")), step - since)
                    self._check(self.losses.total / self.losses.steps, step)
                    total, since = torch.zeros_like(total), step
                if log:
                    rate = (step - self.begin) / (time.monotonic() - self.start)
                    numbers = {"learning_rate": trainer.learning_rate(step - 1), "steps_per_second": rate}
                    self._add(step, loss=self.loss, **numbers)
                if _due(step, settings.log_every):  # else, where a signal ended the run, the next line holds them, too
                    self.losses = Losses()
                early = self._preview_is_due()
                if end or early or settings.pauses(step):
                    trainer.gather()
                    if trainer.main:
                        self._measure(step, end=end)
                    self._keep(step, end=end, early=early)
        self.record.close()
        self.trackers.end(trainer.workers)
        trainer.workers.wait_for_everyone()
        held_out = trainer.held_out_loss() if math.isnan(self.held_out) else self.held_out
        seconds, lines = time.monotonic() - self.start, tuple(self.record.lines)
        model: ScoreModel = trainer.finished()  # type: ignore[assignment]  # see TrainResult
        return TrainResult(model, self.folder, step, seconds, self.loss, held_out, stop, lines)

    def _check(self, loss: float, step: int) -> None:
        """Give up a run whose loss blows up, before it is saved.

        Raises:
            FloatingPointError: in one line.
        """
        self.loss = loss
        self.first = loss if math.isnan(self.first) else self.first
        if not math.isfinite(loss) or loss > BLOWN_UP * max(self.first, 1.0):
            begun = f", where it began at {self.first:.3g}" if math.isfinite(loss) else ""
            raise FloatingPointError(
                f"the loss is {loss:.4g} at step {step}{begun}: try a lower training.learning_rate"
            )

    def _measure(self, step: int, *, end: bool) -> None:
        """Measure loss and likelihood of held-out data; a model better than all before is kept."""
        trainer, settings = self.trainer, self.settings
        if end or _due(step, settings.held_out_every):
            self.held_out = trainer.held_out_loss()
            if self.folder is not None and self.held_out < self.record.smallest("held_out_loss"):
                checkpoint.save(trainer.average, self.folder / BEST, force=True)
            self._add(step, held_out_loss=self.held_out)
        if settings.bits_every and (end or _due(step, settings.bits_every)):
            try:
                name, mean, error = trainer.held_out_likelihood(settings.bits_items)
            except FloatingPointError as fault:  # of a network that has learned too little yet
                warnings.warn(f"no likelihood after {step:,} steps: {fault}", TrainingWarning, stacklevel=2)
            else:
                self._add(step, **{name: mean, f"{name}_error": error})

    def _keep(self, step: int, *, end: bool, early: bool) -> None:
        """Write checkpoint and preview."""
        settings = self.settings
        if self.folder is None:
            return
        if end or _due(step, settings.checkpoint_every):
            self.trainer.save(self.folder, step, self.losses)
        if not self.trainer.main or self.on_sample is None or not settings.sample_every:
            return
        if end or early or _due(step, settings.sample_every):
            self._preview(self.folder / SAMPLES, step, self.on_sample)

    def _preview_is_due(self) -> bool:
        """Return whether the first preview comes now, ahead of its step; in all processes where they share weights."""
        wanted = self.trainer.main and self.on_sample is not None and self.folder is not None and not self.drawn
        due = wanted and self.settings.sample_every > 0 and time.monotonic() - self.start > FIRST_PREVIEW
        return self.trainer.any_process(due) if self.trainer.sharded else due

    def _preview(self, folder: Path, step: int, on_sample: OnSample) -> None:
        samples = self.trainer.preview(16)
        folder.mkdir(exist_ok=True)
        path = folder / f"{PICTURE}{step:06d}"
        on_sample(samples, path)
        self.drawn = True
        if (picture := path.with_name(f"{path.name}.png")).is_file():
            self.record.add_picture(step, picture)

    def _add(self, step: int, **numbers: float) -> None:
        """Write a line of metrics, and tell those who want to know."""
        if not self.trainer.main:
            return
        self.record.add(step, **numbers)
        self.trackers.log(self.trainer.workers, step, numbers)
        if self.on_metrics is not None and self.on_metrics(step, numbers):
            self.ended = True

    def _note(self, step: int) -> str:
        """Return the losses evaluated so far and the items a second."""
        losses = {"loss": self.loss, "held out loss": self.held_out}
        texts = [f"{name} {value:.4f}" for name, value in losses.items() if not math.isnan(value)]
        rate = (step - self.begin) * self.settings.batch_size / max(time.monotonic() - self.start, 1e-9)
        return ", ".join([*texts, f"{rate:,.0f} items/s"])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
