"""Ranks that hang: each tells, through the store, what it is doing; who says nothing or is busy alone is to blame.

    a watchdog ends --> "hung" in the store --> every rank that can answers --> verdict --> all end, status 75
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta

from runtime.ranks.doing import Doing, doing
from runtime.ranks.meeting_store import Store, join, whose

ASKED, OVER = "hung", "over"
ANSWER_SECONDS, STORE_SECONDS = 3.0, 5.0
POLL_SECONDS = 0.05
NEVER = timedelta(days=3650)
_asking: list[Store] = []  # this process's own line to the store: a new one could not be had of one that is stopped
Rows = Mapping[int, Doing | None]  # what each rank answered


@dataclass(frozen=True)
class Verdict:
    """``rank``: whose fault it is, None where it is that of no one."""

    rank: int | None
    reason: str

    def __str__(self) -> str:
        return self.reason if self.rank is None else f"rank {self.rank} {self.reason}"


def verdict(
    rows: Rows, stopped: Mapping[int, str] | None = None, hosts: Mapping[int, str] | None = None
) -> Verdict:
    """Of what the ranks answered. ``stopped``: what else is known of those that did not, as ``stopped by SIGSTOP``;
    ``hosts``: the machines that ranks are on."""
    silent = [rank for rank, row in rows.items() if row is None]
    busy = [rank for rank, row in rows.items() if row is not None and not row.waits]
    if silent:
        known = next((rank for rank in silent if rank in (stopped or {})), silent[0])
        why = f", {stopped[known]}" if stopped and known in stopped else ""
        others = _others("nor do", silent, known)
        return Verdict(known, f"does not answer{why}{others}{_whole_hosts(silent, hosts or {})}")
    if len(busy) == len(rows):
        return Verdict(None, f"no rank waits for another, {_places(rows)}: it may need longer")
    if busy:
        row = rows[busy[0]]
        return Verdict(busy[0], f"is busy in {row.where if row else ''}{_others('as are', busy, busy[0])}")
    return Verdict(None, f"all ranks wait for one another, {_places(rows)}")


def _others(words: str, ranks: list[int], named: int) -> str:
    """``, nor do ranks 2, 3``."""
    others = [str(rank) for rank in ranks if rank != named]
    if len(others) == 1:
        words = {"nor do": "nor does", "as are": "as is"}[words]
    more = ", ..." if len(others) > 8 else ""
    return f", {words} rank{'s' if len(others) > 1 else ''} {', '.join(others[:8])}{more}" if others else ""


def _whole_hosts(silent: list[int], hosts: Mapping[int, str]) -> str:
    """The machines of which no rank answers, where those of others do."""
    heard = {host for rank, host in hosts.items() if rank not in silent}
    lost = [host for host in dict.fromkeys(hosts[rank] for rank in silent if rank in hosts) if host not in heard]
    if not lost or not heard:
        return ""
    more = ", ..." if len(lost) > 4 else ""
    return f", no rank of {', '.join(lost[:4])}{more}: look at the machine and the network to it"


def _places(rows: Rows) -> str:
    found: dict[str, list[int]] = {}
    for rank, row in rows.items():
        found.setdefault(row.where if row else "", []).append(rank)
    words = [f"{_named(ranks)} in {where}" for where, ranks in found.items()]
    return "; ".join(words[:4]) + ("; ..." if len(words) > 4 else "")


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"{len(ranks)} ranks from {ranks[0]} on"


def answers(store: Store, world: int, seconds: float = ANSWER_SECONDS) -> Rows:
    """What each rank has answered, when all have or the time is over."""
    keys, end = {rank: f"doing/{rank}" for rank in range(world)}, time.monotonic() + seconds
    while not store.check(list(keys.values())) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    told = {rank: store.get(key) if store.check([key]) else None for rank, key in keys.items()}
    return {rank: Doing(**json.loads(text)) if text else None for rank, text in told.items()}


def answer_when_asked(end: Callable[[Callable[[], str]], None]) -> None:
    """From now on, when any rank hangs, ``end`` is called with what tells the others what this one is doing, and
    returns the line to say."""
    store, asking = join(), join()  # the first is busy for as long as nobody asks
    own = f"{ASKED}/{os.environ['RANK']}"
    _asking.append(asking)
    asking.set(f"host/{os.environ['RANK']}", socket.gethostname())

    def wait() -> None:
        try:
            store.wait([own], NEVER)
            asked = json.loads(store.get(own))
        except RuntimeError:
            return  # whoever served the store is gone, and the run with it
        if asked != OVER:
            end(lambda: _settled(asking, *asked))

    answering = threading.Thread(target=wait, name="answer_when_asked", daemon=True)
    answering.start()

    def stop() -> None:
        """Before Python ends: a thread that comes back from the store while it does would abort the process."""
        with contextlib.suppress(RuntimeError):
            asking.set(own, json.dumps(OVER))
        answering.join(STORE_SECONDS)

    atexit.register(stop)


def ask(what: str, thread: str | None) -> str:
    """Called where ``what`` took too long, in a thread: the line to say, with whose fault it is, when all have told.

    ``thread``: the start of its name on every rank, None for the main thread.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ:
        return f"{what}: in {doing(thread).where}"
    told = list[str]()
    asking = threading.Thread(target=_ask, args=(what, thread, told), daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS + STORE_SECONDS)  # torch's own limit does not hold where that process is stopped
    where = f"{os.environ['MASTER_ADDR']}, in {whose()} process"
    return told[0] if told else f"{what}: the store at {where}, does not answer: look at that machine and the network"


def _ask(what: str, thread: str | None, told: list[str]) -> None:
    with contextlib.suppress(RuntimeError):  # it is gone
        store = _asking[0] if _asking else join()  # where the user joined the ranks
        text = json.dumps([what, thread])
        store.set(ASKED, text)
        for rank in range(int(os.environ["WORLD_SIZE"])):
            store.set(f"{ASKED}/{rank}", text)
        told.append(_settled(store, what, thread))


def asked(store: Store) -> str | None:
    """What took too long, None where nothing did."""
    return json.loads(store.get(ASKED))[0] if store.check([ASKED]) else None


def _settled(store: Store, what: str, thread: str | None) -> str:
    store.set(f"doing/{os.environ['RANK']}", json.dumps(asdict(doing(thread))))
    world = int(os.environ["WORLD_SIZE"])
    return f"{what}: {verdict(answers(store, world), hosts=_hosts(store, world))}"


def _hosts(store: Store, world: int) -> dict[int, str]:
    """The machine of each rank, once all have joined."""
    keys = [f"host/{rank}" for rank in range(world)]
    return {n: name.decode() for n, name in enumerate(store.multi_get(keys))} if store.check(keys) else {}
