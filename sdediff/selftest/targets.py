"""What is tested: three kinds of functions, ours or somebody else's, by what they promise.

Each gets an exact :class:`~sdediff.score_model.ScoreModel`, which says all that a trained network could:
``model.score(x, t)``, ``model.epsilon(x, t)`` and ``model.denoise(x, t)`` at a time of its process ``model.sde``, which
has ``alpha(t)``, ``sigma(t)``, ``drift(x, t)``, ``diffusion(t)``, ``t_min`` and ``t_max``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sdediff.score_model import ScoreModel

WithError = Tensor | tuple[Tensor, Tensor]
"""Numbers of items ``(B,)``, or these and their standard errors."""


class DrawsSamples(Protocol):
    """A sampler."""

    def __call__(self, model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
        """Return samples of the data, ``shape`` being ``(n, *shape)``, in so many steps if it takes any."""


class ScoresItems(Protocol):
    """A log-likelihood."""

    def __call__(self, model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> WithError:
        """Return the log-density of the data at ``x`` ``(B, *shape)``, nats ``(B,)``, alone or with its errors."""


class BoundsItems(Protocol):
    """A variational bound."""

    def __call__(self, model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> WithError:
        """Return upper bounds on ``-log p(x)``, nats ``(B,)``, alone or with their errors."""


def values_of(result: WithError) -> Tensor:
    """Return the numbers of a result in float64."""
    return (result if isinstance(result, Tensor) else result[0]).detach().double().cpu()


def errors_of(result: WithError) -> Tensor | None:
    """Return the standard errors of a result in float64, if it states any."""
    return None if isinstance(result, Tensor) else result[1].detach().double().cpu()
