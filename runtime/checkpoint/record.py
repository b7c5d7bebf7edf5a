"""``complete.json``: what a checkpoint says of itself, and whether its files are still those that were written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from partitioner.errors import InputError

COMPLETE, VERSION = "complete.json", 2  # 1 had sizes alone
UNSUMMED = 1


class NotWhole(InputError):
    """A checkpoint that is torn or damaged."""


def not_whole(folder: Path, why: str) -> NotWhole:
    """The error that says so, in one line."""
    return NotWhole(f"{folder} is not a whole checkpoint ({' '.join(why.split())})")


@dataclass(frozen=True)
class Progress:
    """How far training has come: steps done, the run's seed, and samples read of the data, all ranks together.

    ``loss_scale``: its numbers, None where the loss is not scaled. ``skipped``: steps without an update, beside those
    that it counts. ``data``: the user's own, packed.
    """

    step: int
    seed: int
    samples: int
    loss_scale: dict[str, Any] | None = None
    skipped: int = 0
    data: Any = None


@dataclass(frozen=True)
class File:
    """One file as it was written. ``sha256``: hexadecimal, None in a checkpoint of version 1."""

    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Record:
    """``optimizer``: its class, None where only weights were saved; ``groups``: its hyper-parameters."""

    progress: Progress
    optimizer: str | None
    groups: list[dict[str, Any]]
    files: Mapping[str, File] = field(default_factory=dict)


def write_record(folder: Path, record: Record) -> None:
    """Into a folder whose other files are all written."""
    said = {"version": VERSION, **asdict(record)}
    with (folder / COMPLETE).open("w") as file:
        file.write(json.dumps(said | {"sha256": own_sum(said)}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_record(folder: Path) -> Record:
    """Raises NotWhole for one that is missing or damaged, InputError for one of a later program."""
    try:
        if not (folder / COMPLETE).is_file():  # a pipe, too, is none: it would be waited for
            raise ValueError("it is missing, or no file")
        found = json.loads((folder / COMPLETE).read_text())
        version, said = found.get("version", UNSUMMED), found.pop("sha256", None)
        if not _is_count(version) or version < UNSUMMED:
            raise ValueError("its version is none")
        if version > UNSUMMED and (said or version <= VERSION) and said != own_sum(found):
            raise ValueError("it holds other bytes than were written")
        if version > VERSION:
            raise InputError(
                f"{folder}: version {str(version)[:60]} is newer than this program, which reads {VERSION}: update it"
            )
        files = {name: File(row, None) if version == UNSUMMED else File(**row) for name, row in found["files"].items()}
        made = Record(Progress(**found["progress"]), found["optimizer"], found.get("groups", []), files)
        if wrong := next(_wrong(made), ""):
            raise ValueError(f"its {wrong} is none")
        return made
    except (AttributeError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise not_whole(folder, f"{COMPLETE}: {type(error).__name__}: {str(error)[:200]}") from error


def _wrong(made: Any) -> Iterator[str]:
    """The fields whose values are of another kind than are written."""
    own: Any = made.progress
    yield from (key for key in ("step", "samples", "skipped") if not _is_count(getattr(own, key)))
    if not isinstance(own.seed, int) or isinstance(own.seed, bool):
        yield "seed"
    if own.loss_scale is not None and not _is_scale(own.loss_scale):
        yield "loss_scale"
    if not isinstance(made.optimizer, str | None):
        yield "optimizer"
    if not isinstance(made.groups, list) or not all(map(_is_group, made.groups)):
        yield "groups"
    for file in made.files.values():
        if not _is_count(file.bytes) or not isinstance(file.sha256, str | None):
            yield "files"


def _is_scale(value: Any) -> bool:
    """The numbers of a ``LossScale``."""
    if not isinstance(value, dict) or not set(value) <= {"value", "good", "skipped"}:
        return False
    return all(_is_number(v) and v >= 0 for v in value.values()) and value.get("value", 1.0) > 0


def _is_group(row: Any) -> bool:
    """Hyper-parameters of one, whose rate is a number."""
    return isinstance(row, dict) and _is_number(row.get("lr", 0.0))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def own_sum(said: Mapping[str, Any]) -> str:
    """Of all that a record says but its sum."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def check_files(folder: Path, files: Iterable[tuple[str, File]]) -> None:
    """Whether these files are as they were written; raises NotWhole that names the first that is not."""
    for name, written in files:
        try:
            fault = _fault(folder / name, written) if Path(name).name == name else "is no file of it"
        except OSError as error:
            fault = f"can't be read: {error.strerror or error}"
        if fault:
            raise not_whole(folder, f"{name} {fault}")


def _fault(path: Path, written: File) -> str | None:
    if not path.is_file():
        return "is missing"
    if (have := path.stat().st_size) != written.bytes:
        return f"has {have} of {written.bytes} bytes"
    if written.sha256 is not None and sha256(path) != written.sha256:
        return "holds other bytes than were written"
    return None


def sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal, as ``sha256sum`` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
