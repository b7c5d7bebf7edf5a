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
from collections.abc import Callable
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


@functools.lru_cache(maxsize=8)
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


@functools.lru_cache(maxsize=256)
def stages_of(pp: int, virtual: int, kind: str) -> tuple[tuple[int, ...], ...]:
    """The stages of each pipeline rank, rising."""
    stages = range(pp * virtual)
    return tuple(tuple(n for n in stages if rank_of(n, pp, kind) == p) for p in range(pp))


def _gpipe(rank: int, pp: int, virtual: int, micro_batches: int) -> Row:
    """Huang et al., 2019: all forwards, then all backwards."""
    return _actions(rank, "F", micro_batches) + _actions(rank, "B", micro_batches)


def _one_forward_one_backward(rank: int, pp: int, virtual: int, micro_batches: int) -> Row:
    """Narayanan et al., 2019 (PipeDream-flush): as many forwards ahead as there are stages behind."""
    return _alternate(_actions(rank, "F", micro_batches), _actions(rank, "B", micro_batches), pp - rank - 1)


def _interleaved(rank: int, pp: int, virtual: int, micro_batches: int) -> Row:
    """Narayanan et al., 2021: rounds of pp micro-batches pass every stage of a rank before the next round starts."""
    if virtual == 1:
        return _one_forward_one_backward(rank, pp, virtual, micro_batches)
    if micro_batches % pp:
        below, above = micro_batches // pp * pp, -(-micro_batches // pp) * pp
        nearest = above if not below or above - micro_batches <= micro_batches - below else below
        raise InputError(f"interleaved needs micro-batches divisible by pp {pp}, not {micro_batches}: take {nearest}")
    rounds, stages = range(0, micro_batches, pp), range(rank, virtual * pp, pp)
    down = [_actions(n, "F", micro_batches) for n in stages]
    up = [_actions(n, "B", micro_batches) for n in reversed(stages)]
    forwards = tuple(action for r in rounds for row in down for action in row[r : r + pp])
    backwards = tuple(action for r in rounds for row in up for action in row[r : r + pp])
    return _alternate(forwards, backwards, 2 * (pp - rank - 1) + (virtual - 1) * pp)


def _alternate(forwards: Row, backwards: Row, ahead: int) -> Row:
    """``ahead`` forwards, then a forward and a backward in turn, then the backwards left."""
    ahead = min(ahead, len(forwards))
    turns = itertools.chain.from_iterable(zip(forwards[ahead:], backwards, strict=False))
    return (*forwards[:ahead], *turns, *backwards[len(forwards) - ahead :])


@functools.lru_cache(maxsize=512)
def _actions(stage: int, kind: str, micro_batches: int) -> Row:
    """A stage's actions of a kind; tables share them."""
    return tuple(Action(stage, kind, m) for m in range(micro_batches))


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
