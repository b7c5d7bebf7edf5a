"""What a run says while it goes on: a bar on a terminal, else a line a second at most; warnings at once."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.run.training_loop import Event
from tools.screen import errors, seconds

MARK = "\x1e"  # before an event's JSON, as RFC 7464 has it: what the user's code prints has none
LEAST_SECONDS = 1.0  # between two lines


class Progressing:
    """``events`` are those of rank 0 so far."""

    def __init__(self, steps: int, predicted_seconds: float) -> None:
        self.events: list[Event] = []
        self._steps, self._ahead = steps, f" (predicted {seconds(predicted_seconds)})"
        self._said_at = -LEAST_SECONDS
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = errors()
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting ranks", total=steps)

    def __enter__(self) -> Progressing:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def read(self, line: str) -> None:
        """A line of rank 0: an event, or what the user's code printed there, perhaps without an end of its line."""
        printed, marked, text = line.partition(MARK)
        sys.stdout.write(printed)
        if marked:
            self.tell(json.loads(text))

    def tell(self, event: Event) -> None:
        """Keep an event, and show it."""
        self.events.append(event)
        if "warning" in event:
            self._say(f"warning: {event['warning']}")
        elif "evaluated" in event:
            self._say(f"step {event['evaluated']:,}: validation loss {event['validation_loss']:.4f}")
        elif "step" in event:
            self._show(event["step"], _words(event))

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self, done: int, words: str) -> None:
        now = time.monotonic()
        if not self._bar.disable:
            self._bar.update(self._task, description=words + self._ahead, completed=done)
        elif done == self._steps or now - self._said_at >= LEAST_SECONDS:
            self._said_at = now
            sys.stderr.write(f"step {done:,} of {self._steps:,}: {words}{self._ahead}\n")


def _words(event: Event) -> str:
    skipped = f", {event['skipped']:,} skipped" if event.get("skipped") else ""
    return f"loss {event['loss']:.4f}, {seconds(event['seconds'])} a step{skipped}"
