"""One ``partitioner run`` that something happens to: what it said, how it ended, and how long after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tools.main", "run")
MOST_SECONDS = 600.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Outcome:
    """``status``: of the command; ``said``: its standard error. ``seconds``: from what happened to its end, None where
    it had ended before."""

    status: int
    said: str
    seconds: float | None


class Running:
    """A run that has been started; ``said`` grows while it runs. ``inside``: the head of a command that runs it."""

    def __init__(
        self, words: Sequence[str], inside: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        every = os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
        self._process = subprocess.Popen(
            [*inside, *COMMAND, *words], env=every, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.said = list[str]()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            self.said.extend(iter(pipe.readline, ""))

    def signal(self, number: int) -> None:
        """Signal the command."""
        self._process.send_signal(number)

    def ranks(self) -> dict[int, int]:
        """The processes of its ranks, by rank; those that have begun."""
        found = dict[int, int]()
        for task in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
            for pid in map(int, _read(task).split()):
                rows = _read(Path(f"/proc/{pid}/environ")).split("\0")
                found |= {int(row[5:]): pid for row in rows if row.startswith("RANK=")}
        return found

    def has_ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def wait_until(self, condition: Callable[[Running], bool]) -> bool:
        """Until it holds; False where the run is over before."""
        end = time.monotonic() + MOST_SECONDS
        while not condition(self):
            if self.has_ended() or time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def end(self, since: float | None = None) -> Outcome:
        """Wait for it; one that goes on for ever is killed, and its status tells."""
        try:
            self._process.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        took = None if since is None else time.monotonic() - since
        self._reader.join(5.0)
        return Outcome(self._process.wait(), "".join(self.said), took)


def undisturbed(words: Sequence[str], inside: Sequence[str] = ()) -> Outcome:
    """To its end."""
    return Running(words, inside).end()


def disturbed(words: Sequence[str], after_seconds: float, rank: int, number: int) -> Outcome:
    """A rank gets a signal so long after it was started, or as soon as it is there."""
    run, began = Running(words), time.monotonic()
    run.wait_until(lambda run: rank in run.ranks() and time.monotonic() - began >= after_seconds)
    pid = run.ranks().get(rank)
    if pid is None:
        return run.end()
    since = time.monotonic()
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return run.end()
    return run.end(since)


def asked_to_leave(words: Sequence[str], after_seconds: float) -> Outcome:
    """The command gets SIGTERM."""
    run, began = Running(words), time.monotonic()
    if not run.wait_until(lambda _: time.monotonic() - began >= after_seconds):
        return run.end()
    since = time.monotonic()
    run.signal(signal.SIGTERM)
    return run.end(since)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
