"""Starts local ranks of one command and watches them: if one fails all are stopped, and the first cause is named.

    command --> rank 0 .. rank N-1, each the head of its own process group (its children die with it)
    first failure --> settle (who failed first?) --> SIGUSR1 when hung (stacks) --> SIGTERM --> SIGKILL --> one line
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from partitioner.errors import InputError
from runtime.ranks import hang, meeting_store
from runtime.ranks.first_failure import Failure, first_cause
from runtime.ranks.limits import START_SECONDS
from runtime.ranks.meeting_store import Store
from runtime.ranks.rank_process import RankProcess, Write
from runtime.ranks.watchdog import STACK_SIGNAL

ROOT = Path(__file__).parents[2]  # where the packages lie
SETTLE_SECONDS = 3.0
TERM_SECONDS = 2.0
STACK_SECONDS = 1.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Result:
    """How the ranks ended: exit statuses (negative: a signal), the first failure or None, ends of standard errors.

    ``asked``: the signal after which they left by themselves, None where none came.
    """

    statuses: tuple[int, ...]
    failure: Failure | None
    stderr: tuple[str, ...]
    seconds: float
    asked: int | None = None


def local(
    command: list[str],
    ranks: int,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    write: Write | None = None,
    leave_seconds: float | None = None,
    end_seconds: float = START_SECONDS,
) -> Result:
    """Run ``command`` as ``ranks`` processes of this machine, and return when all have ended.

    Each gets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a store that this process
    serves, and, unless they are set, GLOO_SOCKET_IFNAME=lo, OMP_NUM_THREADS=1 and PYTHONUNBUFFERED=1; ``environment``
    overrides. Rank 0's standard output goes to
    ``write`` (default: ours) line by line, other ranks' is dropped. A failure prints ``rank R failed: <cause>`` on
    our standard error, behind every rank's stacks if it is a hang. SIGINT and SIGTERM stop all ranks first; with
    ``leave_seconds`` the first of them is passed on, as SIGTERM, and the ranks have so long to leave by themselves.
    When one has ended well the others have ``end_seconds`` to do so. Raises InputError when there is no such command.
    """
    if shutil.which(command[0]) is None:
        raise InputError(f"{command[0]} cannot be started: there is no such command")
    started = time.monotonic()
    store = meeting_store.serve()
    crew: list[RankProcess] = []
    leaving = _Leaving(leave_seconds)
    try:
        with leaving:
            places = [_variables(r, ranks, store.port, environment) for r in range(ranks)]
            crew.extend(RankProcess(command, place, r, write) for r, place in enumerate(places))
            failure = _watch(crew, started + timeout_seconds, timeout_seconds, leaving, store, end_seconds)
    finally:
        _stop(crew)
    statuses, tails = tuple(r.status or 0 for r in crew), tuple(r.tail() for r in crew)
    result = Result(statuses, failure, tails, time.monotonic() - started, leaving.asked)
    _print_failure(result)
    return result


def local_module(
    module: str,
    words: Sequence[str],
    ranks: int,
    timeout_seconds: float,
    write: Write | None = None,
    leave_seconds: float | None = None,
    end_seconds: float = START_SECONDS,
) -> Result:
    """Run a module of this project as ``local`` runs a command.

    It is found wherever this package lies, and nothing of the folder that a rank starts in is (``python -P``).
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", module, *words]
    return local(command, ranks, timeout_seconds, {"PYTHONPATH": path}, write, leave_seconds, end_seconds)


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _variables(rank: int, ranks: int, port: int, environment: Mapping[str, str] | None) -> dict[str, str]:
    defaults = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": "lo"}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    fixed = {name: str(value) for name, value in place.items()} | meeting_store.served(port)
    return defaults | dict(os.environ) | fixed | dict(environment or {})


def _watch(
    crew: list[RankProcess], deadline: float, timeout_seconds: float, leaving: _Leaving, store: Store,
    end_seconds: float,
) -> Failure | None:  # fmt: skip
    """Wait until all ranks ended well (None), one failed, or the time is over."""
    late, first_end = f"timed out after {timeout_seconds:g} s", None
    while any(r.status is None for r in crew):
        if any(r.status for r in crew):
            break
        if leaving.is_due():
            for rank in crew:
                rank.signal(signal.SIGTERM)
            deadline = time.monotonic() + (leaving.seconds or 0)
            late = f"had not left {leaving.seconds:g} s after {signal.Signals(leaving.asked or 0).name}"
        if time.monotonic() > deadline:
            _ask_stacks(crew)
            return Failure(None, late, hung=True)
        if first_end is None and any(r.status == 0 for r in crew):
            first_end = time.monotonic()
        if first_end is not None and time.monotonic() > first_end + end_seconds:
            _ask_stacks(crew)
            if alive := [r for r in crew if r.status is None]:
                return _last(alive, f"the end took more than {end_seconds:g} s longer than other ranks'")
        time.sleep(POLL_SECONDS)
    failed = [r.status for r in crew if r.status]
    if not failed or (leaving.asked and failed == [-signal.SIGTERM] * len(failed)):  # it had not begun
        return None
    return _settled(crew, store)


def _last(alive: list[RankProcess], what: str) -> Failure:
    """Of those that go on while others have ended, one that is stopped, or the first."""
    stopped = [r for r in alive if r.is_stopped()]
    why = "it does not answer, stopped by a signal" if stopped else "it has not ended"
    return Failure((stopped or alive)[0].rank, f"hung: {what}: {why}", hung=True)


def _settled(crew: list[RankProcess], store: Store) -> Failure:
    """The first cause: a lost connection is the echo of another rank's end, so that one is awaited for a moment."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        failure = first_cause([r.ended() for r in crew if r.status])
        if not failure.echo or time.monotonic() > end or all(r.status is not None for r in crew):
            break
        time.sleep(POLL_SECONDS)
    return _blamed(failure, crew, meeting_store.named(store)) if failure.hung else failure


def _blamed(failure: Failure, crew: list[RankProcess], store: Store) -> Failure:
    """Whose fault a hang is, by what the ranks told of themselves; of one alone what it said last."""
    _ask_stacks(crew)
    if (what := hang.asked(store)) is None:
        return failure
    rows = hang.answers(store, len(crew))
    found = hang.verdict(rows, {r.rank: "stopped by a signal" for r in crew if r.is_stopped()})
    whose = found.reason if found.rank is None else f"it {found.reason}"
    return Failure(found.rank, f"hung: {what}: {whose}", hung=True)


def _ask_stacks(crew: list[RankProcess]) -> None:
    alive = [r for r in crew if r.status is None and r.answers_stack_signal()]
    for rank in alive:
        rank.signal(STACK_SIGNAL)
    if alive:
        time.sleep(STACK_SECONDS)


def _stop(crew: list[RankProcess]) -> None:
    try:
        for rank in crew:
            rank.signal_group(signal.SIGTERM)
        end = time.monotonic() + TERM_SECONDS
        while any(r.status is None for r in crew) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
    finally:
        for rank in crew:
            rank.signal_group(signal.SIGKILL)
        for rank in crew:
            rank.reap()


class _Leaving:
    """SIGTERM and SIGINT while ranks run, as far as they come to the main thread.

    The first is noted where ranks have ``seconds`` to leave by themselves; else, and the second time, SystemExit.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.asked: int | None = None
        self._passed_on, self._before = False, dict[int, Any]()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM,) if self.seconds is None else (signal.SIGTERM, signal.SIGINT)
            self._before = {number: signal.signal(number, self._note) for number in numbers}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seconds is None or self.asked is not None:
            raise SystemExit(128 + number)
        self.asked = number

    def is_due(self) -> bool:
        """Whether the ranks are now to be asked; once."""
        due, self._passed_on = self.asked is not None and not self._passed_on, self.asked is not None
        return due


def _print_failure(result: Result) -> None:
    if result.failure is None:
        return
    if result.failure.hung:
        for rank, text in enumerate(result.stderr):
            sys.stderr.write(f"rank {rank}:\n{text}")
    sys.stderr.write(f"{result.failure}\n")
