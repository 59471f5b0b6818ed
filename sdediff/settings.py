"""The settings of training: the section ``training`` of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sdediff.documents import Entry, Positive, Section

_COUNT_LIMIT = 1 << 31  # of steps or items: more than any run has, and no overflow

Count = Annotated[int, Field(ge=0, lt=_COUNT_LIMIT)]
Natural = Annotated[int, Field(gt=0, lt=_COUNT_LIMIT)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
PRECISIONS: dict[str, str | None] = {"float32": None, "bfloat16": "bf16"}
"""Precisions of training, each by the name of its :class:`~sdediff.execution.Execution`."""


class TrainingSection(Section):
    """The optimisation. Intervals are in steps; 0 means never.

    Attributes:
        steps: optimiser steps.
        batch_size: items a step, over all processes and parts.
        accumulate: parts of a process's share of a batch, whose gradients are added up: the same step in less memory.
        learning_rate: AdamW's rate after the warm-up.
        schedule: course of the rate after the warm-up, an entry of ``SCHEDULES``.
        warmup: steps of linear warm-up.
        weight_decay: AdamW's weight decay.
        clip: bound on the norm of the gradient.
        ema: decay of the moving average of the weights, which is the saved model.
        averages: widths of further averages of the weights, snapshots of which are kept at the checkpoints, so that
            ``sdediff average`` makes a model of any width after the fact; ``[0.05, 0.1]`` is usual.
        time_law: distribution of the noise levels, an entry of ``TIME_LAWS``.
        weighting: weighting of the noise levels, an entry of ``WEIGHTINGS``; ``"auto"`` the one for what the network
            predicts.
        objective: mixture of losses, an entry of ``OBJECTIVES``; those with the bound learn a variance.
        label_dropout: share of the items whose class is withheld, for networks with a parameter ``classes``.
        precision: number type of the network's matrix products in training, by autocast; weights, average, loss and
            everything measured stay in single precision.
        compile: whether the network is compiled by ``torch.compile`` for training.
        channels_last: whether images and volumes are stored with their channels last.
        shard: whether several processes share the weights out among them (FSDP), in place of a whole model in each.
        seed: seed of the weights, the order of the data, the levels and the noise.
        log_every: steps between two lines of metrics.
        held_out_every: steps between two losses on held-out data.
        bits_every: steps between two likelihoods of held-out data: bits/dim of integers, nats of others, with errors.
        bits_items: held-out items of such a likelihood.
        sample_every: steps between two sample pictures; the first is drawn after a minute at the latest.
        checkpoint_every: steps between two checkpoints (one is written at the end in any case).
        keep: checkpoints kept to resume from; beside them stands the model of the least held-out loss.
        trackers: experiment trackers of accelerate, as ``["wandb"]``; TensorBoard and ``metrics.jsonl`` are always
            written.
    """

    steps: Natural = 2000
    batch_size: Natural = 128
    accumulate: Natural = 1
    learning_rate: Positive = 2e-3
    schedule: Entry = "cosine"
    warmup: Count = 100
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.01
    clip: Positive = 1.0
    ema: Share = 0.995
    averages: tuple[Positive, ...] = ()
    time_law: Entry = "uniform"
    weighting: Entry = "auto"
    objective: Entry = "denoising"
    label_dropout: Share = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    channels_last: bool = False
    shard: bool = False
    seed: Seed = 0
    log_every: Count = 20
    held_out_every: Count = 200
    bits_every: Count = 0
    bits_items: Natural = 256
    sample_every: Count = 500
    checkpoint_every: Count = 250
    keep: Natural = 2
    trackers: tuple[str, ...] = ()

    def pauses(self, step: int) -> bool:
        """Return whether anything is measured or written after a step that is not the last."""
        intervals = self.log_every, self.held_out_every, self.bits_every, self.sample_every, self.checkpoint_every
        return any(every > 0 and step % every == 0 for every in intervals)


class LatentSection(Section):
    """Models in two stages: the autoencoder, and the score model on its codes.

    Attributes:
        code: shape of the codes, ``(k,)``, or ``(C, h, w)`` of the last level of a convolutional coder.
        coder: networks of the autoencoder, an entry of ``CODERS``; ``"auto"`` takes the ones for the data's shape.
        observation: law of the data given a code, an entry of ``OBSERVATIONS``; ``"auto"`` the one for the data.
        beta: weight of the divergence from the prior in a VAE's loss; 1 is the bound.
        beta_warmup: steps over which that weight grows from 0.
        free_bits: nats of divergence that each entry of a code may have at no cost.
        first_stage: folder of the run of the autoencoder that a latent model takes; by default it trains its own VAE.
        first_stage_steps: optimiser steps of its own VAE; as many as of the score model by default.
        joint: whether the autoencoder of a latent model is trained further with it, on their common bound.
    """

    code: Annotated[tuple[Natural, ...], Field(min_length=1, max_length=4)] = (16,)
    coder: Entry = "auto"
    observation: Entry = "auto"
    beta: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    beta_warmup: Count = 0
    free_bits: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    first_stage: str | None = None
    first_stage_steps: Natural | None = None
    joint: bool = False
