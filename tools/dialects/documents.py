"""Texts of configurations as keys and values, nested ones by dotted paths, and back: YAML, TOML, JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from partitioner.errors import InputError
from partitioner.hardware.checked_table import cut
from tools.toml_words import toml_word

MOST_BYTES, MOST_KEYS, DEEPEST, MOST_BITS = 16_000_000, 20_000, 32, 64
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
    """Tells of keys that are given twice, of which the last counts, as in every reader of YAML."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.again = list[str]()


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
    loader.again += [key for key, times in seen.items() if times > 1 and key != "<<"]
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _yaml(text: str) -> tuple[Any, list[str]]:
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.again
    finally:
        loader.dispose()


def _json(text: str) -> tuple[Any, list[str]]:
    again = list[str]()

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        again.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return dict(pairs)

    return json.loads(text, object_pairs_hook=table), again


def _parsed(kind: str, load: Callable[[str], tuple[Any, list[str]]]) -> Callable[[str, str], Parsed]:
    def parse(text: str, origin: str) -> Parsed:
        try:
            found, again = load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(f"{origin} is no {kind}: {said or 'it nests too deeply'}") from error
        if not isinstance(found, dict):
            raise InputError(f"{origin} holds no table of keys: give a configuration in {kind}")
        return flat(found, origin), tuple(f"{cut(key)} is given twice: the last counts" for key in again)

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
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise InputError(f"{origin}: {cut(f'{path}{key}')} is absurdly large: give a number of {MOST_BITS} bits")
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


YAML = Form("YAML", _parsed("YAML", _yaml), _yaml_text)
TOML = Form("TOML", _parsed("TOML", lambda text: (tomllib.loads(text), [])), _toml_text)
JSON = Form("JSON", _parsed("JSON", _json), _json_text)
