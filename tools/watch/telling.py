"""What rank 0 tells goes to whoever listens: the terminal, a log, tensorboard."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, TextIO

from partitioner import Plan
from partitioner.errors import InputError
from tools.watch.metrics import STEP, Event, beside_plan

MARK = "\x1e"  # before an event's JSON, as RFC 7464 has it: what the user's code prints has none


class Listener(Protocol):
    """``close`` is called once, when nothing more comes."""

    def tell(self, event: Event) -> None: ...
    def close(self) -> None: ...


class Telling:
    """``events`` are those of rank 0 so far; ``status``: the exit status, told in the end to ``listeners``.

    A listener that fails is left out from then on, and that is said: training goes on.
    """

    def __init__(self, plan: Plan, listeners: Sequence[Listener]) -> None:
        self.events: list[Event] = []
        self.status = 1
        self._plan, self._listeners = plan, list(listeners)

    def __enter__(self) -> Telling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raised = {} if error is None else {"why": f"{type(error).__name__}: {error}"}
        status = 2 if isinstance(error, InputError) else getattr(error, "code", self.status)  # SystemExit has one
        self.note({"status": status, **raised})
        for listener in self._listeners:
            listener.close()

    def read(self, line: str) -> None:
        """A line of rank 0: an event, or what the user's code printed there, perhaps without an end of its line."""
        event = event_of(line, sys.stdout)
        if event is not None:
            self.tell(event)

    def tell(self, event: Event) -> None:
        """Keep an event of rank 0, and tell of it."""
        self.events.append(event)
        self.note(beside_plan(event, self._plan) if STEP in event else event)

    def note(self, event: Event) -> None:
        """Tell of it."""
        failed = list[Event]()
        for listener in tuple(self._listeners):
            try:
                listener.tell(event)
            except Exception as error:  # whatever it is, the ranks wait for this to return
                self._listeners.remove(listener)
                failed.append({"warning": f"{listener}: {error}; nothing more is told there"})
        for warning in failed:
            self.note(warning)


def event_of(line: str, screen: TextIO) -> Event | None:
    """The event in a line of rank 0, None where it has none; what the user's code printed there goes to ``screen``."""
    printed, marked, text = line.partition(MARK)
    screen.write(printed)
    return json.loads(text) if marked else None
