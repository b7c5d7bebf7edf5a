"""What a run says on the terminal while it goes on: a bar, elsewhere a line a second at most; warnings at once."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.screen import errors, number, percent, seconds
from tools.watch.metrics import STEP, VALIDATION, Event

LEAST_SECONDS = 1.0  # between two lines
WIDE = 120  # from so many columns on the bar is long
GAPS = 11  # between columns, and the elapsed time


class Terminal:
    """The bar is there inside a ``with``."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._steps, self._said_at, console = steps, -LEAST_SECONDS, console or errors()
        bar = 40 if console.width >= WIDE else 6
        columns = (TextColumn("{task.description}"), BarColumn(bar), MofNCompleteColumn(), TimeElapsedColumn())
        self._room = console.width - bar - len(f"{steps}/{steps}") - GAPS
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting ranks", total=steps)

    def __enter__(self) -> Terminal:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more comes."""
        self._bar.stop()

    def tell(self, event: Event) -> None:
        """Show it."""
        if "warning" in event:
            self._say(f"warning: {event['warning']}")
        elif "evaluated" in event:
            self._say(f"step {event['evaluated']:,}: validation loss {event[VALIDATION]:.4f}")
        elif STEP in event:
            self._show(event[STEP], event)

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self, done: int, event: Event) -> None:
        now = time.monotonic()
        if not self._bar.disable:
            self._bar.update(self._task, description=words(event, self._room), completed=done)
        elif done == self._steps or now - self._said_at >= LEAST_SECONDS:
            self._said_at = now
            sys.stderr.write(f"step {done:,} of {self._steps:,}: {words(event)}\n")


def words(event: Event, room: int | None = None) -> str:
    """What is told of a step; in so many columns, without what weighs least."""
    loss = "no number" if event["loss"] is None else f"{event['loss']:.4f}"
    unit = next(key for key in event if key.endswith("_per_second")).removesuffix("_per_second")
    rows = [  # by how early each is left out
        (0, f"loss {loss}"),
        (0, f", {seconds(event['seconds'])}"),
        (3, " a step"),
        (4, f" (predicted {seconds(event['predicted_seconds'])})"),
        (2, f", {number(event[f'{unit}_per_second'])} {unit}/s"),
        (1, f", MFU {percent(event['mfu'])}"),
        *([(0, f", {event['skipped']:,} skipped")] if event["skipped"] else []),
    ]
    said = ["".join(text for rank, text in rows if rank <= most) for most in (4, 3, 2, 1, 0)]
    return next((text for text in said if room is None or len(text) <= room), said[-1])
