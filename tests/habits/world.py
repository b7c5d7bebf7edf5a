"""Ranks that stay: torch is imported once for all cases; what hangs is killed, and others take its place."""

from __future__ import annotations

import multiprocessing as mp
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from case import Case, Outcome, Pins
from worker import Job, serve

from runtime.launch import free_port

START_SECONDS, JOB_SECONDS = 60.0, 100.0
ECHOES = ("closed by peer", "reset by peer", "gloo", "store", "timed out", "recv", "broken pipe", "process group")


class World:
    """``ranks`` processes, started with the first case."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._processes: list[BaseProcess] = []
        self._lines: list[Connection] = []

    def run(self, module: str, case: Case) -> dict[str, Outcome]:
        """The outcome of each plan of the case for this many ranks."""
        wanted = dict(case.plans[self.ranks])
        found: dict[str, Outcome] = {}
        while left := {name: pins for name, pins in wanted.items() if name not in found}:
            found |= self._send(module, case, left)
        return found

    def _send(self, module: str, case: Case, plans: dict[str, Pins]) -> dict[str, Outcome]:
        """Outcomes of at least the first plan."""
        if not self._processes:
            self._start()
        job = Job(module, case.name, plans, free_port())
        for line in self._lines:
            line.send(job)
        end = time.monotonic() + JOB_SECONDS
        rows = [_received(line, end) for line in self._lines]
        answers = [row for row in rows if row is not None]
        if len(answers) < self.ranks:
            self.close()
            answers.append(dict.fromkeys(list(plans)[:1], Outcome(crashed=f"no answer in {JOB_SECONDS:g} s")))
        return {name: _of_ranks([a[name] for a in answers if name in a]) for name in plans if _said(answers, name)}

    def _start(self) -> None:
        context = mp.get_context("spawn")
        for rank in range(self.ranks):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, self.ranks, theirs), daemon=True)
            process.start()
            self._processes.append(process)
            self._lines.append(mine)

    def close(self) -> None:
        """End all ranks."""
        for process in self._processes:
            process.kill()
            process.join(10)
        for line in self._lines:
            line.close()
        self._processes, self._lines = [], []


def _received(line: Connection, end: float) -> dict[str, Outcome] | None:
    try:
        return line.recv() if line.poll(max(0.0, end - time.monotonic())) else None
    except (EOFError, ConnectionError):
        return None


def _said(answers: list[dict[str, Outcome]], name: str) -> bool:
    return any(name in answer for answer in answers)


def _of_ranks(rows: list[Outcome]) -> Outcome:
    """Rank 0's, unless it is the echo of what happened to another."""
    bad = [row for row in rows if row.crashed or row.refused]
    own = [row for row in bad if row.refused or not any(word in row.crashed.lower() for word in ECHOES)]
    return (own or bad or rows)[0]
