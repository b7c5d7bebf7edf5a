"""A command run in this process, with all that it says and how it ends: status, output, errors, and what it raised."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from tools.main import main

SECONDS = 20.0  # beyond it a reader hangs
FIRST_SECONDS = 200.0  # of what imports for the first time
FINE = (0, 1, 2, 3)
_NONSENSE = re.compile(r"\b(nan|inf|None)\b|(?<![\w.\-/])-\d")
_TOLD = re.compile(r"^(importing |partitioner: \S+: STALE)|Fontconfig")  # not of an error


class TooLong(BaseException):
    """The limit is reached; no ``except Exception`` takes it for an error of its own."""


@dataclass(frozen=True)
class Heard:
    """``status`` None where it raised, and then ``raised`` names what and the line."""

    status: int | None
    out: str
    err: str
    raised: str = ""

    @property
    def lines(self) -> list[str]:
        """What is said of an error."""
        return [line for line in self.err.splitlines() if line.strip() and not _TOLD.search(line)]


@contextmanager
def limited(seconds: float = SECONDS) -> Generator[None]:
    """TooLong inside, after so many seconds."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def hear(words: list[str], limit: float = SECONDS, command: Callable[[list[str]], int] = main) -> Heard:
    """Run it; nothing that it raises leaves this, TooLong neither."""
    raised, status = "", None
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        with _into(out.fileno(), err.fileno()), warnings.catch_warnings():
            try:
                with limited(limit):
                    status = command(words)
            except TooLong:
                raised = "TooLong"
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                raised = f"{type(error).__name__}: {str(error)[:120]} ({last.filename}:{last.lineno})"
        return Heard(status, _read(out), _read(err), raised)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@contextmanager
def _into(out: int, err: int) -> Generator[None]:
    """Standard output and errors, C's and Python's, go there."""
    mine, kept = (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
    for stream in mine:
        stream.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)
    with os.fdopen(os.dup(1), "w") as sys.stdout, os.fdopen(os.dup(2), "w", errors="backslashreplace") as sys.stderr:
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = mine
            for number, own in enumerate(kept, 1):
                os.dup2(own, number)
                os.close(own)


def verdict(found: Heard, names: set[str]) -> tuple[str, str]:
    """``accepted``, ``clear``, or what is wrong, and the words that show it. ``names``: the file, and what it holds, of
    which an error has to name one."""
    if found.raised:
        return ("hang" if found.raised == "TooLong" else "traceback"), found.raised
    if found.status not in FINE:
        return "unclear", f"exit status {found.status}"
    if "Traceback" in found.err + found.out:
        return "traceback", found.err[-300:]
    if found.status in (0, 1):
        wrong = _NONSENSE.search(found.out)
        if wrong:
            start = max(0, wrong.start() - 60)
            return "nonsense", found.out[start : wrong.end() + 20]
        return ("unclear", found.lines[0][:300]) if found.lines else ("accepted", "")
    if len(found.lines) != 1:
        return "unclear", f"{len(found.lines)} lines: {found.err[:300]}"
    (line,) = found.lines
    if len(line) > 700:
        return "unclear", f"{len(line)} characters: {line[:200]}"
    if not any(name in line or name.replace("_", " ") in line for name in names):
        return "unclear", line
    return "clear", line
