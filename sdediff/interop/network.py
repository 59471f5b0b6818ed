"""A network of diffusers as one of ours: ``(x, label) -> tensor like x``, and a description it can be built from.

Which classes of diffusers may be built is a list: what a file names is looked up there, before anything is imported.
"""

from __future__ import annotations

import inspect
import json
import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdediff.documents import reason, shown

_LARGE = 1 << 20  # entries of an item about which no network is asked just to see whether it can be
EXTRA = "pip install 'sdediff[diffusers]'"


class Kind(NamedTuple):
    """Classes of diffusers that a file may name.

    Attributes:
        what: they are.
        names: of the classes.
        base: the class of diffusers that all of them derive from.
        cure: what to do about others.
    """

    what: str
    names: tuple[str, ...]
    base: str
    cure: str


MODEL = Kind(
    "network",
    ("UNet1DModel", "UNet2DModel"),
    "ModelMixin",
    "these work on pixels and are asked for a state, a timestep and at most a class; others go into "
    "ScoreModel(network, DDPM(betas), conditioning='label'), and what else they take into condition=",
)
SCHEDULER = Kind(
    "scheduler",
    (
        "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
        "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
        "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler", "SASolverScheduler",
        "TCDScheduler", "UnCLIPScheduler", "UniPCMultistepScheduler",
    ),
    "SchedulerMixin",
    "others have no table of betas, which says on which chain the network was trained",
)  # fmt: skip


def diffusers() -> ModuleType:
    """Import the package.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import diffusers as package
    except ImportError:
        raise ValueError(f"models of diffusers need that package: {EXTRA}") from None
    return package


def diffusers_class(name: object, kind: Kind) -> Any:
    """Return a class of diffusers by a name that a file gave.

    Raises:
        ValueError: if the name is not in the list, or diffusers has no such class or cannot import it here.
    """
    if not isinstance(name, str) or name not in kind.names:
        raise ValueError(f"{shown(name)} is no {kind.what} that is read here: {', '.join(kind.names)} are; {kind.cure}")
    package = diffusers()
    try:
        found, base = getattr(package, name, None), getattr(package, kind.base)
    except (ImportError, RuntimeError) as error:  # of a package that it takes in: diffusers imports late
        raise ValueError(f"diffusers cannot import {name}: {reason(error)}") from None
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"the installed diffusers has no {kind.what} {name!r}")
    return found


def construct(kind: Any, settings: dict[str, Any]) -> Any:
    """Build an object of a class of diffusers from the settings that its constructor takes; the rest is left out."""
    known = inspect.signature(kind.__init__).parameters
    return kind(**{name: value for name, value in settings.items() if name in known and name != "self"})


class DiffusersNetwork(nn.Module):
    """A network of diffusers, asked as ``network(x, label)`` and built again from JSON values.

    Args:
        class_name: of its class.
        settings: its configuration.
        scheduler: configuration of the scheduler that it came with, if any; kept for :func:`~sdediff.interop.export`.
        channels: how many of the output's channels count; all by default.
        inner: the network itself, where it exists already.

    Raises:
        ValueError: if the network needs more than a state, a timestep and a class, or measures time in other units.
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
        kind = diffusers_class(class_name, MODEL)
        check_asked(kind, settings)
        self.config = {"class_name": class_name, "settings": settings, "scheduler": scheduler, "channels": channels}
        self.channels = channels
        self.classes: int | None = settings.get("num_class_embeds")
        self.conditional = self.classes is not None or settings.get("class_embed_type") is not None
        self.inner: nn.Module = construct(kind, settings) if inner is None else inner

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

    @torch.no_grad()
    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse settings with which the network was built, but cannot be asked.

        It is asked on the ``meta`` device, where that costs nothing, and for good only if that fails.

        Args:
            shape: of an item.

        Raises:
            ValueError: if it cannot be asked about such items.
        """
        if self.conditional and self.classes is None:
            return  # vectors or times instead of classes: of what shape is not known here
        own = {name: value.to("meta") for name, value in (*self.inner.named_parameters(), *self.inner.named_buffers())}
        try:
            functional_call(self.inner, own, *self._example(shape, "meta"))
        except Exception as error:
            failed = error
        else:
            return
        try:
            if math.prod(shape) > _LARGE:
                raise failed
            arguments, named = self._example(shape, "cpu")
            self.inner(*arguments, **named)
        except Exception as error:  # whatever it makes of settings that nobody has chosen
            raise ValueError(f"it cannot be asked about items of shape {shape}: {reason(error)}") from None

    def _example(self, shape: tuple[int, ...], device: str) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Arguments for one item."""
        x = torch.zeros(1, *shape, dtype=next(self.parameters()).dtype, device=device)
        label = torch.zeros(1, dtype=torch.long if self.table else torch.float32, device=device)
        classes = {"class_labels": torch.zeros(1, dtype=torch.long, device=device)} if self.conditional else {}
        return (x, label), classes

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return its output at the state ``x`` ``(B, C, ...)`` and the labels ``(B,)``.

        Args:
            x: the state.
            label: timesteps of the chain, real numbers or integers.
            class_labels: the items' classes, for networks that are trained with them.

        Raises:
            ValueError: if a network with classes is given none or unknown ones, or another one is given some.
        """
        if not self.conditional:
            if class_labels is not None:
                raise ValueError("this model was trained without classes: it takes no class_labels")
            output: Tensor = self.inner(x, label).sample
        else:
            output = self.inner(x, label, class_labels=self._checked(class_labels)).sample
        return output if self.channels is None else output[:, : self.channels]

    def _checked(self, class_labels: Tensor | None) -> Tensor:
        table = self.config["settings"].get("class_embed_type") is None  # type: ignore[union-attr]
        which = f", 0..{self.classes - 1}" if table and self.classes is not None else ""
        wanted = f"this model wants condition={{'class_labels': ...}}: one label an item{which}"
        if class_labels is None:
            raise ValueError(wanted)
        if table:
            if class_labels.is_floating_point() or class_labels.is_complex() or class_labels.dtype == torch.bool:
                raise ValueError(f"{wanted}; came numbers of dtype {class_labels.dtype}")
            low, high = int(class_labels.min()), int(class_labels.max())
            if low < 0 or (self.classes is not None and high >= self.classes):
                raise ValueError(f"{wanted}; came {low} to {high}")
        return class_labels


def check_asked(kind: Any, settings: dict[str, Any]) -> None:
    """Refuse networks that are asked with noise levels.

    Raises:
        ValueError: if the network is one of them.
    """
    if settings.get("time_embedding_type") == "fourier":
        raise ValueError(
            f"this {kind.__name__} is asked with noise levels (time_embedding_type 'fourier'), not timesteps"
        )
