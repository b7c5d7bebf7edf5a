"""With ``--json`` standard output is one document; what else writes there, C included, goes to standard error."""

from __future__ import annotations

import ctypes
import io
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TextIO

Print = Callable[[str], object]
OUT, ERR = 1, 2  # file descriptors


@contextmanager
def document_alone(asked: bool, restore: bool = True) -> Generator[Print]:
    """Yields what prints the document. Where one was ``asked`` for, nothing else inside reaches standard output:
    neither print, nor logging, nor a write by C or by a child process to descriptor 1.

    Without ``restore`` that lasts until the process ends, for what a user's code prints as it is torn down.
    """
    if not asked:
        yield lambda text: sys.stdout.write(text)
        return
    mine = sys.stdout
    mine.flush()
    kept = os.dup(OUT)
    os.dup2(ERR, OUT)
    sys.stdout = sys.stderr
    try:
        with _writing(mine, kept) as out:
            yield lambda text: (out.write(text), out.flush())
    finally:
        if restore:
            ctypes.CDLL(None).fflush(None)  # what C's own buffer holds is not ours
            os.dup2(kept, OUT)
            sys.stdout = mine
        os.close(kept)


@contextmanager
def _writing(stream: TextIO, kept: int) -> Generator[TextIO]:
    """The stream itself, or the descriptor that it wrote to, which now is ``kept``."""
    if not _is_standard(stream):
        yield stream
        return
    with os.fdopen(os.dup(kept), "w", encoding=stream.encoding) as out:
        yield out


def _is_standard(stream: TextIO) -> bool:
    try:
        return stream.fileno() == OUT
    except io.UnsupportedOperation:
        return False
