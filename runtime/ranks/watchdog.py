"""What takes far too long ends its process, loudly: every thread's stack, one ``hung`` line, exit status 75."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType

from runtime.ranks import hang

HUNG_STATUS = 75
STACK_SIGNAL = signal.SIGUSR1
STDERR = 2  # its descriptor, whatever sys.stderr is now
START_SECONDS = 300.0  # until all ranks have come together, their models traced
FIRST_SECONDS = 240.0  # beside what a step may take: memory is found, kernels are loaded
STATE_BYTES_A_SECOND = 20e6  # of a checkpoint or of weights, at the least

_ending = threading.Lock()


def hang_limit(predicted_seconds: float, floor_seconds: float = 60.0, factor: float = 5.0) -> float:
    """The seconds after which a step counts as hung: far more than predicted, and never less than the floor."""
    return max(factor * predicted_seconds, floor_seconds)


def state_limit(held_bytes: float) -> float:
    """The seconds after which reading or writing a rank's part of the state counts as hung."""
    return START_SECONDS + held_bytes / STATE_BYTES_A_SECOND


def answer_stack_signal() -> None:
    """From now on SIGUSR1 writes every thread's stack to standard error, also while the process is blocked in C."""
    faulthandler.register(STACK_SIGNAL, file=STDERR, all_threads=True)


def answer_when_asked() -> None:
    """From now on this rank ends when another hangs, telling what it is doing."""
    hang.answer_when_asked(_end)


class Watchdog:
    """``with Watchdog(limit_seconds, "step 7"): ...`` ends the process if the body takes longer.

    Nothing is raised into the body: a rank blocked in a collective cannot be woken. ``start`` and ``stop`` are for what
    no block holds.
    """

    def __init__(self, limit_seconds: float, what: str = "the step") -> None:
        self._timer = threading.Timer(limit_seconds, _end_late, (f"{what} took more than {limit_seconds:g} s",))
        self._timer.daemon = True

    def start(self) -> Watchdog:
        """From now on."""
        self._timer.start()
        return self

    def stop(self) -> None:
        """It was in time."""
        self._timer.cancel()

    def __enter__(self) -> None:
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _end_late(what: str) -> None:
    _end(lambda: hang.ask(what))


def _end(settle: Callable[[], str]) -> None:
    if not _ending.acquire(blocking=False):
        return
    faulthandler.dump_traceback(file=STDERR, all_threads=True)
    os.write(STDERR, f"hung: {settle()}\n".encode())
    os._exit(HUNG_STATUS)
