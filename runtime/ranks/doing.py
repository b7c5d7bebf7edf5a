"""What this rank is doing: waiting for other ranks, or busy with something of its own.

The innermost frame that is neither the standard library's nor plain torch's tells: one of torch.distributed, or of a
function that says of itself that it ``waits``, waits; any other is busy.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])
BACKWARD = "_engine_run_backward"  # on a GPU the ops of a backward run on threads of their own
_WAITING: set[CodeType] = set()


def waits(function: F) -> F:
    """Marks a function that waits for other ranks, in torch's C++ or on a thread that does."""
    _WAITING.add(function.__code__)
    return function


@dataclass(frozen=True)
class Doing:
    """``where``: as ``all_reduce (axis.py:115)``."""

    waits: bool
    where: str


def doing(thread: str | None = None) -> Doing:
    """Of the main thread, or of the one whose name starts so; whatever thread asks."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    known = {t.ident: t for t in threading.enumerate()}
    asked = next((t for t in known.values() if thread is not None and t.name.startswith(thread)), None)
    if thread is not None and asked is None:
        return Doing(True, "what comes after it")
    innermost = frames.get((asked or threading.main_thread()).ident or 0)
    if innermost is None:
        return Doing(False, "its end")
    if any(frame.f_code.co_name == BACKWARD for frame in _innermost_torch(innermost)):
        inside = [_told(frame) for ident, frame in frames.items() if ident not in known]
        for found in sorted(inside, key=lambda row: not row.waits):
            return found
    return _told(innermost)


def _told(innermost: FrameType) -> Doing:
    called = innermost.f_code.co_name
    for frame in _outward(innermost):
        if not _passes(frame):
            waiting = _speaks(frame) or frame.f_code in _WAITING
            place = next((f for f in _outward(frame) if not _passes(f) and not _of(f, "torch")), frame)
            name = called if waiting and place is not frame else place.f_code.co_name
            return Doing(waiting, f"{name} ({Path(place.f_code.co_filename).name}:{place.f_lineno})")
    return Doing(False, called)


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _innermost_torch(innermost: FrameType) -> Iterator[FrameType]:
    for frame in _outward(innermost):
        if not _passes(frame):
            return
        yield frame


def _passes(frame: FrameType) -> bool:
    """Whether it tells nothing: of the standard library, or of torch but for torch.distributed."""
    root = frame.f_globals.get("__name__", "").partition(".")[0]
    return root in sys.stdlib_module_names or (root == "torch" and not _of(frame, "torch.distributed"))


def _speaks(frame: FrameType) -> bool:
    """Whether it is of what speaks with other ranks; what writes and reads checkpoints is busy."""
    return _of(frame, "torch.distributed") and not _of(frame, "torch.distributed.checkpoint")


def _of(frame: FrameType, package: str) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name == package or name.startswith(f"{package}.")
