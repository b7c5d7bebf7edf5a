"""Do the tapes of all ranks meet? Every rank is walked with blocking semantics until all are done, or none can go on.

    rank 0    start send 1F0    start recv 0B0    wait recv 0B0 ...
    rank 1    start recv 1F0    wait recv 1F0     start send 0B0 ...

A communication is over when all its ranks have started it, behind all earlier ones of the same group (collectives) or
of the same way (one sender, one receiver, one group, one tag). That is what NCCL's streams and gloo's pairs guarantee
and no more: nothing is buffered, a send waits for its receiver.

Ranks that are alike share a tape. They move in step: a member of their group that is alike is where they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from runtime.dry_run.recording_group import Op, Tape

ALL = -1  # the side of a collective that stands for no direction
Way = tuple[object, ...]
Side = tuple[str, int]


class Problem(NamedTuple):
    """What is wrong, at which rank."""

    rank: int
    words: str


class _Walk:
    """All tapes, each at its place. ``alike``: the rank whose tape each rank follows."""

    def __init__(self, tapes: Mapping[int, Tape], alike: Mapping[int, int]) -> None:
        self.tapes, self.alike = tapes, alike
        self.at = dict.fromkeys(tapes, 0)
        self.over: dict[int, set[int]] = {rank: set() for rank in tapes}
        self.started: dict[Way, dict[Side, deque[tuple[int, int]]]] = {}
        self.problems: list[Problem] = []
        self.ways: dict[tuple[object, ...], tuple[Way, list[Side], Side]] = {}

    def run(self) -> None:
        """Until nothing moves."""
        ready = deque(self.tapes)
        while ready:
            ready.extend(self.advance(ready.popleft()))

    def advance(self, rank: int) -> set[int]:
        """Walk one tape as far as it goes; the ranks for whom something is over now."""
        tape, woken = self.tapes[rank], set[int]()
        while self.at[rank] < len(tape.entries):
            entry = tape.entries[self.at[rank]]
            if entry < 0 and ~entry not in self.over[rank]:
                break
            self.at[rank] += 1
            if entry >= 0:
                woken |= self.start(rank, entry)
        return woken - {rank}

    def start(self, rank: int, index: int) -> set[int]:
        """One more communication of a way; who has met by it."""
        way, sides, own = self.way(rank, self.tapes[rank].ops[index])
        queues = self.started.setdefault(way, {side: deque() for side in sides})
        queues.setdefault(own, deque()).append((rank, index))
        woken: set[int] = set()
        while all(queues.values()):
            met = [queue.popleft() for queue in queues.values()]
            self.compare(met)
            for who, which in met:
                self.over[who].add(which)
                woken.add(who)
        return woken

    def way(self, rank: int, op: Op) -> tuple[Way, list[Side], Side]:
        """What an op queues in, who must come there, and as whom ``rank`` comes."""
        key = (rank, op.ranks, op.number, op.peer, op.tag, op.kind == "send")
        if key not in self.ways:
            self.ways[key] = self.find_way(rank, op)
        return self.ways[key]

    def find_way(self, rank: int, op: Op) -> tuple[Way, list[Side], Side]:
        """``way``, worked out."""
        group = tuple(self.alike[r] for r in op.ranks)
        if op.peer < 0:
            return (group, op.number), [("", member) for member in dict.fromkeys(group)], ("", rank)
        source, target = (rank, self.alike[op.peer]) if op.kind == "send" else (self.alike[op.peer], rank)
        way = (group, op.number, source, target, op.tag)
        return way, [("send", ALL), ("recv", ALL)], (op.kind, ALL)

    def compare(self, met: list[tuple[int, int]]) -> None:
        """All agree on what is sent."""
        first, *others = [(rank, self.tapes[rank].ops[index]) for rank, index in met]
        for other in others:
            if _essence(first[1]) != _essence(other[1]):
                words = f"{_words(first[1])} meets {_words(other[1])} of rank {other[0]}"
                self.problems.append(Problem(first[0], f"{words}: both must be the same, in the same order"))

    def stuck(self) -> Iterator[Problem]:
        """Ranks that wait for ever, and what nobody came to."""
        for rank, tape in self.tapes.items():
            if self.at[rank] < len(tape.entries):
                op = tape.ops[~tape.entries[self.at[rank]]]
                absent = " and ".join(self.absent(rank, op)) or "those before it"
                yield Problem(rank, f"deadlock: it waits in {_words(op)} for {absent}")
            else:
                left = [op for n, op in enumerate(tape.ops) if n not in self.over[rank]]
                if left:
                    yield Problem(rank, f"{len(left)} communications never met, the first is {_words(left[0])}")

    def absent(self, rank: int, op: Op) -> list[str]:
        """Who has not come."""
        way, _, _ = self.way(rank, op)
        missing = [side for side, queue in self.started[way].items() if not queue]
        return [self.whereabouts(op.peer if member == ALL else member) for _, member in missing]

    def whereabouts(self, rank: int) -> str:
        """Where a rank stands."""
        place, tape = self.at[self.alike[rank]], self.tapes[self.alike[rank]]
        if place == len(tape.entries):
            return f"rank {rank}, which is done"
        return f"rank {rank}, which waits in {_words(tape.ops[~tape.entries[place]])}"


def unmatched(tapes: Mapping[int, Tape], alike: Mapping[int, int]) -> list[Problem]:
    """What keeps the ranks from finishing together, [] when all do; ``alike[rank]`` is the rank that has its tape."""
    walk = _Walk(tapes, alike)
    walk.run()
    return [*walk.problems, *walk.stuck()]


def _essence(op: Op) -> tuple[object, ...]:
    """What all who meet in an op must agree on."""
    common = (op.dtype, op.bytes, op.reduction, op.shape, op.axis, op.phase)
    return (*common, op.message) if op.peer >= 0 else (*common, op.kind, op.action)


def _words(op: Op) -> str:
    message = f" of {op.message[1]} for {op.message[0]}" if op.message else ""
    ways = {"send": f"send to rank {op.peer}{message}", "recv": f"recv from rank {op.peer}{message}"}
    reduction = f" {op.reduction}" if op.reduction else ""
    kind = ways.get(op.kind, f"{op.kind}{reduction} over {op.axis}")
    place = f"during {op.action}" if op.action else f"of {op.phase}"
    return f"{kind}, {op.shape} of {str(op.dtype).removeprefix('torch.')}, {place}"
