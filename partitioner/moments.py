"""The moments of a schedule at which a pipeline rank may be fullest.

    1f1b, rank 0 of 2       0F0 0F1 0B0 0F2 0B1 ...
    fullest may be          0F1 on top of 1 in flight; 0B0, the first, with 2; 0B1, when gradients lie there, with 2
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from partitioner.schedule import Row, rank_of, schedule

_ROUNDS = 4  # of pp micro-batches, after which no rank is fuller than before


class Moment(NamedTuple):
    """An action, and by the rank's own stages how many micro-batches are in flight and whether gradients lie there.

    ``own``: the acting one's place among them. Its micro-batch counts before its backward, not before its forward.
    """

    own: int
    kind: str
    in_flight: tuple[int, ...]
    grown: tuple[bool, ...]

    def covers(self, other: Moment) -> bool:
        """Whether a rank is at least as full here."""
        pairs = [*zip(self.in_flight, other.in_flight, strict=True), *zip(self.grown, other.grown, strict=True)]
        return all(a >= b for a, b in pairs)


@functools.lru_cache(maxsize=4096)
def moments(kind: str, pp: int, virtual: int, micro_batches: int) -> tuple[tuple[Moment, ...], ...]:
    """By pipeline rank."""
    if kind == "gpipe":
        first = [Moment(0, "F", (micro_batches - 1,), (False,)), Moment(0, "B", (micro_batches,), (False,))]
        later = [Moment(0, "B", (micro_batches - 1,), (True,))] if micro_batches > 1 else []
        return ((*first, *later),) * pp
    table = schedule(kind, pp, virtual, min(micro_batches, _ROUNDS * pp))
    own = [[n for n in range(pp * virtual) if rank_of(n, pp, kind) == p] for p in range(pp)]
    return tuple(_fullest(list(_walk(row, stages))) for row, stages in zip(table, own, strict=True))


def _walk(row: Row, own: list[int]) -> Iterator[Moment]:
    """What was put off is held until its end."""
    flying, grown = [0] * len(own), [False] * len(own)
    last = "W" if any(action.kind == "W" for action in row) else "B"
    for action in row:
        n = own.index(action.stage)
        yield Moment(n, action.kind, tuple(flying), tuple(grown))
        flying[n] += (action.kind == "F") - (action.kind == last)
        grown[n] = grown[n] or action.kind == "B"


def _fullest(rows: list[Moment]) -> tuple[Moment, ...]:
    """Those that no other of the same action covers; whether a backward is its stage's first tells it apart."""
    found: list[Moment] = []
    for row in dict.fromkeys(rows):
        alike = [m for m in found if (m.own, m.kind, m.grown[m.own]) == (row.own, row.kind, row.grown[row.own])]
        if not any(m.covers(row) for m in alike):
            found = [m for m in found if m not in alike or not row.covers(m)]
            found.append(row)
    return tuple(found)
