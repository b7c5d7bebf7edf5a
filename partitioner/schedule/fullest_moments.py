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

from partitioner.schedule.tables import KINDS, SCHEDULES, Actions, releasing_kind, stages_of

IN_FORWARD, IN_BACKWARD, IN_FIRST_BACKWARD = range(3)  # the first of a stage in a step finds no gradients there
Array = np.ndarray[Any, np.dtype[Any]]
_Moment = tuple[int, int, tuple[int, ...], tuple[bool, ...]]


class Moments(NamedTuple):
    """Distinct moments m of all pipeline ranks p, rank after rank; ranks have v stages each.

    ``starts`` (p): each rank's first moment. ``stages`` (m, v): those of the moment's rank. ``acting_stage`` (m): the
    one that acts, ``action`` (m): what it does. ``in_flight`` (m, v): micro-batches, with the acting one before its
    backward, without it before its forward. ``has_gradients`` (m, v): whether gradients are there.
    """

    starts: Array
    stages: Array
    acting_stage: Array
    action: Array
    in_flight: Array
    has_gradients: Array


def moments(kind: str, pp: int, virtual: int, micro_batches: int) -> Moments:
    """Those of a schedule that none of the same rank and action exceeds in every number."""
    return _moments(kind, pp, virtual, _filling(kind, pp, micro_batches))


def moment_of(kind: str, has_gradients: bool) -> int:
    """What a stage is in with an action of a kind, when its gradients are there or not yet."""
    return IN_FORWARD if KINDS[kind].is_forward else IN_BACKWARD if has_gradients else IN_FIRST_BACKWARD


def _filling(kind: str, pp: int, micro_batches: int) -> int:
    """So many micro-batches make every rank as full as it gets."""
    filled = SCHEDULES[kind].filling_micro_batches
    return micro_batches if filled is None else min(micro_batches, filled(pp))


@functools.lru_cache(maxsize=1024)
def _moments(kind: str, pp: int, virtual: int, micro_batches: int) -> Moments:
    starts, found = list[int](), list[tuple[Any, ...]]()
    for p, own in enumerate(stages_of(pp, virtual, kind)):
        starts.append(len(found))
        if SCHEDULES[kind].forwards_first:
            rows = _all_forward_first(p, micro_batches)
        else:
            rows = _undominated(_walk(SCHEDULES[kind].rank_actions(p, pp, virtual, micro_batches), own))
        found += [(own, *row) for row in rows]
    return Moments(np.array(starts), *(np.array(column) for column in zip(*found, strict=True)))


def _all_forward_first(stage: int, many: int) -> list[_Moment]:
    """Those of one stage that holds all micro-batches before its first backward; nothing to walk."""
    rows: list[_Moment] = [
        (stage, IN_FORWARD, (many - 1,), (False,)), (stage, IN_FIRST_BACKWARD, (many,), (False,)),
    ]  # fmt: skip
    return rows + ([(stage, IN_BACKWARD, (many - 1,), (True,))] if many > 1 else [])


def _walk(row: Actions, own: Sequence[int]) -> Iterator[_Moment]:
    number_of = {stage: n for n, stage in enumerate(own)}
    in_flight_now, has_gradients = [0] * len(own), [False] * len(own)
    last = releasing_kind(row)
    for stage, kind, _ in row:
        n = number_of[stage]
        yield stage, moment_of(kind, has_gradients[n]), tuple(in_flight_now), tuple(has_gradients)
        in_flight_now[n] += KINDS[kind].is_forward - (kind == last)
        has_gradients[n] = has_gradients[n] or not KINDS[kind].is_forward


def _undominated(rows: Iterator[_Moment]) -> list[_Moment]:
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
