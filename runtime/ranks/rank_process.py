"""One rank's process: started in a group of its own, read while it runs, signalled, reaped."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from runtime.ranks.first_failure import Ended
from runtime.ranks.watchdog import STACK_SIGNAL

READ_SECONDS = 0.5
TAIL_LINES = 400

Write = Callable[[str], object]


class RankProcess:
    """One process, the thread that reads what it writes, and the thread that notes when it ends."""

    def __init__(self, command: list[str], variables: dict[str, str], rank: int, write: Write | None) -> None:
        self.rank, self.ended_at = rank, 0.0
        self.status: int | None = None
        self._lines: list[str] = []
        out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        self._process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._threads = [thread(self._read_errors), thread(self._wait)]
        if rank == 0:
            self._threads.append(thread(self._read_output, write or sys.stdout.write))

    def _read_errors(self) -> None:
        for line in self._process.stderr or ():
            self._lines.append(line)
            del self._lines[:-TAIL_LINES]

    def _read_output(self, write: Write) -> None:
        for line in self._process.stdout or ():
            write(line)

    def _wait(self) -> None:
        # WNOWAIT keeps the pid, and so the group's number, ours until ``reap``: no stranger can be signalled.
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.ended_at = time.monotonic()
        if info is not None:
            self.status = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def is_stopped(self) -> bool:
        """Whether a signal has stopped it: it is there and does nothing."""
        return self.status is None and self._proc("stat").rpartition(")")[2].split()[:1] == ["T"]

    def answers_stack_signal(self) -> bool:
        """Whether it would not be killed by that signal: one that has just started would."""
        caught = re.search(r"^SigCgt:\s*(\w+)", self._proc("status"), re.MULTILINE)
        return caught is not None and bool(int(caught[1], 16) >> (STACK_SIGNAL - 1) & 1)

    def _proc(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/{name}").read_text()
        return ""

    def signal(self, number: int) -> None:
        """Signal the process alone."""
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Signal the process and all its descendants that stayed in its group."""
        os.killpg(self.pid, number)

    def reap(self) -> None:
        """Wait for the killed process, for what it last wrote, and free its entry; nothing is signalled afterwards."""
        for thread in self._threads:
            thread.join(READ_SECONDS)
        self.status = self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def tail(self) -> str:
        """The end of the rank's standard error."""
        return "".join(self._lines)

    def ended(self) -> Ended:
        """What blame needs to know of an ended rank."""
        return Ended(self.rank, self.status or 0, self.ended_at, self.tail())


def thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread
