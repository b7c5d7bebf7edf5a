"""Frozen dataclasses as JSON documents: read with every error named, written to be read, described by a JSON Schema."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from partitioner.errors import InputError

T = TypeVar("T")
WIDTH = 120
MOST = 1e30  # of any number
_MOST_BYTES = 16_000_000
_SCALARS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("boolean", (bool,)), int: ("integer", (int,)), float: ("number", (int, float)), str: ("string", (str,)),
    NoneType: ("null", (NoneType,)), dict: ("object", (dict,)),
}  # fmt: skip


class Among:
    """Annotates a dataclass that a dataclass holds: in JSON its fields stand among those of its holder.

    ``keys``: those of the holder's object, in order. ``unwritten``: what fields that are not there are once read.
    """

    def __init__(self, keys: str, **unwritten: object) -> None:
        self.keys, self.unwritten = tuple(keys.split()), unwritten


@dataclasses.dataclass(frozen=True)
class Least:
    """Annotates a number that is never less."""

    value: int


Amount = Annotated[float, Least(0)]  # of seconds, bytes, FLOPs
Count = Annotated[int, Least(0)]
Positive = Annotated[int, Least(1)]


def parsed(path: Path | str, kind: str, constant: Callable[[str], Any] | None = None) -> Any:
    """What the JSON file holds; raises InputError where it is no whole document, and for a key that stands there
    twice. ``kind``: what it should be, and the mend: ``plan: make the plan again``. ``constant``: what NaN and
    Infinity stand for, None: themselves."""
    word, _, mend = kind.partition(": ")
    try:
        if Path(path).stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} has more than {_MOST_BYTES} bytes: it is no {word}")
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return parsed_text(text, str(path), mend, constant)


def parsed_text(text: str, origin: str, mend: str, constant: Callable[[str], Any] | None = None) -> Any:
    """What a JSON document says, with what ``parsed`` refuses."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not a whole JSON document ({error}): {mend}") from error


def _once(rows: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(rows)
    if len(found) != len(rows):
        keys = [key for key, _ in rows]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)[:60]!r} stands there twice")
    return found


def read(cls: type[T], data: object, origin: str) -> T:
    """``data``, as json gives it, as a ``cls``; raises InputError naming the field of ``origin`` that is wrong."""
    try:
        return _reader(cls)(data)
    except _Wrong as wrong:
        raise InputError(wrong.words.format(origin=origin, place=wrong.place)) from None


def write(data: object) -> str:
    """JSON in which whatever fits on a line stands on one."""
    return "".join(_lines(data, 0, 0)) + "\n"


def plain(value: Any) -> Any:
    """A dataclass, and all that it holds, as the objects that JSON has for it."""
    if dataclasses.is_dataclass(value):
        return {name: plain(own) for name, own in _values(value).items()}
    if isinstance(value, dict):
        return {key: plain(own) for key, own in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


def schema(cls: type, title: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what ``read`` takes for ``cls``, descriptions from the docstrings."""
    definitions: dict[str, Any] = {}
    root = _described(cls, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **root, "$defs": definitions}


@functools.cache
def _held(cls: type) -> tuple[str, type, Among] | None:
    """The field of a dataclass whose fields stand among its own, its type, and how."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], Among):
            return name, hint.__origin__, hint.__metadata__[0]
    return None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, in the order in which JSON has them."""
    found, held = get_type_hints(cls, include_extras=True), _held(cls)
    own = {field.name: found[field.name] for field in dataclasses.fields(cls)}
    if held is None:
        return own
    return {key: (own | _hints(held[1]))[key] for key in held[2].keys}


def _values(value: Any) -> dict[str, Any]:
    """The fields of a dataclass's instance, as JSON has them."""
    held = _held(type(value))
    inner = _values(getattr(value, held[0])) if held else {}
    return {name: inner[name] if name in inner else getattr(value, name) for name in _hints(type(value))}


def _built(cls: type, values: dict[str, Any]) -> Any:
    """The instance with these fields."""
    held = _held(cls)
    if held is None:
        return cls(**values)
    name, inner, among = held
    own = {field.name for field in dataclasses.fields(cls)}
    fields = {key: value for key, value in values.items() if key not in own}
    return cls(**{name: inner(**among.unwritten, **fields)}, **{key: values[key] for key in values if key in own})


class _Wrong(Exception):
    """Words with ``{origin}`` and ``{place}`` in them; the place is put together on the way out."""

    def __init__(self, words: str, own: str = "") -> None:
        super().__init__(words)
        self.words, self.parts = words, [own] if own else []

    def under(self, part: str) -> _Wrong:
        self.parts.append(part)
        return self

    @property
    def place(self) -> str:
        return "".join(reversed(self.parts)).lstrip(".") or "the document"


Reader = Callable[[Any], Any]


@functools.cache
def _reader(hint: Any) -> Reader:
    """What turns JSON into a value of this type."""
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _of_class(hint)
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _scalar(frozenset(_SCALARS[parts[0]][1]), parts[1].value)
    if kind is tuple:
        return _list(_reader(parts[0])) if parts[-1] is ... else _several([_reader(part) for part in parts])
    if kind is dict:
        return _table(_reader(parts[1]))
    if hint is Any:
        return _anything
    admitted = parts if kind is UnionType else (hint,)
    return _scalar(frozenset(json_type for part in admitted for json_type in _SCALARS[part][1]))


def _of_class(cls: type) -> Reader:
    readers = [(name, _reader(hint)) for name, hint in _hints(cls).items()]
    known = frozenset(_hints(cls))

    def found(value: Any) -> Any:
        if type(value) is not dict:
            raise _Wrong("{origin}: {place} must be an object")
        if not known.issuperset(value):
            strange = _shown(next(name for name in value if name not in known))
            raise _Wrong("{origin}: {place} has an unknown field " + strange)
        made = {}
        for name, reader in readers:
            if name not in value:
                raise _Wrong("{origin}: the field {place} is missing", f".{name}")
            try:
                made[name] = reader(value[name])
            except _Wrong as wrong:
                raise wrong.under(f".{name}") from None
        return _built(cls, made)

    return found


def _list(reader: Reader) -> Reader:
    def found(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _Wrong("{origin}: the field {place} must be a list, not " + _shown(value))
        made: list[Any] = []
        for own in value:
            try:
                made.append(reader(own))
            except _Wrong as wrong:
                raise wrong.under(f"[{len(made)}]") from None
        return tuple(made)

    return found


def _several(readers: list[Reader]) -> Reader:
    def found(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(readers):
            raise _Wrong(f"{{origin}}: the field {{place}} must be a list of {len(readers)}, not " + _shown(value))
        made: list[Any] = []
        for reader, own in zip(readers, value, strict=True):
            try:
                made.append(reader(own))
            except _Wrong as wrong:
                raise wrong.under(f"[{len(made)}]") from None
        return tuple(made)

    return found


def _table(reader: Reader) -> Reader:
    def found(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _Wrong("{origin}: {place} must be an object")
        made = {}
        for key, own in value.items():
            try:
                made[_anything(key)] = reader(own)
            except _Wrong as wrong:
                raise wrong.under(f".{_shown(key)}") from None
        return made

    return found


def _scalar(types: frozenset[type], least: int | None = None) -> Reader:
    def found(value: Any) -> Any:
        if type(value) not in types:
            raise _Wrong("{origin}: the field {place} has a wrong value " + _shown(value))
        if least is not None and value < least:
            wanted = "positive" if least == 1 else f"at least {least}"
            raise _Wrong(f"{{origin}}: {{place}} must be {wanted}, not {value}")
        return _anything(value)

    return found


def _anything(value: Any) -> Any:
    """No text that would drive a terminal or that none can print, no number too large to reckon with, at any depth."""
    if isinstance(value, str):
        if not value.isprintable() and any(_drives(ord(c)) for c in value):
            raise _Wrong("{origin}: the field {place} holds a control character: " + _shown(value))
    elif isinstance(value, int | float):
        if not abs(value) < MOST:
            raise _Wrong("{origin}: the field {place} has a wrong value " + _shown(value) + ": too large a number")
    elif isinstance(value, list | dict):
        for own in value if isinstance(value, list) else (*value, *value.values()):
            _anything(own)
    return value


def _drives(code: int) -> bool:
    """Whether it is a control character, or half of one beyond the 65,536 first."""
    return code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000


def _shown(value: Any) -> str:
    """A value in a message: short, and without what ``format`` or a terminal would take for its own."""
    return repr(str(value)[:60]).replace("{", "{{").replace("}", "}}")


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
    properties = {name: _schema_of(hint, definitions) for name, hint in _hints(cls).items()}
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
    if kind is Annotated:
        return {**_schema_of(parts[0], definitions), "minimum": parts[1].value}
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
