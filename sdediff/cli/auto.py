"""Solvers in the folder of a run: ``auto``, chosen where there is none, and ``tuned``; both said in one line."""

from __future__ import annotations

from typing import Any, NamedTuple

from sdediff import tuning
from sdediff.cli.console import Console
from sdediff.cli.group import message_of
from sdediff.cli.runs import Run, counting
from sdediff.denoiser import Denoiser
from sdediff.samplers import AUTO, SOLVERS, Sampler

Interval = tuple[float, float]
"""Times at which a solve starts and ends."""


class Task(NamedTuple):
    """The model for which solvers are chosen, and what they are kept by.

    Attributes:
        run: the run, whose model has its condition.
        model: the model that is solved: the run's, or that with its wrappers.
        items: number of items of the condition; 1 where it is the same for all.
        setting: condition, wrappers and execution in words; ``None`` where choices are not kept, as under labels.
    """

    run: Run
    model: Denoiser
    items: int
    setting: str | None

    @classmethod
    def of(cls, run: Run, model: Denoiser | None = None, wrappers: str | None = None) -> Task:
        """Return the task of a run under its condition, by default for its own model."""
        condition = run.condition
        items = max((len(value) for value in condition.values()), default=1)
        words = [word for word in (told(run, wrappers), str(run.model.execution)) if word]
        setting = None if items > 1 else "; ".join(words)
        return cls(run, run.model if model is None else model, items, setting)


def told(run: Run, wrappers: str | None = None) -> str:
    """Return the condition of a run's model, and its wrappers, in words; empty for none."""
    conditions = [f"{name}={value.tolist()}" for name, value in sorted(run.condition.items())]
    return "; ".join([*conditions, *([wrappers] if wrappers else [])])


def choose_solvers(
    console: Console, task: Task, steps: int | None, *intervals: Interval
) -> tuple[Sampler, list[dict[str, Any]]]:
    """Return one solver for all intervals, by default of 20 steps, and what was chosen for each, as JSON values."""
    steps = SOLVERS[AUTO].steps if steps is None else steps
    chosen = [choose_solver(console, task, steps, interval) for interval in intervals]
    return tuning.ForIntervals(tuple(sampler for sampler, _ in chosen)), [figures for _, figures in chosen]


def choose_solver(console: Console, task: Task, steps: int, interval: Interval) -> tuple[tuning.Chosen, dict[str, Any]]:
    """Return the solver for a number of steps and an interval, from the run's folder where it is, and its figures."""
    run, file = task.run, task.run.folder / tuning.CHOICES_FILE
    choice: tuning.Choice | None = None
    if task.setting is not None:
        try:
            choice = tuning.load_choice(run.folder, run.model, steps, *interval, task.setting)
        except ValueError as error:
            console.note(f"{error}: choosing anew")
    if choice is not None:
        source, kept, seconds, forwards = f"from {file}", True, 0.0, 0
    else:
        with (
            console.bar("choosing a solver", "forward") as report,
            counting(task.model, lambda n: report(n, 0)) as work,
        ):
            shape = (task.items, *run.state_shape)
            choice = tuning.choose(task.model, steps, shape=shape, t_from=interval[0], t_to=interval[1])
        how, kept = _keep(task, choice)
        source, seconds, forwards = f"chosen in {work.seconds:.1f} s, {how}", work.seconds, work.items
    sampler, usual = choice.sampler, interval == (run.model.sde.t_max, 0.0)
    span = "" if usual else f" from t = {interval[0]:.3g} to {interval[1]:.3g}"
    console.note(f"solver auto: {choice.name}, {steps} steps{span} ({source})")
    figures = {"name": choice.name, "steps": steps, "times": list(sampler.times), "free": sampler.free}
    return sampler, {**figures, "forwards": forwards, "seconds": seconds, "kept": file if kept else None}


def _keep(task: Task, choice: tuning.Choice) -> tuple[str, bool]:
    """Keep a choice in the run's folder where it can be; return that in words, and whether it was done."""
    if task.setting is None:
        return "for these conditions alone", False
    try:
        return f"kept in {tuning.save_choice(task.run.folder, task.run.model, choice, task.setting)}", True
    except (OSError, ValueError) as error:  # a cache: whatever is the matter, the choice is used
        return f"not kept: {message_of(error)}", False


def load_tuned(run: Run, steps: int | None) -> Sampler:
    """Load the run's tuned solver.

    Raises:
        ValueError: if there is none that fits.
    """
    try:
        return tuning.load(run.folder, run.model, steps)
    except (FileNotFoundError, ValueError) as error:
        wanted = "" if steps is None else f" --steps {steps}"
        raise ValueError(f"{error}; `sdediff tune --run {run.folder}{wanted}` makes one") from None


def note_setting(console: Console, run: Run, steps: int | None, guiding: str | None) -> None:
    """Say so where the tuned solver was learned under another condition or guidance than now."""
    then, now = tuning.tuned_setting(run.folder, run.model, steps), told(run, guiding)
    if then != now:
        console.note(f"solver tuned: learned under {then or 'no condition'}, used under {now or 'none'}")
