"""SIGTERM and SIGINT end a run after the step that it is in: all ranks leave together, the state saved."""

from __future__ import annotations

import signal
from types import FrameType

from runtime.ranks.process_group import largest


class Leaving:
    """From its making on, what this process was asked."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def asked(self) -> int:
        """The signal that any rank got, the same on all; 0 while none came. Called by all ranks together."""
        return int(largest(float(self.number)))
