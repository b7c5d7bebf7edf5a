"""SIGTERM and SIGINT end a run after the step that it is in: all ranks leave together, the state saved."""

from __future__ import annotations

import signal
from types import FrameType

from runtime.ranks.process_group import largest

FAILED = 1000  # more than any signal


class Leaving:
    """From its making on, what this process was asked."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def asked(self, has_failed: bool) -> int:
        """The signal that any rank got, FAILED where any has failed, else 0; the same on all, who call it together."""
        return int(largest(float(FAILED if has_failed else self.number)))
