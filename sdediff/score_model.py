"""The model that makes a denoiser of a network, a process and a prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sdediff.conditioning import CONDITIONINGS, ByLevel, Conditioning
from sdediff.conditions import Condition, ConditionLike, Rows
from sdediff.data.units import check_units
from sdediff.denoiser import Denoiser
from sdediff.execution import Execution, NetworkRunner
from sdediff.foreign import Equivariance, check_constant, modules_of, twin_of
from sdediff.gaussian import Moments
from sdediff.instants import chain_steps
from sdediff.networks.told import Told
from sdediff.numerics import choose
from sdediff.parametrization import PREDICTIONS, Prediction, split_output
from sdediff.sde import SDE
from sdediff.types import DataInfo, Level, Split


class ScoreModel(Denoiser):
    """A denoiser of a network, a process and a prediction.

    Args:
        network: any callable ``(x, t, *condition) -> tensor`` of the shape of ``x``; ``t`` has shape ``(B,)`` and lies
            in [0, 1]. The modules that a function, partial or bound method runs are found and belong to the model:
            their parameters, dtype, device and mode are the model's.
        sde: the forward process.
        prediction: ``"epsilon"``, ``"sample"``, ``"v_prediction"``, ``"score"``, ``"flow"`` (noise - data) or
            ``"reversed_flow"`` (data - noise), ``"edm"`` with the conditioning ``"edm"`` (F of Karras et al. 2022), or
            a :class:`~sdediff.parametrization.Prediction`, as ``EDM(sigma_data)``.
        conditioning: inputs of the network: ``"time"`` for ``(x, t)``, ``"reversed_time"`` for ``(x, 1 - t)``;
            ``"logsnr"`` for ``(x / sqrt(alpha^2 + sigma^2), lambda)``, which makes it independent of the schedule.
            Networks that count the steps of a chain (timestep k = 0 .. N-1 is ``t = (k + 1) / N``) take ``"label"`` for
            the real number ``t N - 1``, or, if they take integers alone, ``"interpolated"`` (two forwards between
            instants, see :mod:`sdediff.conditioning`) or ``"instants"`` (an error between them). Or a
            :class:`~sdediff.conditioning.Conditioning`: ``ByLabel(offset=1)`` counts from 1.
        moments: mean and covariance of the data, for the moment-matched prior.
        data: shape, levels, range and units of the data, for sampling without a shape and for bits/dim.
        learned_variance: whether the network returns twice the channels (dimension 1): the prediction, and v in [-1, 1]
            with the place of the reverse step's log-variance, ``Split.fraction = (v + 1) / 2``.
        module: module that a function runs, if it cannot be found.

    Raises:
        ValueError: for an unknown prediction or conditioning, or labels without a chain; in use, if the output is no
            tensor of the state's shape (with twice the channels for a learned variance), or has no gradient where a
            likelihood needs one, although it depends on the state.

    >>> model = sdediff.ScoreModel(lambda x, t: torch.zeros_like(x), sdediff.VPSDE(), "epsilon")
    >>> model.score(torch.ones(1, 2), 0.5)
    tensor([[-0., -0.]])
    """

    def __init__(
        self,
        network: Callable[..., Any],
        sde: SDE,
        prediction: str | Prediction = "epsilon",
        *,
        conditioning: str | Conditioning = "time",
        moments: Moments | None = None,
        data: DataInfo | None = None,
        learned_variance: bool = False,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(sde, SDE):
            raise TypeError(f"the process must be an SDE, as VPSDE() is, not {sde!r}")
        if not callable(network) or isinstance(network, type):
            kind = f"the class {network.__name__}: call it" if isinstance(network, type) else type(network).__name__
            raise TypeError(f"the network must be a module or a function of (x, t), not {kind}")
        if data is not None:
            check_units(data)
        self.network = network
        behind = [module] if module is not None else [] if isinstance(network, nn.Module) else modules_of(network)
        self.behind = nn.ModuleList(behind)
        self.sde = sde
        self.prediction = (
            prediction if isinstance(prediction, Prediction) else choose(PREDICTIONS, prediction, "prediction")
        )
        self.conditioning = conditioning
        self.interface = (
            conditioning
            if isinstance(conditioning, Conditioning)
            else choose(CONDITIONINGS, conditioning, "conditioning")
        )
        if self.interface.labels:
            chain_steps(sde)
        self.moments, self.data = moments, data
        self.learned_variance, self.condition = learned_variance, Condition()
        self.equivariance = None if isinstance(network, nn.Module) else Equivariance(network)
        self.execution, self.runner = Execution(), NetworkRunner()
        self.split_batch = False

    def __repr__(self) -> str:
        """Show the parts, without the network's layers."""
        name = getattr(self.network, "__qualname__", type(self.network).__qualname__)
        count = sum(parameter.numel() for parameter in self.parameters())
        options = f", prediction={type(self.prediction).__name__}, conditioning={self.conditioning!r}"
        options += ", learned_variance=True" * self.learned_variance + f", {self.execution}".rstrip(", ")
        return f"ScoreModel({name} of {count:,} parameters, {self.sde!r}{options}, data={self.data!r})"

    def forward(self, x: Tensor, level: Level) -> Split:
        """Split the state ``x`` ``(B, *shape)`` at ``level``; the network keeps its dtype, the state its own."""
        return self.interface.split(self._evaluate, self.sde, x, level)

    def nfe(self, level: Level) -> int:
        """Return the number of forwards that a split at ``level`` takes: 2 where it is interpolated, else 1."""
        return self.interface.nfe(self.sde, level)

    def snap(self, times: Tensor) -> Tensor:
        """Move inner nodes of a grid to the nearest instants for networks of integer timesteps."""
        return self.interface.snap(self.sde, times)

    @property
    def told(self) -> Told:  # type: ignore[override]  # a constant of denoisers without a network
        """Return what the network can be told of each item, by the parameters that it was built from."""
        return Told.by(self.network)

    def given(self, condition: ConditionLike) -> ScoreModel:
        """Return the model under a condition, which replaces its present one.

        Raises:
            ValueError: for an invalid condition, or labels beyond the network's classes.
        """
        if condition is None:
            return self
        condition = Condition.of(condition)
        self.told.check(condition)
        return self._under(condition)

    def rows(self, index: Rows) -> ScoreModel:
        """Return the model of some items, with their conditions.

        A function may contain inputs of its own for each item of a batch, which would then be those of other items: it
        is tested once, at the first forward of a part of a batch.
        """
        if self.condition.count is not None:
            return self._under(self.condition.rows(index))
        if self.equivariance is None or self.equivariance.passed or self.condition:
            return self
        return self._under(self.condition, split=True)

    def paired(self, null: Condition | None, count: int) -> ScoreModel:
        """Return the model of ``count`` items twice: under their conditions, then under ``null``."""
        null = self.told.null(self.condition) if null is None else null
        return self._under(self.condition.followed_by(null, count))

    def with_execution(self, execution: Execution | None) -> ScoreModel:
        """Return the model whose network is run in another way, with the same parameters; ``None`` for the present."""
        if execution is None or execution == self.execution:
            return self
        if execution.compile and isinstance(self.interface, ByLevel):
            raise ValueError("a network with conditioning 'level', as exact denoisers have, cannot be compiled")
        twin = twin_of(self)
        twin.execution = execution.laid_out(self)
        return twin

    def check_batch(self, count: int) -> None:
        """Refuse a batch of ``count`` items if the condition belongs to another number of them."""
        self.condition.check(count)

    def _under(self, condition: Condition, split: bool = False) -> ScoreModel:
        """Return the model under another condition, with all parts shared."""
        twin = twin_of(self)
        twin.condition, twin.split_batch = condition, split
        return twin

    def _evaluate(self, x: Tensor, level: Level) -> Split:
        """Split a state by one forward of the network."""
        output = self._output(x, level)
        if x.requires_grad and torch.is_grad_enabled() and not output.requires_grad:
            check_constant(output, x, lambda other: self._output(other, level))
        return split_output(self.prediction, output, x, level, self.learned_variance)

    def _output(self, x: Tensor, level: Level) -> Tensor:
        """Return the network's output, from copies of its inputs, as it could write to them."""
        parameter = self._parameter()
        dtype = x.dtype if parameter is None else parameter.dtype
        state, conditioning = self.interface.inputs(x, level, dtype, self.sde)
        state = state.clone() if state is x else state
        network, execution = self.network, self.execution
        if self.equivariance is not None and self.split_batch and not self.equivariance.passed:
            network, execution = self.equivariance.evaluate, replace(execution, compile=False)
        return self.runner(execution, network, state, conditioning, self.condition.arguments(x, dtype))
