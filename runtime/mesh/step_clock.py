"""Where a rank's step goes: seconds in collectives, in waiting for other stages, in sync and update; the rest computes.

On a GPU the marks are events of the current stream, so a part is what it keeps that stream from computing.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from runtime.ranks.doing import waits

PART = "part"


@dataclass(frozen=True)
class Slice:
    """From which second to which something was done, since ``Clock.follow``; ``kind``: PART, or of what holds parts."""

    name: str
    kind: str
    start: float
    stop: float


class Clock:
    """Seconds by part since it was last read; ``slices``: what was done when, while it is followed."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._rows: list[tuple[str, str, Any, Any]] = []
        self._origin: Any = None
        self.slices: list[Slice] = []

    def during(self, part: str) -> AbstractContextManager[object]:
        """Count what runs inside as ``part``; parts don't nest."""
        return self._noted(part, PART)

    def around(self, name: str, kind: str) -> AbstractContextManager[object]:
        """Where the clock is followed, note when what runs inside did, parts among it."""
        return nullcontext() if self._origin is None else self._noted(name, kind)

    def follow(self) -> None:
        """Keep from now on when each thing was done, in seconds from now."""
        if self._on_gpu:
            torch.cuda.synchronize()
        self._origin = self._mark()

    def unfollow(self) -> None:
        """No longer; ``slices`` stay."""
        self._origin = None

    def clear(self) -> None:
        """Forget what was done since the last reading."""
        self._rows.clear()

    @waits
    def read(self) -> dict[str, float]:
        """What each part took, and start anew."""
        if self._on_gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for name, kind, start, end in self._rows:
            if kind == PART:
                found[name] = found.get(name, 0.0) + self._between(start, end)
            if self._origin is not None:
                at, until = (self._between(self._origin, mark) for mark in (start, end))
                self.slices.append(Slice(name, kind, at, until))
        self._rows.clear()
        return found

    @contextmanager
    def _noted(self, name: str, kind: str) -> Generator[None]:
        start = self._mark()
        try:
            yield
        finally:
            self._rows.append((name, kind, start, self._mark()))

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self._on_gpu else end - start

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
