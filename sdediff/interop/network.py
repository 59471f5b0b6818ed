"""A network of diffusers as one of ours: ``(x, label) -> tensor like x``, and a description it can be built from."""

from __future__ import annotations

import inspect
import json
from types import ModuleType
from typing import Any

from torch import Tensor, nn

EXTRA = "pip install 'sdediff[diffusers]'"


def diffusers() -> ModuleType:
    """The package.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import diffusers as package
    except ImportError:
        raise ValueError(f"models of diffusers need that package: {EXTRA}") from None
    return package


def diffusers_class(name: str, what: str) -> Any:
    """A class of diffusers by name.

    Raises:
        ValueError: if there is none, or diffusers cannot import it here.
    """
    try:
        found = getattr(diffusers(), name, None)
    except (ImportError, RuntimeError) as error:  # of a package that it takes in: diffusers imports late
        raise ValueError(f"diffusers cannot import {name}: {' '.join(str(error).split())}") from None
    if not inspect.isclass(found):
        raise ValueError(f"the installed diffusers has no {what} {name!r}")
    return found


class DiffusersNetwork(nn.Module):
    """A network of diffusers, asked as ``network(x, label)`` and built again from JSON values.

    Args:
        class_name: of its class.
        settings: its configuration.
        scheduler: configuration of the scheduler that it came with, if any; kept for :func:`~sdediff.interop.export`.
        channels: how many of the output's channels count; all by default.
        inner: the network itself, where it exists already.

    Raises:
        ValueError: if the network needs more than a state and a timestep, or measures time in other units.
    """

    def __init__(
        self,
        class_name: str,
        settings: dict[str, Any],
        scheduler: dict[str, Any] | None = None,
        channels: int | None = None,
        inner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        kind = diffusers_class(class_name, "model")
        _check_asked(kind, settings)
        self.config = {"class_name": class_name, "settings": settings, "scheduler": scheduler, "channels": channels}
        self.channels = channels
        self.inner: nn.Module = kind.from_config(settings) if inner is None else inner

    @classmethod
    def of(
        cls, inner: nn.Module, scheduler: dict[str, Any] | None = None, channels: int | None = None
    ) -> DiffusersNetwork:
        """Around a network that exists."""
        settings = json.loads(inner.to_json_string())  # type: ignore[operator]
        return cls(type(inner).__name__, settings, scheduler, channels, inner)

    @property
    def table(self) -> bool:
        """Whether it knows integer labels alone."""
        return self.config["settings"].get("time_embedding_type") == "learned"  # type: ignore[union-attr]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Its output at the state ``x`` ``(B, C, ...)`` and the labels ``(B,)``."""
        output: Tensor = self.inner(x, label).sample
        return output if self.channels is None else output[:, : self.channels]


def _check_asked(kind: Any, settings: dict[str, Any]) -> None:
    """Refuse networks that want more than a state and a timestep."""
    first, second, *others = list(inspect.signature(kind.forward).parameters.values())[1:]
    needed = [other.name for other in others if other.default is inspect.Parameter.empty and other.kind not in _REST]
    if settings.get("num_class_embeds") is not None or settings.get("class_embed_type") is not None:
        needed.append("class_labels")
    if needed or "timestep" not in second.name:
        needs = ", ".join(needed) or f"{first.name} and {second.name}"
        raise ValueError(
            f"{kind.__name__} is asked for {needs}: only networks of a state and a timestep can be read; put the rest "
            "into a function, ScoreModel(lambda x, k: network(x, k, ...).sample, DDPM(betas), conditioning='label')"
        )
    if settings.get("time_embedding_type") == "fourier":
        raise ValueError(
            f"this {kind.__name__} is asked with noise levels (time_embedding_type 'fourier'), not timesteps"
        )


_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
