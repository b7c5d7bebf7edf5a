"""What takes far too long ends its process, loudly: every thread's stack, one ``hung`` line, exit status 75."""

from __future__ import annotations

import faulthandler
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


class Watchdog:
    """``with Watchdog(limit_seconds, "step 7"): ...`` ends the process if the body takes longer.

    Nothing is raised into the body: a rank blocked in a collective cannot be woken. ``start`` and ``stop`` are for what
    no block holds; ``thread``: the start of the name of the one that does it, None for the main thread.
    """

    def __init__(self, limit_seconds: float, what: str, thread: str | None = None) -> None:
        late = f"{what} took more than {limit_seconds:g} s"
        self._timer = threading.Timer(limit_seconds, _end, (lambda: hang.ask(late, thread),))
        self._timer.daemon, self._is_of_main = True, thread is None

    def start(self) -> Watchdog:
        """From now on."""
        self._timer.start()
        if self._is_of_main:
            _watching.add(self)
        return self

    def stop(self) -> None:
        """It was in time."""
        self._timer.cancel()
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
