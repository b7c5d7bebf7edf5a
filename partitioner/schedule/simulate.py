"""An action table walked in time: when each action starts and ends, what is in flight meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from partitioner.schedule.tables import KINDS, SCHEDULES, Actions, Table, releasing_kind, schedule


class Timeline(NamedTuple):
    """Seconds from the first action's start to the last one's end, busy seconds of each rank, and each action's end:
    kind after kind, in the order of KINDS, of each stage and micro-batch."""

    makespan: float
    busy: tuple[float, ...]
    ended: list[float]


def simulate(
    actions: Table, pp: int, forward: Sequence[float], backward: Sequence[float], send_seconds: float,
    weight: Sequence[float] = (),
) -> Timeline:  # fmt: skip
    """Walk the table: an action starts when its rank is free and what it needs has arrived.

    ``forward``, ``backward`` and, where the table has any W, ``weight`` are seconds by stage; ``send_seconds`` pass
    between the end of an action and its result's arrival on another rank. Raises ValueError when the ranks wait for
    each other or for an action that no row has.
    """
    stages, many = len(forward), 1 + max(action.micro_batch for action in actions[0])
    seconds = (*forward, *backward, *weight)
    lies = {stage: rank for rank, row in enumerate(actions) for stage in {action.stage for action in row}}
    delay = [send_seconds if lies[n] != lies[n + 1] else 0.0 for n in range(stages - 1)]
    ended = [-1.0] * (len(seconds) * many)
    ended.append(0.0)  # of nothing
    rows = [_places(row, seconds, delay, many) for row in actions]
    free, busy, position = [0.0] * pp, [0.0] * pp, [0] * pp
    ready, waiting = list(range(pp)), dict[int, int]()
    while ready:
        rank = ready.pop()
        row, now, spent, at = rows[rank], free[rank], busy[rank], position[rank]
        while at < len(row):
            own, first, needed, after, taken = row[at]
            arrival = ended[needed]
            if arrival < 0 or ended[first] < 0:
                waiting[needed if arrival < 0 else first] = rank
                break
            arrival += after
            now = (arrival if arrival > now else now) + taken
            spent += taken
            ended[own] = now
            at += 1
            if own in waiting:
                ready.append(waiting.pop(own))
        free[rank], busy[rank], position[rank] = now, spent, at
    for rank, left in enumerate(actions):
        if position[rank] < len(left):
            raise ValueError(f"deadlock: pipeline rank {rank} waits at {left[position[rank]]}")
    return Timeline(max(free), tuple(busy), ended)


def ends(walked: Timeline, actions: Table, stages: int) -> tuple[tuple[float, ...], ...]:
    """When each action of the table ended; rows as the table's."""
    many = 1 + max(action.micro_batch for action in actions[0])
    return tuple(tuple(walked.ended[(_NUMBER[kind] * stages + n) * many + m] for n, kind, m in row) for row in actions)


_NUMBER = {letter: n for n, letter in enumerate(KINDS)}
_Place = tuple[int, int, int, float, float]


def _places(row: Actions, seconds: Sequence[float], delay: Sequence[float], many: int) -> list[_Place]:
    """Each action's place, that of what its rank did before it and that of what it waits for (-1: nothing), how long
    that is on its way, and the seconds that the action takes."""
    first = {alike: _first(*alike, seconds, delay, many) for alike in {(a.stage, a.kind) for a in row}}
    found = list[_Place]()
    for stage, kind, m in row:
        own, previous, needed, sent, takes = first[stage, kind]
        found.append((own + m, previous + m if previous >= 0 else -1, needed + m if needed >= 0 else -1, sent, takes))
    return found


def _first(stage: int, letter: str, seconds: Sequence[float], delay: Sequence[float], many: int) -> _Place:
    """The place of a stage's first action of a kind."""
    stages, kind, number = len(delay) + 1, KINDS[letter], _NUMBER[letter]
    own = (number * stages + stage) * many
    previous = (_NUMBER[kind.follows] * stages + stage) * many if kind.follows else -1
    source = stage - kind.towards
    arrives = kind.towards and 0 <= source < stages
    needed, sent = (own - kind.towards * many, delay[min(stage, source)]) if arrives else (-1, 0.0)
    return own, previous, needed, sent, seconds[number * stages + stage]


def in_flight(actions: Table, stages: int) -> tuple[int, ...]:
    """Of each stage the most micro-batches between the start of their forward and the end of their backward.

    Where W is put off, all that forward kept is held until its end: what B frees is weighed up against the gradients
    that it leaves for W.
    """
    now, most = [0] * stages, [0] * stages
    last = releasing_kind(actions[0])
    for action in (action for row in actions for action in row):
        now[action.stage] += KINDS[action.kind].is_forward - (action.kind == last)
        most[action.stage] = max(most[action.stage], now[action.stage])
    return tuple(most)


@functools.lru_cache(maxsize=4096)
def most_in_flight(kind: str, pp: int, virtual: int, micro_batches: int) -> tuple[int, ...]:
    """``in_flight`` of a schedule: all, or no more than in a few rounds of pp micro-batches."""
    if SCHEDULES[kind].filling_micro_batches is None:
        return (micro_batches,) * (pp * virtual)
    few = min(micro_batches, 4 * pp)
    return in_flight(schedule(kind, pp, virtual, few), pp * virtual)
