"""Options that are dataclasses, read from JSON: every name and value checked against the fields' own types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kits_cascade.errors import UsageError

Options = TypeVar("Options")


def build_options(kind: type[Options], content: Any, where: str) -> Options:
    """An instance of a dataclass; what ``content`` does not name keeps its default. ``where`` is for messages."""
    if not isinstance(content, Mapping):
        raise UsageError(f"{where}: {content!r} is not an object of options")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in content if name not in known]
    if unknown:
        raise UsageError(f"{where}: unknown option {', '.join(map(str, unknown))}; known are {', '.join(known)}")
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in content.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        if is_dataclass(choice) and isinstance(value, Mapping):
            return build_options(choice, value, where)  # type: ignore[arg-type]
        if _fits(choice, value):
            return tuple(value) if get_origin(choice) is tuple else value
    raise UsageError(f"{where} is {value!r}; it takes {' or '.join(map(_in_words, choices))}")


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        members = get_args(kind)
        if isinstance(value, (list, tuple)) and Ellipsis in members:
            members = members[:1] * len(value)
        fits = isinstance(value, (list, tuple)) and len(value) == len(members)
        return fits and all(_fits(m, v) for m, v in zip(members, value, strict=True))
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return bool(number and math.isfinite(value) and value >= 0)
    return kind in (bool, str, NoneType) and isinstance(value, kind)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list" if Ellipsis in get_args(kind) else f"a list of {len(get_args(kind))} numbers"
    plain = {bool: "true or false", str: "a text", NoneType: "null", int: "a whole number of at least 0"}
    return "an object of options" if is_dataclass(kind) else plain.get(kind, "a number of at least 0")
