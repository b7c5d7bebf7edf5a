"""A dataclass of numbers out of a table of plain data: what is missing, unknown or absurd is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from partitioner.errors import InputError

T = TypeVar("T")
MOST, LEAST = 1e30, 1e-15  # of any number, and of one that must be positive
_MOST = {"norm": 64, "tile_power": 16, "tiles": 65536, "virtual": 64}
_LONGEST = 200  # of a name
_LONGEST_LIST = 64
_MAY_BE_ZERO = (
    "_seconds", "spread", "contention", "droop", "_depth", "last_wave", "_passes",
    "_each", "overheads", "tail",
)  # fmt: skip
_FROM_ZERO = (".zero",)  # whole numbers that count from 0
_SHARES = ("efficiency", "share", "kept_products", "contention", "last_wave", "sustained", "generation_shares")


def built(kind: type[T], table: Mapping[str, Any], where: str, origin: str) -> T:
    """A dataclass of numbers, booleans, names, lists and tables of numbers; raises InputError naming what is wrong.

    A field's name says what it may be: shares are at most 1, times may be 0. Fields whose type is another dataclass
    come built.
    """
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    strange = next((key for key in table if key not in known), None)
    if strange is not None:
        raise InputError(f"{origin}: unknown field {where}.{cut(strange)}")
    made = dict[str, Any]()
    for key, f in known.items():
        if key not in table and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{origin}: the field {where}.{key} is missing")
        if key in table:
            made[key] = _read(str(f.type), table[key], f"{where}.{key}", origin)
    return kind(**made)


def _read(kind: str, value: Any, where: str, origin: str) -> Any:
    """``kind``: a field's annotation, as text."""
    if kind == "bool":
        if not isinstance(value, bool):
            raise InputError(f"{origin}: {where} must be true or false, it is {shown(value)}")
    elif kind == "str":
        if not is_name(value):
            raise InputError(f"{origin}: {where} must be a name, it is {shown(value)}")
    elif kind == "int":
        least = 0 if where.endswith(_FROM_ZERO) else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            what = "a positive whole number" if least else "a whole number from 0"
            raise InputError(f"{origin}: {where} must be {what}, it is {shown(value)}")
        number(value or 1, where, origin)
    elif kind in ("float", "float | None"):
        if not (value is None and kind == "float | None"):
            number(value, where, origin)
    elif kind.startswith("tuple["):
        return _listed(kind.removeprefix("tuple[").removesuffix(", ...]"), value, where, origin)
    elif kind.startswith("Mapping[str, float]"):
        for key, each in table(value, where, origin).items():
            number(each, where, origin, cut(str(key)))
    return value


def _listed(kind: str, value: Any, where: str, origin: str) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 0 < len(value) <= _LONGEST_LIST:
        raise InputError(f"{origin}: {where} must be a list of 1 to {_LONGEST_LIST}, it is {shown(value)}")
    if kind == "tuple[int, int]":
        if any(not isinstance(row, Sequence) or len(row) != 2 for row in value):
            raise InputError(f"{origin}: {where} must be a list of pairs, it is {shown(value)}")
        return tuple((_read("int", a, where, origin), _read("int", b, where, origin)) for a, b in value)
    if kind in ("int", "float", "str"):
        return tuple(_read(kind, each, where, origin) for each in value)
    return tuple(value)


def number(value: Any, where: str, origin: str, key: str = "") -> None:
    """Refuse what is no positive finite number; times may be 0, shares are at most 1. ``key``: of a table of numbers,
    which the name of the table judges."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST
    name, place = where.rsplit(".", 1)[-1], f"{where}.{key}" if key else where
    if not is_number or value < (0 if name.endswith(_MAY_BE_ZERO) else LEAST):
        raise InputError(f"{origin}: {place} must be a positive number, it is {shown(value)}")
    if name.endswith(_SHARES) and value > 1:
        raise InputError(f"{origin}: {place} is a share and at most 1, it is {shown(value)}")
    if (most := _MOST.get(name)) is not None and value > most:
        raise InputError(f"{origin}: {place} must be at most {most}, it is {shown(value)}")


def table(found: Any, key: str, origin: str) -> Mapping[str, Any]:
    """A table of a file; raises InputError where there is none."""
    if not isinstance(found, Mapping):
        raise InputError(f"{origin}: the table [{key}] is missing")
    return found


def is_name(value: Any) -> bool:
    """Short, and without what would drive a terminal."""
    return isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()


def shown(value: Any) -> str:
    """A value in a message."""
    return cut(repr(value))


def cut(text: str) -> str:
    """A text of a file in a message."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
