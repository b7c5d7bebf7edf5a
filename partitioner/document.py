"""Frozen dataclasses as JSON documents: read with every error named, written to be read, described by a JSON Schema."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from partitioner.errors import InputError

T = TypeVar("T")
WIDTH = 120
MOST = 1e30  # of any number
_SCALARS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("boolean", (bool,)), int: ("integer", (int,)), float: ("number", (int, float)), str: ("string", (str,)),
    NoneType: ("null", (NoneType,)), dict: ("object", (dict,)),
}  # fmt: skip


def read(cls: type[T], data: object, origin: str, path: str = "") -> T:
    """``data``, as json gives it, as a ``cls``; raises InputError naming the field of ``origin`` that is wrong."""
    found = _object(data, origin, path)
    known = hints(cls)
    for name in found:
        if name not in known:
            raise InputError(f"{origin}: {path or 'the document'} has an unknown field {name[:60]}")
    values = {}
    for name, hint in known.items():
        place = f"{path}.{name}".lstrip(".")
        if name not in found:
            raise InputError(f"{origin}: the field {place} is missing")
        values[name] = _value(hint, found[name], origin, place)
    return cls(**values)


def write(data: object) -> str:
    """JSON in which whatever fits on a line stands on one."""
    return "".join(_lines(data, 0, 0)) + "\n"


def schema(cls: type, title: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what ``read`` takes for ``cls``, descriptions from the docstrings."""
    definitions: dict[str, Any] = {}
    root = _described(cls, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **root, "$defs": definitions}


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, in order."""
    found = get_type_hints(cls)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def _object(data: object, origin: str, path: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InputError(f"{origin}: {path or 'the document'} must be an object")
    return data


def _value(hint: Any, value: Any, origin: str, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return read(hint, value, origin, path)  # type: ignore[arg-type]
    kind, parts = get_origin(hint), get_args(hint)
    if kind is tuple:
        return _several(parts, value, origin, path)
    if kind is dict:
        rows = _object(value, origin, path).items()
        return {key: _value(parts[1], own, origin, f"{path}.{key}") for key, own in rows}
    admitted = [part for part in (parts if kind is UnionType else (hint,)) if part is not Any]
    if admitted and not any(_is(value, part) for part in admitted):
        raise InputError(f"{origin}: the field {path} has a wrong value {str(value)[:60]!r}")
    _check(value, origin, path)
    return value


def _check(value: Any, origin: str, path: str) -> None:
    """No text that would drive a terminal, no number beyond what a float holds exactly, at any depth."""
    if isinstance(value, str) and not value.isprintable() and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value):
        raise InputError(f"{origin}: the field {path} holds a control character: {value[:60]!r}")
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < MOST):
        raise InputError(f"{origin}: the field {path} is too large a number")
    for own in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        _check(own, origin, path)


def _several(parts: tuple[Any, ...], value: Any, origin: str, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or (parts[-1] is not ... and len(value) != len(parts)):
        many = "" if parts[-1] is ... else f" of {len(parts)}"
        raise InputError(f"{origin}: the field {path} must be a list{many}, not {str(value)[:60]!r}")
    each = (parts[0],) * len(value) if parts[-1] is ... else parts
    pairs = enumerate(zip(each, value, strict=True))
    return tuple(_value(part, own, origin, f"{path}[{n}]") for n, (part, own) in pairs)


def _is(value: Any, part: type) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, _SCALARS[part][1]) and (part is bool or not isinstance(value, bool))


def _lines(data: object, indent: int, used: int) -> Iterator[str]:
    """``used``: columns before it on its line."""
    short = json.dumps(data)
    if indent + used + len(short) < WIDTH or not isinstance(data, dict | list | tuple) or not data:
        yield short
        return
    pad, ends = "\n" + " " * (indent + 1), "{}" if isinstance(data, dict) else "[]"
    keys = [f"{json.dumps(key)}: " for key in data] if isinstance(data, dict) else [""] * len(data)
    values = list(data.values()) if isinstance(data, dict) else list(data)
    yield ends[0]
    for n, (key, value) in enumerate(zip(keys, values, strict=True)):
        yield ("," if n else "") + pad + key
        yield from _lines(value, indent + 1, len(key))
    yield "\n" + " " * indent + ends[1]


def _described(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _schema_of(hint, definitions) for name, hint in hints(cls).items()}
    return {
        "type": "object", "description": " ".join((cls.__doc__ or "").split()), "properties": properties,
        "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def _schema_of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = _described(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    kind, parts = get_origin(hint), get_args(hint)
    if kind is tuple and parts[-1] is ...:
        return {"type": "array", "items": _schema_of(parts[0], definitions)}
    if kind is tuple:
        each = [_schema_of(part, definitions) for part in parts]
        return {"type": "array", "prefixItems": each, "minItems": len(each), "maxItems": len(each)}
    if kind is dict:
        return {"type": "object", "additionalProperties": _schema_of(parts[1], definitions)}
    if kind is UnionType:
        return {"anyOf": [_schema_of(part, definitions) for part in parts]}
    return {} if hint is Any else {"type": _SCALARS[hint][0]}
