"""A process that stays: torch is imported once for all cases; one that hangs is killed, and another takes its place."""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from case import Case, Outcome
from worker import serve

SECONDS = 300.0  # of one case, all its plans together


class World:
    """The process that traces, started with the first case; it forks the ranks of each plan."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self._line: Connection | None = None

    def run(self, module: str, case: Case) -> dict[str, Outcome]:
        """The outcome of each plan of the case."""
        line = self._line or self._start()
        line.send((module, case.name))
        try:
            if line.poll(SECONDS):
                return line.recv()
            what = f"no answer in {SECONDS:g} s"
        except (EOFError, ConnectionError):
            what = "the process that traces died"
        self.close()
        return dict.fromkeys(case.pins, Outcome(crashed=what))

    def _start(self) -> Connection:
        context = mp.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,))
        self._process.start()
        theirs.close()
        return self._line

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._line is not None:
            self._line.close()
            self._process.kill()
            self._process.join(10)
        self._process = self._line = None
