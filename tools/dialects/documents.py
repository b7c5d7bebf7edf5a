"""Texts of configurations as keys and values, nested ones by dotted paths, and back: YAML, TOML, JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from partitioner.errors import InputError
from partitioner.hardware.checked_table import cut
from tools.toml_words import toml_word

MOST_BYTES, MOST_KEYS, DEEPEST = 16_000_000, 20_000, 32
Parsed = tuple[dict[str, Any], tuple[str, ...]]


@dataclass(frozen=True)
class Form:
    """``parse``: a text, and the name of what it is from, as keys and values and what is to note; raises InputError.
    ``dump``: keys and values as a text, below what is to be said in it where it has comments."""

    name: str
    parse: Callable[[str, str], Parsed]
    dump: Callable[[Mapping[str, Any], Sequence[str]], str]


def text_of(path: str) -> str:
    """A configuration's text; raises InputError where there is none."""
    try:
        data = Path(path).read_bytes()
        if len(data) > MOST_BYTES:
            raise InputError(f"{path} is {len(data):,} bytes long: no configuration is")
        text = data.decode()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: give a configuration") from error
    if not text.strip() or "\0" in text:
        raise InputError(f"{path} is {'no text' if text.strip() else 'empty'}: give a configuration")
    return text


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = [key.value for key, _ in node.value if isinstance(key.value, str)]
    if again := next((key for key in seen if seen.count(key) > 1), None):
        raise yaml.constructor.ConstructorError(None, None, f"the key {cut(again)} is given twice", node.start_mark)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = [key for key, _ in pairs]
    if again := next((key for key in seen if seen.count(key) > 1), None):
        raise ValueError(f"the key {cut(again)} is given twice")
    return dict(pairs)


def _parsed(kind: str, load: Callable[[str], Any]) -> Callable[[str, str], Parsed]:
    def parse(text: str, origin: str) -> Parsed:
        try:
            found = load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(f"{origin} is no {kind}: {said or 'it nests too deeply'}") from error
        if not isinstance(found, dict):
            raise InputError(f"{origin} holds no table of keys: give a configuration in {kind}")
        return flat(found, origin), ()

    return parse


def flat(found: Mapping[Any, Any], origin: str) -> dict[str, Any]:
    """Nested tables by dotted paths; raises InputError where they are absurdly many or deep."""
    made: dict[str, Any] = {}
    for key, value in _leaves(found, "", 0, origin):
        made[key] = value
        if len(made) > MOST_KEYS:
            raise InputError(f"{origin} holds more than {MOST_KEYS:,} keys: no configuration does")
    return made


def _leaves(found: Mapping[Any, Any], path: str, depth: int, origin: str) -> Iterator[tuple[str, Any]]:
    if depth > DEEPEST:
        raise InputError(f"{origin} nests tables more than {DEEPEST} deep: no configuration does")
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.", depth + 1, origin)
        else:
            yield f"{path}{key}", value


def nested(found: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``flat``."""
    made: dict[str, Any] = {}
    for path, value in found.items():
        *tables, key = path.split(".")
        table = made
        for name in tables:
            table = table.setdefault(name, {})
        table[key] = value
    return made


def _comments(said: Sequence[str]) -> str:
    return "".join(f"# {line}\n" for line in said)


def _yaml_text(found: Mapping[str, Any], said: Sequence[str]) -> str:
    return _comments(said) + yaml.safe_dump(nested(found), sort_keys=False, default_flow_style=False)


def _json_text(found: Mapping[str, Any], said: Sequence[str]) -> str:
    return json.dumps(nested(found), indent=2) + "\n"


def _toml_text(found: Mapping[str, Any], said: Sequence[str]) -> str:
    tables: dict[str, list[str]] = {}
    for path, value in found.items():
        table, _, key = path.rpartition(".")
        bare = key if re.fullmatch(r"[\w-]+", key) else json.dumps(key)
        tables.setdefault(table, []).append(f"{bare} = {toml_word(value)}\n")
    parts = [(f"[{table}]\n" if table else "") + "".join(lines) for table, lines in sorted(tables.items())]
    return _comments(said) + "\n".join(parts)


YAML = Form("YAML", _parsed("YAML", lambda text: yaml.load(text, _Loader)), _yaml_text)  # noqa: S506
TOML = Form("TOML", _parsed("TOML", tomllib.loads), _toml_text)
JSON = Form("JSON", _parsed("JSON", lambda text: json.loads(text, object_pairs_hook=_pairs)), _json_text)
