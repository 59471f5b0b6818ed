"""Networks of others: the modules behind a function, the state that they share with their owner, what they return.

A model may be built from any callable. What its modules own (parameters, mode, buffers) belongs to whoever made them:
modules are found and registered, their mode is put back after use, and tensors handed to them are copies.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn


def modules_of(network: Callable[..., Any]) -> list[nn.Module]:
    """Find the modules that a callable runs: itself, or what a function, partial, method or object refers to.

    Followed are closures, default arguments, the global names and attributes that the code mentions, the arguments of
    partials and the objects of bound methods; each module once, those within others left out.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting: list[Any] = [network]
    while waiting:
        thing = waiting.pop(0)
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        else:
            waiting.extend(_references(thing))
    inside = {id(part) for module in found.values() for part in module.modules() if part is not module}
    return [module for key, module in found.items() if key not in inside]


def _references(thing: Any) -> Iterator[Any]:
    """Yield what a callable, or a container of modules, refers to."""
    if isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, types.MethodType):
        yield from _mentioned(thing.__func__, thing.__self__)
    elif isinstance(thing, types.FunctionType):
        yield from _mentioned(thing)
    elif isinstance(thing, dict):
        yield from (value for value in thing.values() if isinstance(value, nn.Module))
    elif isinstance(thing, list | tuple):
        yield from (value for value in thing if isinstance(value, nn.Module))
    elif isinstance(getattr(type(thing), "__call__", None), types.FunctionType):  # noqa: B004 (the function is wanted)
        yield from _mentioned(type(thing).__call__, thing)


def _mentioned(function: Any, owner: Any = None) -> Iterator[Any]:
    """Yield what a function's code can reach by the names in it."""
    code = getattr(function, "__code__", None)
    if code is None or str(getattr(function, "__module__", "")).partition(".")[0] == "torch":
        return
    names = set(_names(code))
    holders = [owner, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that is not bound yet
            holders.append(cell.cell_contents)
    holders += [function.__globals__[name] for name in names if name in function.__globals__]
    yield from holders[1:] if owner is None or not isinstance(owner, nn.Module) else holders
    for holder in holders:  # and the attributes of those that hold the network for others
        if isinstance(holder, Tensor | nn.Module) or not hasattr(holder, "__dict__"):
            continue
        if isinstance(holder, types.ModuleType):
            yield from (value for name in names if isinstance(value := vars(holder).get(name), nn.Module))
        elif not isinstance(holder, type):
            yield from (
                getattr(holder, name)
                for name in names
                if name in vars(holder) or (holder is owner and hasattr(holder, name))
            )


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names in a function's code and in that of the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


_SAME = 1e-2
"""Relative difference up to which two answers are the same but for rounding, in whatever precision."""
_CURE = "what belongs to an item, such as its label, has to be given as condition=, so that it stays with the item"

NOTHING_TO_DIFFERENTIATE = (
    "there is nothing to differentiate: neither the data nor a parameter of the model requires a gradient; "
    "where the network is hidden in a function, name it: ScoreModel(function, sde, module=network)"
)


@contextmanager
def evaluating(model: nn.Module, keep_mode: bool = False) -> Iterator[None]:
    """Put every module of a model into evaluation mode, and each back into its own afterwards.

    Args:
        model: the module whose parts are put into evaluation mode.
        keep_mode: whether to leave all as they are, for those who want dropout.
    """
    training = [] if keep_mode else [part for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def tensor_of(output: Any) -> Tensor:
    """Return the tensor in what a network returned: itself, or the ``sample`` of an object, as diffusers' have.

    Raises:
        ValueError: for anything else, saying what to do.
    """
    if isinstance(output, Tensor):
        return output
    sample = None if isinstance(output, dict) else getattr(output, "sample", None)
    if isinstance(sample, Tensor):
        return sample
    cures = {tuple: "[0]", list: "[0]", dict: '["sample"]'}
    cure = next((part for kind, part in cures.items() if isinstance(output, kind)), None)
    advice = "" if cure is None else f": wrap it, for example lambda x, t: network(x, t){cure}"
    raise ValueError(f"the network returned {type(output).__name__}, not a tensor{advice or ': return the prediction'}")


class Equivariance:
    """Whether a function treats each item of a batch on its own, whatever its place: tried once, at the first states.

    Attributes:
        proved: whether it was tried, and does.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network, self.proved = network, False

    def ask(self, x: Tensor, told: Any) -> Tensor:
        """Return the function's answer, of one forward in which the batch stands behind itself.

        Args:
            x: the states, ``(B, *shape)``.
            told: the times, ``(B,)``, or a level.

        Raises:
            ValueError: if the two halves differ, or the function fails on a batch of another size.
        """
        try:
            output = self.network(torch.cat([x, x]), _twice(told))
        except Exception as error:  # whatever a network may raise
            raise ValueError(f"the network fails on a part of the batch ({error}): {_CURE}") from error
        answer = tensor_of(output)
        first, second = answer[: len(x)], answer[len(x) :]
        if not bool(torch.isfinite(first).all()):  # which says nothing of places, and is for the solver to report
            return first
        if len(answer) == 2 * len(x) and _alike(second, first):
            self.proved = True
        elif _alike(tensor_of(self.network(torch.cat([x, x]), _twice(told)))[: len(x)], first):  # else it is random
            raise ValueError(f"the network's answer depends on an item's place in the batch: {_CURE}")
        return first


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).detach().norm() <= _SAME * other.detach().norm())


def _twice(told: Any) -> Any:
    """Times, or a level, of a batch that stands behind itself."""
    if isinstance(told, Tensor):
        return torch.cat([told, told]) if told.ndim else told
    return type(told)(*map(_twice, told)) if isinstance(told, tuple) else told
