"""JSON and TOML that others may have written: read strictly, then validated by typed sections.

A document is an object of bounded size and depth, with each key once, integers that fit 64 bits and text that can be
shown; sections take finite numbers alone. A section names an entry of one of the library's tables, alone or with
parameters; these are checked against the signature of that entry, wherever they come from: a configuration, a model's
description or the command line.
"""

from __future__ import annotations

import inspect
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from sdediff.numerics import choose

MOST_BYTES = 1 << 25
"""The largest document that is read: a chain of a million betas has 20 MB."""
_DEPTH, _SHOWN, _COMPLAINTS, _LONGEST = 32, 80, 5, 500

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def read_document(path: Path) -> dict[str, Any]:
    """Read the object that a JSON file holds, or a TOML file by its suffix.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is too large, no text, not well formed, or holds what no setting can be.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
    try:
        text = raw.decode("utf-8")
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else _parsed(text)
        _check(content, 0)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"it must hold an object, not a {type(content).__name__}")
    return content


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are there once: of two values nobody knows which is meant."""
    content = dict(pairs)
    if len(content) != len(pairs):
        seen = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(key for key in seen if seen.count(key) > 1))} is there twice")
    return content


def _check(value: Any, depth: int) -> None:
    """Refuse depths, integers and text that cannot be used."""
    if depth > _DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check(key, depth + 1)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"it holds {shown(value)}, which no setting can be")
    elif isinstance(value, str):
        value.encode("utf-8")  # half a surrogate pair cannot be shown


def shown(value: Any) -> str:
    """Return what came, for an error message: short, whatever it is."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict) and len(value) > _SHOWN:
        return f"a {type(value).__name__} of {len(value)} entries"
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def reason(error: Exception) -> str:
    """Return what an error says, in one line that can be shown; its kind too where that is not the usual one."""
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    line = " ".join(f"{kind}{error}".split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[:_LONGEST])
    return line or type(error).__name__


class Section(BaseModel):
    """A part of a document: frozen, no unknown keys, finite numbers, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Named(BaseModel):
    """An entry of a table by name; every other key is one of its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys beside ``name``."""
        return dict(self.model_extra or {})

    def typed(
        self, table: Mapping[str, Callable[..., Any]], where: str, what: str, *, given: tuple[str, ...] = ()
    ) -> Self:
        """Return the same with parameters of the types that the entry of ``table`` takes.

        Args:
            table: of the entry.
            where: it stands, for messages.
            what: an entry of the table is called.
            given: parameters that come from elsewhere.

        Raises:
            ValueError: in one line, for an unknown name or parameters that do not fit.
        """
        checked = validated(_schema(choose(table, self.name, what), given), self.parameters, where)
        kept = {key: getattr(checked, key) for key in sorted(checked.model_fields_set)}
        return type(self)(name=self.name, **kept)


def _entry(value: Any) -> str | Named:
    if isinstance(value, str | Named):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return value["name"] if len(value) == 1 else Named(**value)
    raise PydanticCustomError("entry", "should be a name, or a table with a name and parameters")


Entry = Annotated[str | Named, BeforeValidator(_entry)]
"""An entry of a table: its name, or a table with ``name`` and parameters."""


def typed_entry(
    table: Mapping[str, Any], chosen: str | Named, where: str, what: str, *, given: tuple[str, ...] = ()
) -> str | Named:
    """Return an entry with parameters of the types that it takes: a function's arguments, or an object's fields.

    Args:
        table: of the entry.
        chosen: a name, or a name and parameters.
        where: it stands, for messages.
        what: an entry of the table is called.
        given: arguments that come from elsewhere.

    Raises:
        ValueError: for an unknown name or parameters that do not fit.
    """
    if isinstance(chosen, str):
        choose(table, chosen, what)
        return chosen
    entry = choose(table, chosen.name, what)
    maker = type(entry) if is_dataclass(type(entry)) else entry
    if not callable(maker):
        raise ValueError(
            f"{where}: {chosen.name!r} takes no parameters, not {', '.join(map(shown, chosen.parameters))}"
        )
    return chosen.typed({chosen.name: maker}, where, what, given=given)


def instance(table: Mapping[str, T], chosen: str | Named, what: str) -> T:
    """Return an entry of a table of objects, with its parameters changed where some are given.

    Raises:
        ValueError: for an unknown name, or parameters that the entry does not have.
    """
    typed = typed_entry(table, chosen, what, what)
    if isinstance(typed, str):
        return choose(table, typed, what)
    entry: Any = table[typed.name]
    changed: T = replace(entry, **typed.parameters)
    return changed


def function(table: Mapping[str, T], chosen: str | Named, what: str, *, given: tuple[str, ...]) -> T:
    """Return an entry of a table of functions, with its parameters bound where some are given.

    Args:
        table: the functions.
        chosen: a name, or a name and parameters.
        what: an entry of the table is called.
        given: the arguments that are left open.

    Raises:
        ValueError: for an unknown name or parameters that do not fit.
    """
    typed = typed_entry(table, chosen, what, what, given=given)
    if isinstance(typed, str):
        return choose(table, typed, what)
    entry: Any = table[typed.name]
    bound: T = partial(entry, **typed.parameters)  # type: ignore[assignment]
    return bound


def description_of(table: Mapping[str, T], entry: T, what: str) -> str | dict[str, Any]:
    """Return what :func:`instance` makes the same object from: a name, with the parameters where there are some.

    Raises:
        ValueError: if nothing in the table is of its kind, or it holds more than numbers, text and lists of them.
    """
    alike = [name for name, known in table.items() if type(known) is type(entry)]
    own = [name for name in alike if table[name] is entry or table[name] == entry] + alike
    if not own:
        raise ValueError(f"only a {what} of the library's table can be saved ({', '.join(table)}), not {entry!r}")
    if is_dataclass(entry):
        parameters = {field.name: getattr(entry, field.name) for field in fields(entry) if field.init}
        if parameters and not all(map(_plain, parameters.values())):
            raise ValueError(f"{what} {entry!r} cannot be saved: its parameters are more than numbers and text")
        return {"name": own[0], **parameters} if parameters else own[0]
    if vars(entry) and table[own[0]] is not entry:
        raise ValueError(f"{what} {entry!r} cannot be saved: make it a dataclass, whose fields are its parameters")
    return own[0]


def _plain(value: Any) -> bool:
    """Whether JSON gives the value back."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


@cache
def _schema(entry: Callable[..., Any], given: tuple[str, ...]) -> type[BaseModel]:
    """The parameters of a table's entry, from its signature."""
    try:
        parameters = list(inspect.signature(entry, eval_str=True).parameters.values())
    except NameError:  # annotations that name what only type checkers import
        parameters = [p.replace(annotation=p.empty) for p in inspect.signature(entry).parameters.values()]
    settings = ConfigDict(
        extra="allow" if any(p.kind is p.VAR_KEYWORD for p in parameters) else "forbid",
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
    )
    described: dict[str, Any] = {
        p.name: (_type_of(p), ... if p.default is p.empty else p.default)
        for p in parameters
        if p.name not in given and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    return create_model(getattr(entry, "__name__", "Entry"), __config__=settings, **described)


def _type_of(parameter: inspect.Parameter) -> Any:
    """What a parameter is declared to be, or else what its default is."""
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    return type(parameter.default) if isinstance(parameter.default, bool | int | float | str) else Any


def validated(model: type[M], values: Any, where: str = "") -> M:
    """Validate, with the complaints in one line.

    Raises:
        ValueError: naming each wrong setting, the first few where there are many.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = [_complaint(model, item, where) for item in found[:_COMPLAINTS]]
        rest = [f"and {len(found) - _COMPLAINTS} more"] * (len(found) > _COMPLAINTS)
        raise ValueError(reason(ValueError("; ".join(dict.fromkeys(lines + rest))))) from None


def _complaint(model: type[BaseModel], error: Any, where: str) -> str:
    path = [where] * bool(where) + [str(part) for part in error["loc"] if not str(part).endswith("]")]
    if error["type"] == "extra_forbidden":
        inner: Any = model
        for part in error["loc"][:-1]:
            inner = inner.model_fields[str(part)].annotation if hasattr(inner, "model_fields") else None
        names = ", ".join(getattr(inner, "model_fields", {})) or "(none)"
        return f"unknown setting {shown('.'.join(path))[1:-1]}; choose one of: {names}"
    return f"{'.'.join(path)}: {error['msg'][0].lower()}{error['msg'][1:]}, not {shown(error['input'])}"
