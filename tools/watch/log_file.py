"""A run as JSON lines, one for each event, appended as it comes.

Each has ``run``, when the run began: steps that it repeats, gone on from an older checkpoint, are told apart by it.
``event`` is start, step, warning, saving, saved, trace, validation, stopped, failed, nothing to train or end. What is
no number is null.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from partitioner.errors import InputError
from tools.watch.metrics import VALIDATION, Event, finite

EVENTS = {  # by an event's first key, where it is not that key
    VALIDATION: "validation", "left": "stopped", "nothing left": "nothing to train", "plan": "start", "status": "end",
}  # fmt: skip


class LogFile:
    """Appends to a file, which begins a line of its own where a run was killed in the middle of one."""

    def __init__(self, path: str) -> None:
        self._path, self._run = Path(path), _now()
        try:
            self._file = self._path.open("ab")
            if self._path.is_file() and not _ends_a_line(self._path):
                self._file.write(b"\n")
        except OSError as error:
            raise InputError(f"--log {path} can't be written: {error.strerror or error}") from error

    def __str__(self) -> str:
        return f"--log {self._path}"

    def tell(self, event: Event) -> None:
        """Write its line, flushed."""
        first = next(iter(event))
        row = {"run": self._run, "time": _now(), "event": EVENTS.get(first, first), **event}
        self._file.write(json.dumps(_valid(row), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")


def _valid(value: Any) -> Any:
    """With null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _valid(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(own) for own in value]
    return finite(value) if isinstance(value, float) else value
