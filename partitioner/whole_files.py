"""Files written whole or not at all: beside, then renamed; a full disk leaves what was there before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from partitioner.errors import InputError


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Make ``path`` a file of this content. Raises InputError where it can't be; what was there is then as it was."""
    target = Path(os.path.realpath(path))
    data = content.encode() if isinstance(content, str) else content
    try:
        if target.exists() and not target.is_file():  # a device, a pipe
            target.write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def _replace(target: Path, data: bytes) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            beside.chmod(target.stat().st_mode)
        beside.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
