"""Do the tapes of all ranks meet? Every rank is walked with blocking semantics until all are done, or none can go on.

    rank 0    start send 1F0    start recv 0B0    wait recv 0B0 ...
    rank 1    start recv 1F0    wait recv 1F0     start send 0B0 ...

A communication is over when all its ranks have started it, behind all earlier ones of the same group (collectives) or
of the same way (one sender, one receiver, one group, one tag). That is what NCCL's streams and gloo's pairs guarantee
and no more: nothing is buffered, a send waits for its receiver. A group's communicator is made where each of its ranks
first starts something in it, and they wait there for each other, where a backend ``is_lazy`` as NCCL, which may not
have made it before.

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

    def __init__(self, tapes: Mapping[int, Tape], alike: Mapping[int, int], is_lazy: bool) -> None:
        self.tapes, self.alike, self.is_lazy = tapes, alike, is_lazy
        self.at = dict.fromkeys(tapes, 0)
        self.over: dict[int, set[int]] = {rank: set() for rank in tapes}
        self.started: dict[Way, dict[Side, deque[tuple[int, int]]]] = {}
        self.problems: list[Problem] = []
        self.ways: dict[tuple[object, ...], tuple[Way, list[Side], Side]] = {}
        self.groups: dict[tuple[tuple[int, ...], int], set[int]] = {}
        self.last = dict.fromkeys(tapes, -1)  # the communication that each rank started last

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
            if entry > self.last[rank]:
                self.last[rank] = entry
                woken |= self.came(rank, tape.ops[entry]) | self.start(rank, entry)
            if self.waits(rank, entry):
                break
            self.at[rank] += 1
        return woken - {rank}

    def waits(self, rank: int, entry: int) -> bool:
        """Whether a rank can't go on: what it waits for is not over, or its group's communicator not made."""
        if entry < 0:
            return ~entry not in self.over[rank]
        return bool(self.away(self.tapes[rank].ops[entry]))

    def came(self, rank: int, op: Op) -> set[int]:
        """A rank has started something in a group; all of its ranks where it is the last of them."""
        away = self.away(op)
        if rank not in away:
            return set()
        away.remove(rank)
        return set() if away else {self.alike[r] for r in op.ranks}

    def away(self, op: Op) -> set[int]:
        """The ranks of its group that have started nothing in it yet."""
        key = op.ranks, op.number
        if key not in self.groups:
            alike = tuple(self.alike[r] for r in op.ranks), op.number
            self.groups[key] = self.groups.setdefault(alike, set(alike[0]) if self.is_lazy else set())
        return self.groups[key]

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
                op, absent = self.waited(rank)
                whom = " and ".join(absent) or "those before it"
                yield Problem(rank, f"deadlock: it waits in {_words(op)} for {whom}")
            else:
                left = [op for n, op in enumerate(tape.ops) if n not in self.over[rank]]
                if left:
                    yield Problem(rank, f"{len(left)} communications never met, the first is {_words(left[0])}")

    def waited(self, rank: int) -> tuple[Op, list[str]]:
        """In what it waits, and who has not come."""
        entry = self.tapes[rank].entries[self.at[rank]]
        op = self.tapes[rank].ops[max(entry, ~entry)]
        if entry >= 0:
            return op, [self.whereabouts(other) for other in sorted(self.away(op))]
        way, _, _ = self.way(rank, op)
        missing = [side for side, queue in self.started[way].items() if not queue]
        return op, [self.whereabouts(op.peer if member == ALL else member) for _, member in missing]

    def whereabouts(self, rank: int) -> str:
        """Where a rank stands."""
        place, tape = self.at[self.alike[rank]], self.tapes[self.alike[rank]]
        if place == len(tape.entries):
            return f"rank {rank}, which is done"
        entry = tape.entries[place]
        return f"rank {rank}, which waits in {_words(tape.ops[max(entry, ~entry)])}"


def unmatched(tapes: Mapping[int, Tape], alike: Mapping[int, int], is_lazy: bool = True) -> list[Problem]:
    """What keeps the ranks from finishing together, [] when all do; ``alike[rank]`` is the rank that has its tape."""
    walk = _Walk(tapes, alike, is_lazy)
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
