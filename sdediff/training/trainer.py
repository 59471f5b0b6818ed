"""A model in training: its moving average, optimiser and batches, on one process or several."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdediff import checkpoint
from sdediff.conditions import Condition
from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.execution import Execution
from sdediff.extras import extra
from sdediff.foreign import OwnNetwork
from sdediff.latent.first_stage import FirstStage
from sdediff.networks.told import Told
from sdediff.settings import PRECISIONS, TrainingSection
from sdediff.training import ema
from sdediff.training.averages import Averages
from sdediff.training.batches import Batch, Batches, held_out_batch
from sdediff.training.labels import Labels, conditions_of
from sdediff.training.schedules import rate_factor
from sdediff.training.sharding import gather, shard
from sdediff.training.state import Losses, Restored, restore, save_state
from sdediff.training.task import HeldOut, Model, Task
from sdediff.training.tasks import make_task


class _Losses(nn.Module):
    """The losses of a batch as one forward, which several processes wrap."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.model, self._task = model, task

    def forward(self, batch: Batch, condition: Condition, step: int) -> Tensor:
        """Return the loss of each item, ``(B,)``."""
        return self._task.loss(self.model, batch, condition, step)


class Trainer:
    """Model, moving average, objective, optimiser and batches of a run.

    Args:
        config: the configuration.
        data: the data.
        device: device of a single process; several processes choose their own, the CPU if this is ``"cpu"``.
        network: the network that the configuration names by its import path.
        first_stage: the autoencoder on whose codes a latent model is trained.
        conditional: whether the network is told the labels of the data, also if it has no parameter ``classes``.
        trackers: names of experiment trackers.
        folder: folder of the trackers' files.

    Raises:
        ValueError: if the data, the configuration or the number of processes do not fit; in one line.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        device: str,
        *,
        network: OwnNetwork | None = None,
        first_stage: FirstStage | None = None,
        conditional: bool = False,
        trackers: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        with extra("train"):
            from accelerate import Accelerator  # slow to import

        settings = config.training
        self.config, self.data = config, data
        self.workers: Any = Accelerator(
            cpu=torch.device(device).type == "cpu", log_with=list(trackers) or None, project_dir=folder
        )
        _check_distribution(str(self.workers.distributed_type.value))
        self.main = bool(self.workers.is_main_process)
        self.device = torch.device(device) if self.workers.num_processes == 1 else self.workers.device
        self.task = make_task(config, data, self.device, network=network, first_stage=first_stage)
        untrained = self.task.model
        self.model = self.task.executed(_execution(settings, data.info.shape))
        self.average = copy.deepcopy(untrained).requires_grad_(requires_grad=False)  # measured in single precision
        self._averaged = self.task.averaged(self.model) if settings.averages else self.model
        self.averages = Averages(self._averaged, settings.averages)
        rank, world = self.workers.process_index, self.workers.num_processes
        self.sharded = settings.shard and world > 1
        self.moving, self.trained = self._distributed(_Losses(self.task, self.model))
        self.optimizer = _optimizer(self.model, settings.weight_decay)
        self.batches = Batches(
            data.train,
            data.info,
            settings.batch_size,
            settings.seed,
            rank=rank,
            world=world,
            device=self.device,
            flips=config.data.flips,
            noise_shape=self.task.noise_shape,
        )
        share = settings.batch_size // world
        if share % settings.accumulate:
            raise ValueError(f"{share} items of a batch cannot be shared evenly by {settings.accumulate} parts")
        self._share = slice(rank * share, (rank + 1) * share)
        self.held_out = held_out_batch(
            data.held_out, data.info, settings.seed, device=self.device, noise_shape=self.task.noise_shape
        )
        self.told = self.task.told
        self.labels, self._held_out_condition = self._conditions(conditional)

    def _distributed(self, losses: nn.Module) -> tuple[nn.Module, Any]:
        """Return the average that the steps move, and the model as all processes train it."""
        if not self.sharded:
            return self.average, self.workers.prepare_model(losses, device_placement=False)
        moving, world = copy.deepcopy(self.average), self.workers.num_processes
        for module in (moving, *self.averages.networks, losses):
            shard(module, self.device, world)
        return moving, losses

    def gather(self) -> None:
        """Put the parts of the moving average together, in all processes, before it is measured."""
        if self.sharded:
            gather(self.average, self.moving)

    def _conditions(self, conditional: bool) -> tuple[Labels | None, Condition | None]:
        """Return the conditions of the training items and of held-out ones, if the network is told any."""
        data, settings = self.data, self.config.training
        if self.told == Told() and not conditional:
            return None, None
        rows = conditions_of(self.told, data.train_labels, data.train_condition, len(data.train))
        held_out = conditions_of(self.told, data.held_out_labels, data.held_out_condition, len(data.held_out))
        return Labels(rows, self.told, settings.seed, settings.label_dropout), held_out

    def step(self, step: int) -> Tensor:
        """Take one optimiser step and return the mean loss of this process's share of the batch."""
        settings = self.config.training
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.trained.train()
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        parts = list(self._parts(step))
        for number, (batch, condition) in enumerate(parts, start=1):
            last = self.sharded or number == len(parts)  # no process keeps the gradients of all weights
            with nullcontext() if last else self.workers.no_sync(self.trained):
                loss = self.trained(batch, condition, step).mean() / len(parts)
                self.workers.backward(loss)
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimizer.step()
        ema.update(self.moving, self.model, settings.ema, step)
        self.averages.update(self._averaged, step)
        return total

    def _parts(self, step: int) -> Iterator[tuple[Batch, Condition]]:
        """Yield the parts of this process's share of a batch, each with the condition of its items."""
        count, whole = self.config.training.accumulate, self.batches(step)
        rows = Condition() if self.labels is None else self.labels(step, self.batches.indices(step)).rows(self._share)
        for i, fields in enumerate(zip(*(tensor.chunk(count) for tensor in whole), strict=True)):
            yield Batch(*fields), rows.map(lambda value, i=i: value.chunk(count)[i])  # type: ignore[misc]

    def held_out_condition(self, count: int) -> Condition:
        """Return the condition of the first held-out items, from the first one again where they are too few."""
        rows = self._held_out_condition
        return Condition() if rows is None else rows.rows(torch.arange(count) % len(self.data.held_out))

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean loss of the moving average on held-out items, with the same draws every time.

        The network gets as many items at a time as in training, which the device is known to hold.
        """
        batch, count = self.held_out, len(self.held_out.x0)
        model, condition = self.average.eval(), self.held_out_condition(count)
        size = (self._share.stop - self._share.start) // self.config.training.accumulate
        total = 0.0
        for first in range(0, count, size):
            part = slice(first, first + size)
            loss = self.task.loss(model, Batch(*(field[part] for field in batch)), condition.rows(part), None)
            total += float(loss.sum())
        return total / count

    def held_out_likelihood(self, count: int) -> HeldOut:
        """Return the likelihood of the first held-out items: bits/dim of integers, nats in the data's units of others.

        The moving average's, with the same draws every time; the error is that of the mean over the data's population.
        """
        x = self.data.held_out[:count].to(self.device)
        return self.task.likelihood(self.average.eval(), x, self.config.training.seed, self.held_out_condition(len(x)))

    def preview(self, count: int) -> Tensor:
        """Return samples of the moving average under the conditions of the first held-out items."""
        seed = self.config.training.seed
        return self.task.sample(self.average.eval(), count, seed, self.held_out_condition(count))

    def finished(self) -> Model:
        """Return the moving average in evaluation mode, as trainable as the model is, so that it can be trained on."""
        for averaged, trained in zip(self.average.parameters(), self.model.parameters(), strict=True):
            averaged.requires_grad_(trained.requires_grad)
        model: Model = self.average.eval()
        return model

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        settings = self.config.training
        return settings.learning_rate * rate_factor(settings.schedule, settings.warmup, step, settings.steps)

    def save(self, folder: Path, step: int, losses: Losses) -> None:
        """Write the state and the model, in this order: a model older than the state is rebuilt from it.

        All processes take part, and the main one writes.
        """
        self.averages.save(folder, step, main=self.main)
        save_state(
            folder,
            step,
            self.model,
            self.moving,
            self.optimizer,
            losses=losses,
            further=self.averages.networks,
            keep=self.config.training.keep,
            main=self.main,
        )
        if self.main:
            checkpoint.save(self.average, folder, force=True)

    def restore(self, folder: Path) -> Restored:
        """Restore the newest checkpoint that can be read."""
        further = self.averages.networks
        found = restore(folder, self.model, self.moving, self.optimizer, further=further, main=self.main)
        self.gather()
        if self.main and found.step == self.config.training.steps:  # no further step will write the model
            checkpoint.save(self.average, folder, force=True)
        return found

    def any_process(self, flag: bool) -> bool:
        """Return whether the flag is set in any process: all must stop at the same step."""
        if self.workers.num_processes == 1:
            return flag
        return bool(self.workers.reduce(torch.tensor(float(flag), device=self.device), "sum") > 0.0)


def _check_distribution(kind: str) -> None:
    """Refuse ways to share a model out that are a launcher's, not the configuration's.

    Raises:
        ValueError: naming the way, and the cure.
    """
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(
            f"{kind} of the launcher is not supported: to share the weights out among processes, start plain ones "
            "(torchrun) with --set training.shard=true"
        )


def _optimizer(model: nn.Module, decay: float) -> torch.optim.Optimizer:
    """Return AdamW, in one pass over all weights where torch has one for them."""
    weights = [*model.parameters()]
    fused = all(weight.is_floating_point() and weight.device.type in ("cpu", "cuda") for weight in weights)
    return torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.99), weight_decay=decay, fused=fused or None)


def _execution(settings: TrainingSection, shape: tuple[int, ...]) -> Execution:
    """Return how the network is run in training.

    Raises:
        ValueError: for channels last of items without channels in two or three dimensions.
    """
    if settings.channels_last and len(shape) not in (3, 4):
        raise ValueError(f"channels_last is for images (C, H, W) and volumes (C, D, H, W), not items {shape}")
    return Execution(PRECISIONS[settings.precision], settings.compile, settings.channels_last)
