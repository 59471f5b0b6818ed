"""How a network is run: its precision, its memory layout, whether it is compiled.

The state of a solver and all of its arithmetic keep their dtype; what is changed here is inside a forward of the
network. Parameters are shared, not copied: what a model of one execution learns, the same model of another has learned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdediff.conditions import Condition
from sdediff.foreign import tensor_of
from sdediff.numerics import choose

AUTOCASTS: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions in which a network's products may be taken."""

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Execution:
    """Precision, compilation and memory layout in which a network is run; the default changes nothing.

    Args:
        autocast: name in ``AUTOCASTS``: precision of the network's products, with weights and results as they are
            (``torch.autocast``).
        compile: whether ``torch.compile`` compiles the network, once for all sizes of a batch above 1. Where a gradient
            is differentiated once more, as in likelihoods with ``differentiable=True``, it runs uncompiled.
        channels_last: whether states of images and volumes, and the weights of their convolutions, lie in memory with
            their channels last. The weights are laid out so in place; their values stay.
        tf32: whether products of float32 may be taken in TF32 on CUDA; ``None`` leaves torch's setting as it is, but
            turns it off in likelihoods.

    Raises:
        ValueError: for an unknown precision.

    >>> model = sdediff.ScoreModel(sdediff.networks.MLP((2,)), sdediff.VPSDE())
    >>> fast = model.with_execution(sdediff.Execution(autocast="bf16"))
    >>> fast.denoise(torch.ones(1, 2), 0.5).dtype
    torch.float32
    """

    autocast: str | None = None
    compile: bool = False
    channels_last: bool = False
    tf32: bool | None = None

    def __post_init__(self) -> None:
        if self.autocast is not None:
            choose(AUTOCASTS, self.autocast, "autocast")

    def __str__(self) -> str:
        """Name the settings that are not the default."""
        words = [self.autocast, "compiled" * self.compile, "channels last" * self.channels_last]
        words.append({None: "", True: "TF32", False: "no TF32"}[self.tf32])
        return ", ".join(word for word in words if word)

    def laid_out(self, module: nn.Module) -> Execution:
        """Return the execution, after laying the weights of convolutions out for it, in place."""
        if self.channels_last:
            for parameter in module.parameters():
                parameter.data = channels_last(parameter.data)
        return self

    def context(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the context of a forward on a device."""
        return nullcontext() if self.autocast is None and self.tf32 is None else self._context(device)

    @contextmanager
    def _context(self, device: torch.device) -> Iterator[None]:
        with ExitStack() as stack:
            if self.autocast is not None:  # no cache of weights, which would lose their gradients after no_grad
                dtype = AUTOCASTS[self.autocast]
                stack.enter_context(torch.autocast(device.type, dtype, cache_enabled=False))
            stack.enter_context(tf32_products(self.tf32))
            yield


class NetworkRunner:
    """Forwards of a network by an :class:`Execution`.

    What is compiled is kept, for all twins of a model; a copy of the model compiles its own.
    """

    def __init__(self) -> None:
        self._network: Callable[..., Any] | None = None
        self._compiled: Callable[..., Any] | None = None

    def __reduce__(self) -> tuple[type[NetworkRunner], tuple[()]]:
        """Copy and store nothing: a copy's network is another."""
        return NetworkRunner, ()

    def __call__(
        self, execution: Execution, network: Callable[..., Any], x: Tensor, conditioning: Any, condition: Condition
    ) -> Tensor:
        """Return the output of a network at states ``(B, *shape)``."""
        x = channels_last(x) if execution.channels_last else x
        run = self._compile(network) if execution.compile else network
        with execution.context(x.device):
            output = tensor_of(run(x, conditioning, *condition.positional, **condition.named))
        return output.contiguous() if execution.channels_last else output

    def _compile(self, network: Callable[..., Any]) -> Callable[..., Any]:
        """Return the network, compiled at its first forward, for batches of any size."""
        if self._compiled is None or self._network != network:
            self._network, self._compiled = network, torch.compile(network)
        compiled = self._compiled

        def run(*inputs: Any, **named: Any) -> Any:
            for value in (*inputs, *named.values()):
                if isinstance(value, Tensor):
                    torch._dynamo.maybe_mark_dynamic(value, 0)
            with several_products(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The .grad attribute")  # the compiler looks at that of every input
                return compiled(*inputs, **named)

        return run


@contextmanager
def several_products() -> Iterator[None]:
    """Enter a context in which a forward of a compiled network may have several backward passes, and is compiled so."""
    from torch._functorch import config

    if not hasattr(config, "donated_buffer"):  # of torch 2.6 and later
        yield
        return
    before, config.donated_buffer = config.donated_buffer, False  # config.patch makes a class each time
    try:
        yield
    finally:
        config.donated_buffer = before


@contextmanager
def uncompiled() -> Iterator[None]:
    """Enter a context in which compiled networks, the caller's own too, run as written: from torch 2.6 on."""
    if not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def channels_last(x: Tensor) -> Tensor:
    """Return an image or volume ``(B, C, ...)`` with its channels last in memory, any other tensor as it is."""
    return x.contiguous(memory_format=_LAYOUTS[x.ndim]) if x.ndim in _LAYOUTS else x


@contextmanager
def tf32_products(allowed: bool | None) -> Iterator[None]:
    """Allow or forbid products of float32 in TF32 on CUDA while entered; ``None`` changes nothing."""
    if allowed is None:
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    parts = (matmul, cudnn.conv, cudnn.rnn) if hasattr(cudnn, "conv") else ()  # torch 2.9 and later has both forms
    precisions, switches = [part.fp32_precision for part in parts], list[tuple[Any, bool]]()
    for holder in (matmul, cudnn):
        with suppress(RuntimeError):  # torch does not read the switch of parts that differ
            switches.append((holder, holder.allow_tf32))
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        for holder, switch in switches:
            holder.allow_tf32 = switch
        for part, precision in zip(parts, precisions, strict=True):
            part.fp32_precision = precision
