"""What every pipeline rank does, in order: one table of actions, priced by cost and executed by the runtime's worker.

    1f1b, pp 2, 4 micro-batches
    rank 0    0F0 0F1 0B0 0F2 0B1 0F3 0B2     0B3
    rank 1        1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3

``2F0`` is the forward of stage 2 on micro-batch 0. Kinds that split backward let ``2B0`` make the gradient of the
stage's inputs only, on which the stage before it waits, and put off those of its weights, ``2W0``, to fill bubbles:

    zero_bubble, pp 2, 4 micro-batches
    rank 0    0F0 0F1     0B0 0W0 0F2 0B1 0W1 0F3 0B2 0W2 0B3 0W3
    rank 1        1F0 1B0 1F1 1B1 1W0 1F2 1B2 1W1 1F3 1B3 1W2 1W3
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from partitioner.errors import InputError


class Action(NamedTuple):
    """The forward ("F"), the backward ("B") or the part of it that was put off ("W") of a stage on a micro-batch."""

    stage: int
    kind: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"


Row = tuple[Action, ...]
Table = tuple[Row, ...]


class Timeline(NamedTuple):
    """Seconds from the first action's start to the last one's end, and busy seconds of each rank."""

    makespan: float
    busy: tuple[float, ...]


@functools.lru_cache(maxsize=32)
def schedule(kind: str, pp: int, virtual: int, micro_batches: int) -> Table:
    """The table of ``kind`` for pp ranks of ``virtual`` stages each; one row a rank.

    Raises InputError for an unknown kind, for a number of stages a rank that the kind does not have, and for a number
    of micro-batches that interleaving does not divide.
    """
    if kind not in SCHEDULES:
        raise InputError(f"schedule {kind!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    if min(pp, virtual, micro_batches) < 1:
        given = f"{pp}, {virtual}, {micro_batches}"
        raise InputError(f"a schedule needs at least 1 rank, stage and micro-batch, not {given}")
    if virtual != STAGES.get(kind, virtual):
        mend = "interleaved" if virtual > 1 else "zero_bubble"
        raise InputError(f"schedule {kind} takes virtual {STAGES[kind]}, not {virtual}: choose {mend}")
    return tuple(SCHEDULES[kind](rank, pp, virtual, micro_batches) for rank in range(pp))


def rank_of(stage: int, pp: int, kind: str = "1f1b") -> int:
    """The pipeline rank on which a stage lies: round after round, or down the ranks and up again."""
    return 2 * pp - 1 - stage if kind == "zbv" and stage >= pp else stage % pp


def _gpipe(rank: int, pp: int, virtual: int, micro_batches: int) -> Row:
    """Huang et al., 2019: all forwards, then all backwards."""
    forwards = [Action(rank, "F", m) for m in range(micro_batches)]
    return (*forwards, *(Action(rank, "B", m) for m in range(micro_batches)))


def _one_forward_one_backward(rank: int, pp: int, virtual: int, micro_batches: int) -> Row:
    """Narayanan et al., 2019 (PipeDream-flush): as many forwards ahead as there are stages behind."""
    forwards = [Action(rank, "F", m) for m in range(micro_batches)]
    backwards = [Action(rank, "B", m) for m in range(micro_batches)]
    return _alternate(forwards, backwards, pp - rank - 1)


def _interleaved(rank: int, pp: int, virtual: int, micro_batches: int) -> Row:
    """Narayanan et al., 2021: rounds of pp micro-batches pass every stage of a rank before the next round starts."""
    if virtual == 1:
        return _one_forward_one_backward(rank, pp, virtual, micro_batches)
    if micro_batches % pp:
        below, above = micro_batches // pp * pp, -(-micro_batches // pp) * pp
        nearest = above if not below or above - micro_batches <= micro_batches - below else below
        raise InputError(f"interleaved needs micro-batches divisible by pp {pp}, not {micro_batches}: take {nearest}")
    rounds = range(0, micro_batches, pp)
    forwards = [Action(c * pp + rank, "F", r + i) for r in rounds for c in range(virtual) for i in range(pp)]
    backwards = [Action(c * pp + rank, "B", r + i) for r in rounds for c in reversed(range(virtual)) for i in range(pp)]
    return _alternate(forwards, backwards, 2 * (pp - rank - 1) + (virtual - 1) * pp)


def _alternate(forwards: list[Action], backwards: list[Action], ahead: int) -> Row:
    """``ahead`` forwards, then a forward and a backward in turn, then the backwards left."""
    ahead = min(ahead, len(forwards))
    row = forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        row += [forward, backward]
    return (*row, *backwards[len(forwards) - ahead :])


def _zero_bubble(rank: int, pp: int, virtual: int, micro_batches: int) -> Row:
    """Qi et al., 2023 (ZB-H1): 1f1b whose rank r is r weights' gradients behind, to have them left when others end."""
    ahead = pp - rank - 1
    row = [Action(rank, "F", m) for m in range(min(ahead, micro_batches))]
    for m in range(micro_batches + rank):
        row += [Action(rank, kind, n) for kind, n in (("F", m + ahead), ("B", m), ("W", m - rank))
                if 0 <= n < micro_batches]  # fmt: skip
    return tuple(row)


def _zbv(rank: int, pp: int, virtual: int, micro_batches: int) -> Row:
    """Qi et al., 2023 (ZB-V), 2024 (V-ZB): as many bytes as 1f1b; no rank waits inside where F, B and W are equal.

    ``d`` is the rank's stage on the way down, ``u`` the one on the way up. What is missing of a full pipeline is
    left out.
    """
    many, behind = max(micro_batches, 2 * pp - 1), pp - rank
    parts = (
        (2 * behind - 1, "Fd"), (rank, "Fu Fd"), (behind, "Fu Bu Wu"), (many - 2 * pp + rank + 1, "Fd Bd Wd Fu Bu Wu"),
        (behind - 1, "Bd Wd Fu Bu Wu"), (rank, "Bd Bu"), (behind, "Bd Wd"), (rank, "Wu"), (rank, "Wd"),
    )  # fmt: skip
    words = [word for count, text in parts for word in text.split() * count]
    stages, counts = {"d": rank, "u": 2 * pp - 1 - rank}, dict.fromkeys(words, 0)
    row: list[Action] = []
    for word in words:
        row.append(Action(stages[word[1]], word[0], counts[word]))
        counts[word] += 1
    return tuple(action for action in row if action.micro_batch < micro_batches)


SCHEDULES: dict[str, Callable[[int, int, int, int], Row]] = {
    "gpipe": _gpipe,
    "1f1b": _one_forward_one_backward,
    "interleaved": _interleaved,
    "zero_bubble": _zero_bubble,
    "zbv": _zbv,
}
STAGES = {"gpipe": 1, "1f1b": 1, "zero_bubble": 1, "zbv": 2}  # a rank, of the kinds where that is fixed
SPLIT = frozenset({"zero_bubble", "zbv"})  # kinds that put off the weights' gradients


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
    lies = {action.stage: rank for rank, row in enumerate(actions) for action in row}
    ended = [-1.0] * (len(seconds) * many)  # of the F, then the B, then the W, of each stage and micro-batch
    rows = [[_places(a, stages, many) for a in row] for row in actions]
    free, busy, position = [0.0] * pp, [0.0] * pp, [0] * pp
    ready, waiting = list(range(pp)), dict[int, int]()
    while ready:
        rank = ready.pop()
        now, spent, at = free[rank], busy[rank], position[rank]
        for own, first, needed in itertools.islice(rows[rank], at, None):
            lacking = first if first >= 0 and ended[first] < 0 else needed
            if lacking >= 0:
                arrival = ended[lacking]
                if arrival < 0:
                    waiting[lacking] = rank
                    break
                if lies[lacking // many % stages] != rank:
                    arrival += send_seconds
                now = arrival if arrival > now else now
            spent += seconds[own // many]
            now += seconds[own // many]
            ended[own] = now
            at += 1
            if own in waiting:
                ready.append(waiting.pop(own))
        free[rank], busy[rank], position[rank] = now, spent, at
    for rank, row in enumerate(actions):
        if position[rank] < len(row):
            raise ValueError(f"deadlock: pipeline rank {rank} waits at {row[position[rank]]}")
    return Timeline(max(free), tuple(busy))


def _places(action: Action, stages: int, many: int) -> tuple[int, int, int]:
    """An action's place, that of what its rank did before it (-1 for nothing) and that of what it waits for."""
    forward = action.stage * many + action.micro_batch
    if action.kind == "F":
        return forward, -1, forward - many if action.stage else -1
    own = stages * many + forward
    if action.kind == "W":
        return own + stages * many, own, -1
    return own, forward, own + many if action.stage + 1 < stages else -1


def in_flight(actions: Table, stages: int) -> tuple[int, ...]:
    """Of each stage the most micro-batches between the start of their forward and the end of their backward.

    Where W is put off, all that forward kept is held until its end: what B frees is weighed up against the gradients
    that it leaves for W.
    """
    now, most = [0] * stages, [0] * stages
    last = "W" if any(action.kind == "W" for action in actions[0]) else "B"
    for action in (action for row in actions for action in row):
        now[action.stage] += (action.kind == "F") - (action.kind == last)
        most[action.stage] = max(most[action.stage], now[action.stage])
    return tuple(most)


@functools.lru_cache(maxsize=4096)
def most_in_flight(kind: str, pp: int, virtual: int, micro_batches: int) -> tuple[int, ...]:
    """``in_flight`` of a schedule: gpipe holds all, the others no more than in a few rounds of pp micro-batches."""
    if kind == "gpipe":
        return (micro_batches,) * pp
    few = min(micro_batches, 4 * pp)
    return in_flight(schedule(kind, pp, virtual, few), pp * virtual)
