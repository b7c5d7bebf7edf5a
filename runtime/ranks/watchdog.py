"""What takes far too long ends its process, loudly: every thread's stack, one ``hung`` line, exit status 75."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

from runtime.ranks import hang
from runtime.ranks.error_file import leave_error

HUNG_STATUS = 75
STACK_SIGNAL = signal.SIGUSR1
STDERR = 2  # its descriptor, whatever sys.stderr is now

LINGER_SECONDS = 0.5

_ending = threading.Lock()
_watching = set[object]()  # what watches the main thread now


def answer_stack_signal() -> None:
    """From now on SIGUSR1 writes every thread's stack to standard error, also while the process is blocked in C."""
    faulthandler.register(STACK_SIGNAL, file=STDERR, all_threads=True)


def answer_when_asked() -> None:
    """From now on this rank ends when another hangs, telling what it is doing."""
    hang.answer_when_asked(_end)


def is_watched() -> bool:
    """Whether what the main thread does has a limit already."""
    return bool(_watching)


class _Deadlines:
    """One thread that wakes when the first is over: what begins and ends many times a second starts and wakes none, for
    on a busy machine that would wait for a core each time."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """With nothing to wait for, and no thread, as in a process that was just forked."""
        self._changed, self._thread = threading.Condition(), None
        self._due, self._wakes = dict[object, tuple[float, Callable[[], object]]](), math.inf

    def add(self, key: object, seconds: float, late: Callable[[], object]) -> None:
        """Call ``late``, once, in so many seconds."""
        with self._changed:
            due = time.monotonic() + seconds
            self._due[key] = due, late
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait, name="watchdog", daemon=True)
                self._thread.start()
            elif due < self._wakes:
                self._changed.notify()

    def remove(self, key: object) -> None:
        """It needs no call any more."""
        with self._changed:
            self._due.pop(key, None)

    def _wait(self) -> None:
        while True:
            with self._changed:
                first = min(self._due, key=lambda key: self._due[key][0], default=None)
                self._wakes = math.inf if first is None else self._due[first][0]
                left = self._wakes - time.monotonic()
                if first is None or left > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                    continue
                _, late = self._due.pop(first)
            late()


_deadlines = _Deadlines()
os.register_at_fork(after_in_child=_deadlines.begin)


class Watchdog:
    """``with Watchdog(limit_seconds, "step 7"): ...`` ends the process if the body takes longer.

    Nothing is raised into the body: a rank blocked in a collective cannot be woken. ``start`` and ``stop`` are for what
    no block holds; ``thread``: the start of the name of the one that does it, None for the main thread.
    """

    def __init__(self, limit_seconds: float, what: str, thread: str | None = None) -> None:
        late = f"{what} took more than {limit_seconds:g} s"
        self._seconds, self._late = limit_seconds, lambda: _end(lambda: hang.ask(late, thread))
        self._is_of_main = thread is None

    def start(self) -> Watchdog:
        """From now on."""
        _deadlines.add(self, self._seconds, self._late)
        if self._is_of_main:
            _watching.add(self)
        return self

    def stop(self) -> None:
        """It was in time."""
        _deadlines.remove(self)
        _watching.discard(self)

    def __enter__(self) -> None:
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _end(settle: Callable[[], str]) -> None:
    if not _ending.acquire(blocking=False):
        return
    try:
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        line = settle()
        os.write(STDERR, f"hung: {line}\n".encode())
        leave_error(TimeoutError(f"hung: {line}"))
        time.sleep(LINGER_SECONDS)  # others read the store, which may be in this process
    finally:
        os._exit(HUNG_STATUS)
