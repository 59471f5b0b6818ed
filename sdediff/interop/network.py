"""Networks of diffusers as ``(x, label) -> tensor like x``, built from a description in JSON values.

Only classes of a fixed list can be built: a name in a file is looked up there before anything is imported.
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
from sdediff.extras import extra

_LARGE = 1 << 20  # entries of an item for which no network is evaluated merely as a check


class AllowedClasses(NamedTuple):
    """Classes of diffusers that a file may name.

    Attributes:
        kind: word for an object of these classes.
        names: names of the classes.
        base: name of their common base class in diffusers.
        advice: advice about other classes, for messages.
    """

    kind: str
    names: tuple[str, ...]
    base: str
    advice: str


MODEL = AllowedClasses(
    "network",
    ("UNet1DModel", "UNet2DModel"),
    "ModelMixin",
    "these work on pixels and are asked for a state, a timestep and at most a class; others go into "
    "ScoreModel(network, DDPM(betas), conditioning='label'), and what else they take into condition=",
)
AUTOENCODER = AllowedClasses(
    "autoencoder", ("AutoencoderKL", "VQModel"), "ModelMixin", "others have codes of another kind"
)
SCHEDULER = AllowedClasses(
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
    with extra("diffusers"):
        import diffusers as package
    return package


def diffusers_class(name: object, allowed: AllowedClasses) -> Any:
    """Return a class of diffusers by the name in a file.

    Raises:
        ValueError: if the name is not in the list, or diffusers has no such class or cannot import it here.
    """
    if not isinstance(name, str) or name not in allowed.names:
        names = ", ".join(allowed.names)
        raise ValueError(f"{shown(name)} is no {allowed.kind} that is read here: {names} are; {allowed.advice}")
    package = diffusers()
    try:
        cls, base = getattr(package, name, None), getattr(package, allowed.base)
    except (ImportError, RuntimeError) as error:  # of one of its dependencies: diffusers imports late
        raise ValueError(f"diffusers cannot import {name}: {reason(error)}") from None
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise ValueError(f"the installed diffusers has no {allowed.kind} {name!r}")
    return cls


def construct(cls: Any, settings: dict[str, Any]) -> Any:
    """Build an object of a class of diffusers from the settings that its constructor takes; others are left out."""
    taken = inspect.signature(cls.__init__).parameters
    return cls(**{name: value for name, value in settings.items() if name in taken and name != "self"})


class DiffusersNetwork(nn.Module):
    """A network of diffusers, called as ``network(x, label)`` and built again from JSON values.

    Args:
        class_name: name of the class in diffusers.
        settings: configuration of the network.
        scheduler: configuration of the scheduler saved with it, if any; kept for :func:`~sdediff.interop.export`.
        channels: number of leading output channels that are returned; all by default.
        inner: the network itself, if already built.

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
        cls = diffusers_class(class_name, MODEL)
        check_timesteps(cls, settings)
        self.config = {"class_name": class_name, "settings": settings, "scheduler": scheduler, "channels": channels}
        self.channels = channels
        self.classes: int | None = settings.get("num_class_embeds")
        self.conditional = self.classes is not None or settings.get("class_embed_type") is not None
        self.inner: nn.Module = construct(cls, settings) if inner is None else inner

    @classmethod
    def of(
        cls, inner: nn.Module, scheduler: dict[str, Any] | None = None, channels: int | None = None
    ) -> DiffusersNetwork:
        """Wrap a network that is already built."""
        settings = json.loads(inner.to_json_string())  # type: ignore[operator]
        return cls(type(inner).__name__, settings, scheduler, channels, inner)

    @property
    def table(self) -> bool:
        """Tell whether timesteps are embedded by a table, for integers only."""
        return self.config["settings"].get("time_embedding_type") == "learned"  # type: ignore[union-attr]

    @torch.no_grad()
    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse settings with which the network can be built, but not evaluated.

        It is evaluated on the ``meta`` device, which costs nothing, and on the CPU only if that fails.

        Args:
            shape: shape of an item.

        Raises:
            ValueError: if it cannot be evaluated on such items.
        """
        if self.conditional and self.classes is None:
            return  # conditioned on vectors or times, whose shape is not known here
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
        except Exception as error:  # networks may raise anything for arbitrary settings
            raise ValueError(f"it cannot be asked about items of shape {shape}: {reason(error)}") from None

    def _example(self, shape: tuple[int, ...], device: str) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Return arguments for one item."""
        x = torch.zeros(1, *shape, dtype=next(self.parameters()).dtype, device=device)
        label = torch.zeros(1, dtype=torch.long if self.table else torch.float32, device=device)
        classes = {"class_labels": torch.zeros(1, dtype=torch.long, device=device)} if self.conditional else {}
        return (x, label), classes

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the network's output at the state ``x`` ``(B, C, ...)`` and the labels ``(B,)``.

        Args:
            x: the state.
            label: timesteps of the chain, real numbers or integers.
            class_labels: the items' classes, for networks that are trained with them.

        Raises:
            ValueError: if a network with classes is given none or invalid ones, or a network without classes some.
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
        bounds = f", 0..{self.classes - 1}" if table and self.classes is not None else ""
        wanted = f"this model wants condition={{'class_labels': ...}}: one label an item{bounds}"
        if class_labels is None:
            raise ValueError(wanted)
        if table:
            if class_labels.is_floating_point() or class_labels.is_complex() or class_labels.dtype == torch.bool:
                raise ValueError(f"{wanted}; came numbers of dtype {class_labels.dtype}")
            low, high = int(class_labels.min()), int(class_labels.max())
            if low < 0 or (self.classes is not None and high >= self.classes):
                raise ValueError(f"{wanted}; came {low} to {high}")
        return class_labels


def check_timesteps(cls: Any, settings: dict[str, Any]) -> None:
    """Refuse networks that take noise levels instead of timesteps.

    Raises:
        ValueError: if the network is one of them.
    """
    if settings.get("time_embedding_type") == "fourier":
        raise ValueError(
            f"this {cls.__name__} is asked with noise levels (time_embedding_type 'fourier'), not timesteps"
        )
