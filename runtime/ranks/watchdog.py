"""A step that takes far too long ends its process, loudly: every thread's stack, one ``hung`` line, exit status 75."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from types import TracebackType

HUNG_STATUS = 75
STACK_SIGNAL = signal.SIGUSR1
STDERR = 2  # its descriptor, whatever sys.stderr is now


def hang_limit(predicted_seconds: float, floor_seconds: float = 60.0, factor: float = 5.0) -> float:
    """The seconds after which a step counts as hung: far more than predicted, and never less than the floor."""
    return max(factor * predicted_seconds, floor_seconds)


def answer_stack_signal() -> None:
    """From now on SIGUSR1 writes every thread's stack to standard error, also while the process is blocked in C."""
    faulthandler.register(STACK_SIGNAL, file=STDERR, all_threads=True)


class Watchdog:
    """``with Watchdog(limit_seconds, "step 7"): ...`` ends the process if the body takes longer.

    Entered on the main thread. Nothing is raised into the body: a rank blocked in a collective cannot be woken.
    """

    def __init__(self, limit_seconds: float, what: str = "the step") -> None:
        self._timer = threading.Timer(limit_seconds, _end_hung, (limit_seconds, what))
        self._timer.daemon = True

    def __enter__(self) -> None:
        answer_stack_signal()
        self._timer.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()


def _end_hung(limit_seconds: float, what: str) -> None:
    faulthandler.dump_traceback(file=STDERR, all_threads=True)
    os.write(STDERR, f"hung: {what} took more than {limit_seconds:g} s\n".encode())
    os._exit(HUNG_STATUS)
