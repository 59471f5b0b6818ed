"""Choice of a solver for one model ahead of its use: what ``solver="auto"`` chooses, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdediff.conditions import ConditionLike
from sdediff.denoiser import Denoiser, check_denoiser
from sdediff.foreign import evaluating
from sdediff.options import check_count
from sdediff.parametrization import check_signal
from sdediff.samplers.auto import choice_for
from sdediff.samplers.candidates import Choice
from sdediff.samplers.chosen import Chosen, ChosenForModel
from sdediff.sampling import check_item, check_shape


def choose(
    model: Denoiser,
    steps: int,
    *,
    shape: Sequence[int] | None = None,
    t_from: float | None = None,
    t_to: float = 0.0,
    condition: ConditionLike = None,
    seed: int = 0,
) -> Choice:
    """Choose method, nodes and first forward of a solve for one model, from one recorded solve of a few trajectories.

    It takes at most 1,280 forwards of one item. The model keeps the choice, so that ``solver="auto"`` finds it.

    Args:
        model: denoiser with its process.
        steps: forwards of a solve.
        shape: shape of the states, ``(B, *shape)``; one item of the model's data by default.
        t_from: time at which solves start; ``t_max`` by default.
        t_to: time at which they end; 0, the data, by default, as in sampling.
        condition: condition of the network: one row for all, or one for each of the B items.
        seed: seed of the trajectories.

    Returns:
        A :class:`~sdediff.samplers.auto.Choice`: ``name``; ``sampler``, to be given as ``solver=`` for this interval;
        ``score``.

    Raises:
        ValueError: for steps below 1, a shape that is missing or not the model's, or an interval that no method takes
            in this number of steps.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> choice = sdediff.tuning.choose(model, 3, shape=(1, 2))
    >>> sdediff.sample(model, (1000, 2), choice.sampler).mean(dim=0).round(decimals=1).abs()
    tensor([2., 0.])
    """
    check_denoiser(model)
    check_count("steps", steps)
    if shape is None:
        if model.data is None:
            raise ValueError("the model does not say what its data are: give the shape of the states, shape=(1, *item)")
        shape = (1, *model.data.shape)
    shape = check_shape(shape)
    check_item(model, shape[1:])
    model = model.given(condition)
    model.check_batch(shape[0])
    interval = (model.sde.t_max if t_from is None else float(t_from), float(t_to))
    check_signal(model.prediction, model.sde, max(interval))
    with evaluating(model):
        return choice_for(model, shape, int(steps), interval, seed)


@dataclass(frozen=True)
class ForIntervals(ChosenForModel):
    """Solvers of several intervals, such as the two directions between data and latents, each used for its own.

    Args:
        chosen: the solvers, all of one number of steps.

    Raises:
        ValueError: in use, for another interval.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> ends = [(model.sde.t_min, 1.0), (1.0, model.sde.t_min)]
    >>> chosen = [sdediff.tuning.choose(model, 8, shape=(1, 2), t_from=a, t_to=b).sampler for a, b in ends]
    >>> both, x = sdediff.tuning.ForIntervals(tuple(chosen)), torch.tensor([[2.5, 0.5]])
    >>> torch.allclose(sdediff.decode(model, sdediff.encode(model, x, both), both), x, atol=1e-3)
    True
    """

    chosen: tuple[Chosen, ...]

    @property
    def order(self) -> int:
        return min(each.order for each in self.chosen)

    @property
    def steps(self) -> int:
        return self.chosen[0].steps

    def nfe(self, steps: int, *, clean: bool = True) -> int | None:
        """Return the forwards of a solve; see :meth:`~sdediff.samplers.base.Sampler.nfe`."""
        return self.chosen[0].nfe(steps, clean=clean)

    def for_model(
        self, model: Denoiser, shape: Sequence[int], steps: int | None, interval: tuple[float, float]
    ) -> Chosen:
        """Return the solver of an interval; see :meth:`~sdediff.samplers.base.Sampler.for_model`."""
        by_ends = {(each.times[0], each.times[-1]): each for each in self.chosen}
        if interval not in by_ends:
            there = " or ".join(f"t = {first:g} to {last:g}" for first, last in by_ends)
            raise ValueError(f"solvers are chosen for {there}, not {interval[0]:g} to {interval[1]:g}: choose anew")
        return by_ends[interval]
