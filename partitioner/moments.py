"""The moments of a schedule at which a pipeline rank may be fullest.

    1f1b, rank 0 of 2       0F0 0F1 0B0 0F2 0B1 ...
    fullest may be          0F1 on top of 1 in flight; 0B0, the first, with 2; 0B1, when gradients lie there, with 2
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from partitioner.schedule import Row, rank_of, schedule

_ROUNDS = 3  # of pp micro-batches, after which no rank is fuller than before
FORWARD, BACKWARD, FIRST = range(3)  # actions; the first backward of a stage in a step finds no gradients there
Array = np.ndarray[Any, np.dtype[Any]]
_Moment = tuple[int, int, tuple[int, ...], tuple[bool, ...]]


class Moments(NamedTuple):
    """One rank's distinct moments m, of its ``own`` stages s.

    ``own`` (m): the acting stage's place among them, ``action`` (m): what it does. ``in_flight`` (m, s): micro-batches,
    with the acting one before its backward, without it before its forward. ``grown`` (m, s): whether gradients are
    there.
    """

    own: Array
    action: Array
    in_flight: Array
    grown: Array


@functools.lru_cache(maxsize=4096)
def moments(kind: str, pp: int, virtual: int, micro_batches: int) -> tuple[Moments, ...]:
    """By pipeline rank."""
    if kind == "gpipe":
        rows: list[_Moment] = [(0, FORWARD, (micro_batches - 1,), (False,)), (0, FIRST, (micro_batches,), (False,))]
        rows += [(0, BACKWARD, (micro_batches - 1,), (True,))] if micro_batches > 1 else []
        return (_arrays(rows),) * pp
    table = schedule(kind, pp, virtual, min(micro_batches, _ROUNDS * pp))
    own = [[n for n in range(pp * virtual) if rank_of(n, pp, kind) == p] for p in range(pp)]
    return tuple(_arrays(list(dict.fromkeys(_walk(row, n)))) for row, n in zip(table, own, strict=True))


def _walk(row: Row, own: list[int]) -> Iterator[_Moment]:
    """What was put off is held until its end."""
    place = {stage: n for n, stage in enumerate(own)}
    flying, grown = [0] * len(own), [False] * len(own)
    last = "W" if any(action.kind == "W" for action in row) else "B"
    for action in row:
        n = place[action.stage]
        yield n, FORWARD if action.kind == "F" else BACKWARD if grown[n] else FIRST, tuple(flying), tuple(grown)
        flying[n] += (action.kind == "F") - (action.kind == last)
        grown[n] = grown[n] or action.kind == "B"


def _arrays(rows: list[_Moment]) -> Moments:
    return Moments(*(np.array(column) for column in zip(*rows, strict=True)))
