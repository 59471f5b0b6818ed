"""Networks as arbitrary callables: the modules that they run, their modes, and their outputs.

A model may be built from any callable. Its modules are found and registered, their mode is restored after use, and the
tensors passed to them are copies.
"""

from __future__ import annotations

import copy
import functools
import importlib
import re
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
OwnNetwork = Callable[..., nn.Module] | nn.Module
"""A network of the user's own: its class, or another function that makes it, or the module itself."""

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_import_path(name: str) -> bool:
    """Return whether a name is the place of somebody's code, ``package.module:Class``, rather than of a table."""
    return ":" in name


def path_of(network: OwnNetwork) -> str:
    """Return the place of the class of a network, ``package.module:Class``.

    Raises:
        ValueError: for what is neither a module nor a function that makes one.
    """
    made = type(network) if isinstance(network, nn.Module) else network
    name = getattr(made, "__qualname__", None)
    if not callable(made) or not isinstance(name, str):
        raise ValueError(f"a network of one's own is a torch module or a class that makes one, not {network!r}")
    return f"{made.__module__}:{name}"


def imported(path: str, what: str = "network", kind: str = "Class") -> Callable[..., Any]:
    """Import the class of a network, or another callable, by its place; this runs the code of its module.

    Args:
        path: ``package.module:Class``, as somebody typed it: never the content of a file.
        what: word for it in messages.
        kind: word for what it must be.

    Raises:
        ValueError: if there is no such class; in one line.
    """
    if not _IMPORT_PATH.fullmatch(path):
        known = "; those of the library are chosen by network.name" * (what == "network" and kind == "Class")
        raise ValueError(f"a {what} of one's own is named package.module:{kind}, not {path!r}{known}")
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = vars(found)[part]
    except ImportError as error:
        raise ValueError(f"the {what} {path} cannot be imported: {error}") from error
    except KeyError as error:
        raise ValueError(f"the {what} {path} cannot be imported: {module} has no {name}") from error
    if not callable(found):
        raise ValueError(f"the {what} {path} is no {kind.lower()}, but {type(found).__name__}")
    made: Callable[..., Any] = found
    return made


def needs_network(what: str, path: str) -> str:
    """Return the line that says how a network of one's own is given."""
    return (
        f"the network of {what} is code of your own, {path}, which is not imported unasked: give it as network= (its "
        f"class, or a module) or, on the command line, as --network {path}"
    )


def modules_of(network: Callable[..., Any]) -> list[nn.Module]:
    """Find the modules that a callable runs: itself, or those that a function, partial, method or object refers to.

    References are closures, default arguments, the global names and attributes in the code, the arguments of partials
    and the objects of bound methods. Each module is returned once, submodules of others are not.
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
    """Yield the references of a callable or a container of modules."""
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
    """Yield the objects that a function's code can reach by the names in it."""
    code = getattr(function, "__code__", None)
    if code is None or str(getattr(function, "__module__", "")).partition(".")[0] == "torch":
        return
    names = set(_names_in(code))
    holders = [owner, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that is not bound yet
            holders.append(cell.cell_contents)
    holders += [function.__globals__[name] for name in names if name in function.__globals__]
    yield from holders[1:] if owner is None or not isinstance(owner, nn.Module) else holders
    for holder in holders:  # and attributes of objects that may contain the network
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


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names in a function's code, nested functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


_TOLERANCE = 1e-2
"""Relative difference up to which two outputs are equal but for rounding, in any precision."""
_REMEDY = "what belongs to an item, such as its label, has to be given as condition=, so that it stays with the item"

NOTHING_TO_DIFFERENTIATE = (
    "there is nothing to differentiate: neither the data nor a parameter of the model requires a gradient; "
    "where the network is hidden in a function, name it: ScoreModel(function, sde, module=network)"
)


@contextmanager
def evaluating(model: nn.Module, keep_mode: bool = False) -> Iterator[None]:
    """Put every module of a model into evaluation mode, and each back into its own afterwards.

    Args:
        model: the model.
        keep_mode: whether to leave all modules in their own mode, for dropout.
    """
    training = [] if keep_mode else [part for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def twin_of(module: ModuleT) -> ModuleT:
    """Return a shallow copy of a module, with its own table of modules."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def tensor_of(output: Any) -> Tensor:
    """Return the tensor of a network's output: itself, or the ``sample`` of an object of diffusers.

    Raises:
        ValueError: for anything else, with the remedy.
    """
    if isinstance(output, Tensor):
        return output
    sample = getattr(output, "sample", None)  # outputs of diffusers are dicts as well, which have no such attribute
    if isinstance(sample, Tensor):
        return sample
    remedies = {tuple: "[0]", list: "[0]", dict: '["sample"]'}
    remedy = next((index for kind, index in remedies.items() if isinstance(output, kind)), None)
    advice = "" if remedy is None else f": wrap it, for example lambda x, t: network(x, t){remedy}"
    raise ValueError(f"the network returned {type(output).__name__}, not a tensor{advice or ': return the prediction'}")


def check_constant(output: Tensor, x: Tensor, network: Callable[[Tensor], Tensor]) -> None:
    """Refuse a network whose output has no gradient where one is wanted, unless it is the same for every state.

    Args:
        output: output of the network at ``x``, without autograd history.
        x: states ``(B, *shape)``.
        network: function from states to outputs.

    Raises:
        ValueError: if the output is another at other states.
    """
    other = network(x.detach().sin() + 1.0)  # neither a shift nor a multiple, from which some networks are free
    if bool(torch.isfinite(output).all()) and not torch.equal(output.detach(), other.detach()):
        raise ValueError(
            "the network's output depends on the state but has no gradient: it is detached, or runs under "
            "torch.no_grad() or outside torch; likelihoods and gradients need a network that torch can differentiate"
        )


class Equivariance:
    """Test of whether a function treats each item of a batch alone, whatever its place; made once, at the first states.

    Attributes:
        passed: whether the test was made and passed.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network, self.passed = network, False

    def evaluate(self, x: Tensor, conditioning: Any) -> Tensor:
        """Return the function's output, from one forward of the batch repeated twice.

        Args:
            x: states ``(B, *shape)``.
            conditioning: times ``(B,)``, or a level.

        Raises:
            ValueError: if the two halves differ, or the function fails on a batch of another size.
        """
        try:
            output = self.network(torch.cat([x, x]), _twice(conditioning))
        except Exception as error:  # whatever a network may raise
            raise ValueError(f"the network fails on a part of the batch ({error}): {_REMEDY}") from error
        both = tensor_of(output)
        first, second = both[: len(x)], both[len(x) :]
        if not bool(torch.isfinite(first).all()):  # no evidence about places; the solver reports it
            return first
        if len(both) == 2 * len(x) and _alike(second, first):
            self.passed = True
        elif _alike(tensor_of(self.network(torch.cat([x, x]), _twice(conditioning)))[: len(x)], first):  # else random
            raise ValueError(f"the network's answer depends on an item's place in the batch: {_REMEDY}")
        return first


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).detach().norm() <= _TOLERANCE * other.detach().norm())


def _twice(conditioning: Any) -> Any:
    """Return the times, or the level, of a batch repeated twice."""
    if isinstance(conditioning, Tensor):
        return torch.cat([conditioning, conditioning]) if conditioning.ndim else conditioning
    return type(conditioning)(*map(_twice, conditioning)) if isinstance(conditioning, tuple) else conditioning
