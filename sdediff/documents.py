"""JSON and TOML documents, possibly of foreign origin: read strictly, then validated by typed sections.

A document is an object of bounded size and depth, with each key once, integers that fit 64 bits and text that can be
printed; sections take finite numbers only. A section names an entry of one of the library's tables, alone or with
parameters; these are checked against the signature of that entry, whether they come from a configuration, a model's
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
"""Size of the largest document that is read: a chain of a million betas has 20 MB."""
_MOST_NESTED, _SHOWN, _COMPLAINTS, _MOST_TEXT = 32, 80, 5, 500

AnyEntry = TypeVar("AnyEntry")
AnyModel = TypeVar("AnyModel", bound=BaseModel)

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def read_document(path: Path) -> dict[str, Any]:
    """Read the object that a JSON file holds, or a TOML file by its suffix.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is too large, no text, not well formed, or holds values that no setting can have.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
    try:
        text = raw.decode("utf-8")
        toml = path.suffix.lower() == ".toml"
        content = tomllib.loads(text) if toml else json.loads(text, object_pairs_hook=_unique_keys)
        _check_values(content, 0)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"it must hold an object, not a {type(content).__name__}")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its entries, refusing repeated keys, whose value would be ambiguous."""
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return content


def _check_values(value: Any, depth: int) -> None:
    """Refuse values nested too deeply, large integers and invalid text."""
    if depth > _MOST_NESTED:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_values(key, depth + 1)
            _check_values(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_values(inner, depth + 1)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"it holds {shown(value)}, which no setting can be")
    elif isinstance(value, str):
        value.encode("utf-8")  # half a surrogate pair cannot be printed


def shown(value: Any) -> str:
    """Return a short text of any value, for an error message."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict) and len(value) > _SHOWN:
        return f"a {type(value).__name__} of {len(value)} entries"
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def reason(error: Exception) -> str:
    """Return an error's message in one printable line; with its type, unless that is ``ValueError`` or ``OSError``."""
    prefix = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    line = " ".join(f"{prefix}{error}".split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[:_MOST_TEXT])
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
        """The keys other than ``name``."""
        return dict(self.model_extra or {})

    def typed(
        self, table: Mapping[str, Callable[..., Any]], where: str, what: str, *, given: tuple[str, ...] = ()
    ) -> Self:
        """Return a copy with parameters of the types that the entry of ``table`` takes.

        Args:
            table: table of the entry.
            where: place in the document, for messages.
            what: word for an entry of the table, for messages.
            given: parameters that come from elsewhere.

        Raises:
            ValueError: in one line, for an unknown name or parameters that do not fit.
        """
        checked = validated(_schema(choose(table, self.name, what), given), self.parameters, where)
        parameters = {key: getattr(checked, key) for key in sorted(checked.model_fields_set)}
        return type(self)(name=self.name, **parameters)


def _parse_entry(value: Any) -> str | Named:
    if isinstance(value, str | Named):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return value["name"] if len(value) == 1 else Named(**value)
    raise PydanticCustomError("entry", "should be a name, or a table with a name and parameters")


Entry = Annotated[str | Named, BeforeValidator(_parse_entry)]
"""An entry of a table: its name, or a table with ``name`` and parameters."""


def typed_entry(
    table: Mapping[str, Any], chosen: str | Named, where: str, what: str, *, given: tuple[str, ...] = ()
) -> str | Named:
    """Return an entry with parameters of the types that it takes: a function's arguments, or an object's fields.

    Args:
        table: table of the entry.
        chosen: a name, or a name and parameters.
        where: place in the document, for messages.
        what: word for an entry of the table, for messages.
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


def instance(table: Mapping[str, AnyEntry], chosen: str | Named, what: str) -> AnyEntry:
    """Return an entry of a table of objects, with the given parameters changed.

    Raises:
        ValueError: for an unknown name, or parameters that the entry does not have.
    """
    typed = typed_entry(table, chosen, what, what)
    if isinstance(typed, str):
        return choose(table, typed, what)
    entry: Any = table[typed.name]
    changed: AnyEntry = replace(entry, **typed.parameters)
    return changed


def function(table: Mapping[str, AnyEntry], chosen: str | Named, what: str, *, given: tuple[str, ...]) -> AnyEntry:
    """Return an entry of a table of functions, with the given parameters bound.

    Args:
        table: the functions.
        chosen: a name, or a name and parameters.
        what: word for an entry of the table, for messages.
        given: the arguments that are left open.

    Raises:
        ValueError: for an unknown name or parameters that do not fit.
    """
    typed = typed_entry(table, chosen, what, what, given=given)
    if isinstance(typed, str):
        return choose(table, typed, what)
    entry: Any = table[typed.name]
    bound: AnyEntry = partial(entry, **typed.parameters)  # type: ignore[assignment]
    return bound


def description_of(table: Mapping[str, AnyEntry], entry: AnyEntry, what: str) -> str | dict[str, Any]:
    """Return the description from which :func:`instance` makes an equal object: a name, with parameters if they differ.

    Raises:
        ValueError: if no entry of the table has its type, or it holds more than numbers, text and lists of them.
    """
    same_type = [name for name, other in table.items() if type(other) is type(entry)]
    names = [name for name in same_type if table[name] is entry or table[name] == entry] + same_type
    if not names:
        raise ValueError(f"only a {what} of the library's table can be saved ({', '.join(table)}), not {entry!r}")
    if is_dataclass(entry):
        parameters = {field.name: getattr(entry, field.name) for field in fields(entry) if field.init}
        if parameters and not all(map(_is_json, parameters.values())):
            raise ValueError(f"{what} {entry!r} cannot be saved: its parameters are more than numbers and text")
        return names[0] if table[names[0]] == entry else {"name": names[0], **parameters}
    if vars(entry) and table[names[0]] is not entry:
        raise ValueError(f"{what} {entry!r} cannot be saved: make it a dataclass, whose fields are its parameters")
    return names[0]


def _is_json(value: Any) -> bool:
    """Return whether a value survives a round trip through JSON."""
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


@cache
def _schema(entry: Callable[..., Any], given: tuple[str, ...]) -> type[BaseModel]:
    """Return a model of the parameters of a table's entry, from its signature."""
    try:
        parameters = list(inspect.signature(entry, eval_str=True).parameters.values())
    except NameError:  # annotations of names that only type checkers import
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
    """Return the annotation of a parameter, or else the type of its default."""
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    return type(parameter.default) if isinstance(parameter.default, bool | int | float | str) else Any


def validated(model: type[AnyModel], values: Any, where: str = "") -> AnyModel:
    """Validate values, with all errors in one line.

    Raises:
        ValueError: naming each wrong setting, the first few if there are many.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        lines = [_complaint(model, item, where) for item in errors[:_COMPLAINTS]]
        rest = [f"and {len(errors) - _COMPLAINTS} more"] * (len(errors) > _COMPLAINTS)
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
