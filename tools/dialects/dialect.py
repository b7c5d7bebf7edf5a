"""A framework's spelling of a step's decisions: rows of keys that are read and written by the same table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from partitioner.errors import InputError
from partitioner.hardware.checked_table import shown
from tools.dialects.configuration import PLACE, PLAIN, Configuration, Reading
from tools.dialects.documents import Form

Values = Mapping[str, Any]
MOST = 2**40  # of any whole number
_DIGITS = 18  # more than MOST has
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none")


@dataclass(frozen=True)
class Row:
    """``keys`` of a file that decide ``fields`` together; the first is the one that people are told of.

    ``read``: the fields by the values of those keys that are there; raises InputError. ``write``: keys and values for a
    Configuration; what it has no words for it leaves out.
    """

    keys: tuple[str, ...]
    fields: tuple[str, ...]
    read: Callable[[Values], Values]
    write: Callable[[Configuration], Values] = lambda _: {}


@dataclass(frozen=True)
class Told:
    """A key that matters and that no plan holds: ``harmless`` values of it, and what to say of others; ``refuse``:
    whether a plan would then be of another step, or, ``of_model``, a plain decoder no such
    model."""

    key: str
    words: str
    harmless: tuple[Any, ...] = (False, 0, 1, "none", "None", "", "0", "1", "false", "False")
    refuse: bool = True
    of_model: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a value is harmless; of truth values only where they are named."""
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.harmless)


def _settled(found: Configuration, blocks: int | None) -> Configuration:
    return found


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """``name`` of the framework, whose traits are those of ``software``; ``form`` of its files; ``rows`` of what is
    understood; ``unread``: patterns of keys that no plan hangs on; ``told``: keys that matter otherwise.

    ``settle``: with what the framework does where its file is silent, and what follows from the number of the model's
    blocks. ``elsewhere``: by field, where people set it instead. ``heading``: keys that a file needs beside decisions.
    ``spelled``: how a key is shown. ``aliases``: other names of keys.
    """

    name: str
    software: str
    form: Form
    rows: tuple[Row, ...]
    unread: tuple[str, ...] = ()
    told: tuple[Told, ...] = ()
    settle: Callable[[Configuration, int | None], Configuration] = _settled
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    heading: Mapping[str, Any] = field(default_factory=dict)
    spelled: Callable[[str], str] = str
    aliases: Mapping[str, str] = field(default_factory=dict)

    def read(self, text: str, origin: str) -> Reading:
        """What a file says; raises InputError naming ``origin`` and the key that is wrong."""
        values, notes = self.form.parse(text, origin)
        try:
            reading = self.reading(values)
            said = [note for note in notes if note.partition(" ")[0] not in reading.unread]
            return replace(reading, notes=(*said, *reading.notes))
        except InputError as error:
            raise InputError(f"{origin}: {error}") from error

    def reading(self, values: Values) -> Reading:
        """Keys and values, read; raises InputError naming the key that is wrong."""
        aliases = dict(self.aliases)
        for key in (key for key in aliases if key in values and aliases[key] in values and values[key] is not None):
            raise InputError(f"{self.spelled(key)} and {self.spelled(aliases[key])} say the same: drop one")
        values = {aliases.get(key, key): value for key, value in values.items()}
        found = {key: value for key, value in values.items() if value is not None and value != "auto"}
        self._check_tables(found)
        fields, taken = dict[str, Any](), list[tuple[str, Any, tuple[str, ...]]]()
        for row in self.rows:
            if here := {key: found[key] for key in row.keys if key in found}:
                new = row.read(here)
                cut = {**fields.get("cut", {}), **new.get("cut", {})}
                fields |= {**new, "cut": cut}
                taken += [(self.spelled(key), value, row.fields) for key, value in here.items()]
        left = {key: value for key, value in found.items() if not any(key in row.keys for row in self.rows)}
        told = [(row, key, value) for key, value in left.items() for row in self.told if fnmatchcase(key, row.key)]
        words = [
            (row, f"{self.spelled(key)}={_shown(value)}: {row.words}")
            for row, key, value in told if not row.allows(value)
        ]  # fmt: skip
        others = [key for key in left if key not in {key for _, key, _ in told}]
        unread = [key for key in others if any(fnmatchcase(key, pattern) for pattern in self.unread)]
        unread += [key for row, key, value in told if row.allows(value)]
        auto = [
            f"{self.spelled(key)}=auto: left to what calls it" for key, value in values.items()
            if value == "auto" and any(key in row.keys for row in self.rows)
        ]  # fmt: skip
        return Reading(
            configuration=Configuration(**fields), taken=tuple(taken), unread=tuple(map(self.spelled, unread)),
            unknown=tuple(self.spelled(key) for key in others if key not in unread),
            notes=(*auto, *(w for row, w in words if not row.refuse)),
            refused=tuple(w for row, w in words if row.refuse and not row.of_model),
            unmodelled=tuple(w for row, w in words if row.refuse and row.of_model),
        )  # fmt: skip

    def _check_tables(self, found: Values) -> None:
        """Raises InputError for a plain value where the framework has a table of keys."""
        known = [key for row in self.rows for key in row.keys]
        tables = {key.rpartition(".")[0] for key in (*known, *(row.key for row in self.told)) if "." in key}
        if wrong := next((key for key in found if key in tables and key not in known), None):
            raise InputError(f"{wrong} must be a table of keys, it is {_shown(found[wrong])}")

    def written(self, asked: Configuration) -> dict[str, Any]:
        """Keys and values that say as much of a Configuration as can be said."""
        found = dict(self.heading)
        for row in self.rows:
            found |= row.write(asked)
        return {key: value for key, value in found.items() if value is not None}

    def untold(self, asked: Configuration, blocks: int | None) -> dict[str, Any]:
        """By field, what ``written`` reads back as where it is something else than what was ``asked``."""
        back = self.settle(self.reading(self.written(asked)).configuration, blocks)
        back = replace(back, devices=back.devices or asked.devices).resolved()
        pairs = {name: (value, getattr(back, name)) for name, value in asked.said.items()}
        follows = ("shards", "replicas") if back.zero != asked.zero else ()
        return {
            name: again for name, (value, again) in pairs.items() if name not in follows
            if again != value and name not in PLACE and not (again is None and value == PLAIN.get(name))
        }  # fmt: skip

    def key_of(self, field: str) -> str:
        """What people are to change where a field is wrong."""
        return next((self.spelled(row.keys[0]) for row in self.rows if field in row.fields), field.replace("_", " "))

    def known(self, values: Iterable[str]) -> int:
        """How many keys of a file are understood."""
        aliases = dict(self.aliases)
        keys = {key for row in self.rows for key in row.keys}
        return sum(aliases.get(key, key) in keys for key in values)


def whole(key: str, value: Any, least: int = 1) -> int:
    """A whole number from ``least``; raises InputError naming the key."""
    written = isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value)
    number = int(value[:_DIGITS]) if written else value
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= MOST:
        what = "a positive whole number" if least == 1 else f"a whole number from {least}"
        if isinstance(value, str) and "$" in value:
            raise InputError(f"{key} is {_shown(value)}, which the file does not set: write {what} there")
        if isinstance(number, int) and not isinstance(number, bool) and number > MOST:
            raise InputError(f"{key} is absurdly large: give {what}")
        raise InputError(f"{key} must be {what}, it is {_shown(value)}")
    return number


def yes(key: str, value: Any) -> bool:
    """True or false, in any spelling; raises InputError naming the key."""
    word = str(value).lower()
    if word in _YES or value in ((), []):  # a flag without a value
        return True
    if word in _NO:
        return False
    raise InputError(f"{key} must be true or false, it is {_shown(value)}")


def one_of(key: str, value: Any, known: Mapping[str, Any]) -> Any:
    """What a word stands for, in small or large letters; raises InputError with all words."""
    by_word = {word.lower(): meant for word, meant in known.items()}
    if str(value).lower() not in by_word:
        raise InputError(f"{key}={_shown(value)} is none of {', '.join(known)}: choose one of them")
    return by_word[str(value).lower()]


def number(key: str, field: str, *others: str, least: int = 1) -> Row:
    """A row of one whole number; ``others``: keys that say the same."""
    keys = (key, *others)

    def read(values: Values) -> Values:
        found = {whole(key, value, least) for key, value in values.items()}
        if len(found) > 1:
            raise InputError(f"{' and '.join(values)} say {' and '.join(map(str, values.values()))}: drop one")
        return {field: found.pop()}

    return Row(keys, (field,), read, lambda asked: {key: getattr(asked, field)})


def word(key: str, field: str, known: Mapping[str, Any]) -> Row:
    """A row of one word."""

    def write(asked: Configuration) -> Values:
        return {key: next((word for word, meant in known.items() if meant == getattr(asked, field)), None)}

    return Row((key,), (field,), lambda values: {field: one_of(key, values[key], known)}, write)


def switch(key: str, field: str, on: Any = True, off: Any = False) -> Row:
    """A row of true or false, written where it is on."""

    def write(asked: Configuration) -> Values:
        return {key: True if getattr(asked, field) == on else None}

    return Row((key,), (field,), lambda values: {field: on if yes(key, values[key]) else off}, write)


def cuts(values: Values) -> Values:
    """Whole numbers that a framework divides by."""
    return {"cut": {key: whole(key, value) for key, value in values.items()}}


def cutting(*keys: str) -> Row:
    """Whole numbers by which stages are cut."""
    return Row(keys, ("stages", "virtual"), cuts)


def _shown(value: Any) -> str:
    return shown(value) if not isinstance(value, str) else shown(value)[1:-1]
