"""Which rank failed first, and why: read from exit statuses, their order in time, and the ends of standard errors.

    killed by a signal            cause      "killed by SIGKILL"
    a traceback of its own        cause      its last exception line
    hung (the watchdog's end)     cause      "hung: step 7 took more than 60 s: rank 2 does not answer": see hang.py
    a lost connection, time-out   echo       of another rank's end
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from runtime.ranks.watchdog import HUNG_STATUS

REFUSED_STATUS = 2  # bad input, said in one line
_PREFIX = re.compile(r"^\[rank\d+\]: ?")
_ECHO = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|remote process exited|peer|socket (error|timeout)"
    r"|timed out (waiting|after)|recvvalue failed|tcpstore|nccl",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Ended:
    """A rank that ended badly: exit status (negative: a signal), when (monotonic seconds), end of standard error."""

    rank: int
    status: int
    at: float
    stderr: str


@dataclass(frozen=True)
class Failure:
    """The first cause. ``rank`` is None when no one rank is to blame; ``echo`` when only consequences are known."""

    rank: int | None
    reason: str
    echo: bool = False
    hung: bool = False

    def __str__(self) -> str:
        return self.reason if self.rank is None else f"rank {self.rank} failed: {self.reason}"


def first_cause(ended: list[Ended]) -> Failure:
    """The earliest failure that is no echo, else the earliest."""
    first = min(ended, key=lambda e: (_is_echo(e), e.at))
    return Failure(first.rank, reason(first), _is_echo(first), first.status == HUNG_STATUS)


def reason(ended: Ended) -> str:
    """One line: the signal, the exception's line, the watchdog's line, or the last thing said."""
    if ended.status < 0:
        return f"killed by {signal.Signals(-ended.status).name}"
    lines = [_PREFIX.sub("", line) for line in ended.stderr.splitlines() if line.strip()]
    raised = _exception_line(lines)
    if raised or (ended.status == HUNG_STATUS and lines):
        return raised or lines[-1]
    if ended.status == REFUSED_STATUS and lines:
        return lines[-1].strip().removeprefix("partitioner: ")
    return f"status {ended.status}" + (f": {lines[-1].strip()}" if lines else "")


def _exception_line(lines: list[str]) -> str | None:
    """The first line behind the last traceback's indented body."""
    starts = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    return next((line for line in lines[starts[-1] + 1 :] if line[0] != " "), None) if starts else None


def _is_echo(ended: Ended) -> bool:
    return ended.status > 0 and ended.status != HUNG_STATUS and bool(_ECHO.search(reason(ended)))
