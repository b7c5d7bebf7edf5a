"""The moments of a schedule at which its pipeline ranks may be fullest.

    1f1b, rank 0 of 2       0F0 0F1 0B0 0F2 0B1 ...
    fullest may be          0F1 with 1 in flight; 0B0, the first, with 2; 0F2 and 0B1, when gradients lie there
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from partitioner.schedule.tables import KINDS, SCHEDULES, Row, frees, stages_of

IN_FORWARD, IN_BACKWARD, IN_FIRST_BACKWARD = range(3)  # the first of a stage in a step finds no gradients there
Array = np.ndarray[Any, np.dtype[Any]]
_Moment = tuple[int, int, tuple[int, ...], tuple[bool, ...]]


class Moments(NamedTuple):
    """Distinct moments m of all pipeline ranks p, rank after rank; ranks have v stages each.

    ``starts`` (p): each rank's first moment. ``stages`` (m, v): those of the moment's rank. ``acting`` (m): the stage
    that acts, ``action`` (m): what it does. ``in_flight`` (m, v): micro-batches, with the acting one before its
    backward, without it before its forward. ``grown`` (m, v): whether gradients are there.
    """

    starts: Array
    stages: Array
    acting: Array
    action: Array
    in_flight: Array
    grown: Array


def moments(kind: str, pp: int, virtual: int, micro_batches: int) -> Moments:
    """Those of a schedule that none of the same rank and action exceeds in every number."""
    return _moments(kind, pp, virtual, _enough(kind, pp, micro_batches))


def moment_of(kind: str, grown: bool) -> int:
    """What a stage is in with an action of a kind, when its gradients are there or not yet."""
    return IN_FORWARD if KINDS[kind].is_forward else IN_BACKWARD if grown else IN_FIRST_BACKWARD


def _enough(kind: str, pp: int, micro_batches: int) -> int:
    """So many micro-batches make every rank as full as it gets."""
    filled = SCHEDULES[kind].filled
    return micro_batches if filled is None else min(micro_batches, filled(pp))


@functools.lru_cache(maxsize=1024)
def _moments(kind: str, pp: int, virtual: int, micro_batches: int) -> Moments:
    starts, found = list[int](), list[tuple[Any, ...]]()
    for p, own in enumerate(stages_of(pp, virtual, kind)):
        starts.append(len(found))
        if SCHEDULES[kind].filled is None:
            rows = _all_forward_first(p, micro_batches)
        else:
            rows = _largest(_walk(SCHEDULES[kind].make(p, pp, virtual, micro_batches), own))
        found += [(own, *row) for row in rows]
    return Moments(np.array(starts), *(np.array(column) for column in zip(*found, strict=True)))


def _all_forward_first(stage: int, many: int) -> list[_Moment]:
    """Those of one stage that holds all micro-batches, whose row is as long as there are of them."""
    rows: list[_Moment] = [
        (stage, IN_FORWARD, (many - 1,), (False,)), (stage, IN_FIRST_BACKWARD, (many,), (False,)),
    ]  # fmt: skip
    return rows + ([(stage, IN_BACKWARD, (many - 1,), (True,))] if many > 1 else [])


def _walk(row: Row, own: Sequence[int]) -> Iterator[_Moment]:
    place = {stage: n for n, stage in enumerate(own)}
    flying, grown = [0] * len(own), [False] * len(own)
    last = frees(row)
    for stage, kind, _ in row:
        n = place[stage]
        yield stage, moment_of(kind, grown[n]), tuple(flying), tuple(grown)
        flying[n] += KINDS[kind].is_forward - (kind == last)
        grown[n] = grown[n] or not KINDS[kind].is_forward


def _largest(rows: Iterator[_Moment]) -> list[_Moment]:
    """Without those that another of the same action exceeds or equals in every number, or that lie between two."""
    alike: dict[tuple[int, int], dict[tuple[int, ...], _Moment]] = {}
    for row in rows:
        alike.setdefault(row[:2], {})[*row[2], *row[3]] = row
    found = list[_Moment]()
    for group in alike.values():
        if len(group) == 1:
            found += group.values()
            continue
        numbers = np.array(list(group))
        turns = np.ones(len(numbers), dtype=bool)
        turns[1:-1] = np.diff(numbers, n=2, axis=0).any(1)
        exceeded = (numbers[:, None] <= numbers[None, turns]).all(2).sum(1) > turns  # by more than itself
        found += itertools.compress(group.values(), turns & ~exceeded)
    return found
