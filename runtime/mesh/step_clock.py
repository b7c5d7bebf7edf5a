"""Where a rank's step goes: seconds in collectives, in waiting for other stages, in sync and update; the rest computes.

On a GPU the marks are events of the current stream, so a part is what it keeps that stream from computing.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from runtime.ranks.doing import waits


class Clock:
    """Seconds by part since it was last read."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._rows: list[tuple[str, Any, Any]] = []

    @contextmanager
    def during(self, part: str) -> Generator[None]:
        """Count what runs inside as ``part``; parts don't nest."""
        start = self._mark()
        try:
            yield
        finally:
            self._rows.append((part, start, self._mark()))

    @waits
    def read(self) -> dict[str, float]:
        """What each part took, and start anew."""
        if self._on_gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for part, start, end in self._rows:
            took = start.elapsed_time(end) / 1e3 if self._on_gpu else end - start
            found[part] = found.get(part, 0.0) + took
        self._rows.clear()
        return found

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
