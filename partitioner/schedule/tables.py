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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from partitioner.errors import InputError

FORWARD, BACKWARD, WEIGHT_GRADIENT = "F", "B", "W"


@dataclass(frozen=True)
class Kind:
    """What actions of one kind do.

    ``sends``: what goes to the stage that lies ``towards`` so many stages on, and on which its action of the same kind
    waits; "" and 0 where nothing does. ``follows``: the kind of the action of the same stage that comes before.
    ``collectives``: those of the stage's forward or backward run in it; "" for none.
    """

    letter: str
    name: str
    sends: str = ""
    towards: int = 0
    follows: str = ""
    collectives: Literal["forward", "backward", ""] = ""

    @property
    def is_forward(self) -> bool:
        """Whether a stage takes up a micro-batch with it."""
        return not self.follows


KINDS = {
    row.letter: row
    for row in (
        Kind(FORWARD, "forward", sends="activations", towards=1, collectives="forward"),
        Kind(BACKWARD, "backward", sends="gradients", towards=-1, follows=FORWARD, collectives="backward"),
        Kind(WEIGHT_GRADIENT, "weight gradients", follows=BACKWARD),
    )
}
SENDING = tuple(letter for letter, row in KINDS.items() if row.sends)  # kinds with which stages wait for each other


class Action(NamedTuple):
    """What a stage does with a micro-batch; the letter of one of KINDS."""

    stage: int
    kind: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"


Actions = tuple[Action, ...]
Table = tuple[Actions, ...]


def reader(action: Action, stages: int) -> Action | None:
    """The action that waits for what this one makes, of ``stages`` stages; None where none does."""
    return _across(action, KINDS[action.kind].towards, stages)


def maker(action: Action, stages: int) -> Action | None:
    """The action of another stage for which this one waits; None where it waits for none."""
    return _across(action, -KINDS[action.kind].towards, stages)


def _across(action: Action, step: int, stages: int) -> Action | None:
    stage = action.stage + step
    return action._replace(stage=stage) if step and 0 <= stage < stages else None


def releasing_kind(actions: Iterable[Action]) -> str:
    """The kind of action after which a rank with these actions keeps nothing more of a micro-batch: what was put off is
    held until its end."""
    return WEIGHT_GRADIENT if any(action.kind == WEIGHT_GRADIENT for action in actions) else BACKWARD


@functools.lru_cache(maxsize=8)
def schedule(kind: str, pp: int, virtual: int, micro_batches: int) -> Table:
    """The table of ``kind`` for pp ranks of ``virtual`` stages each; one row a rank.

    Raises InputError for an unknown kind, for a number of stages a rank that the kind does not have, and for a number
    of micro-batches that interleaving does not divide.
    """
    row = SCHEDULES.get(kind)
    if row is None:
        raise InputError(f"schedule {kind!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    if min(pp, virtual, micro_batches) < 1:
        given = f"{pp}, {virtual}, {micro_batches}"
        raise InputError(f"a schedule needs at least 1 rank, stage and micro-batch, not {given}")
    if row.most_stages is not None and not row.takes(virtual):
        others = (s for s in SCHEDULES.values() if s.takes(virtual))
        alike = next(s.name for s in others if s.most_stages is None or s.defers_weights == row.defers_weights)
        raise InputError(f"schedule {kind} takes virtual {row.most_stages}, not {virtual}: choose {alike}")
    return tuple(row.rank_actions(rank, pp, virtual, micro_batches) for rank in range(pp))


def rank_of(stage: int, pp: int, kind: str) -> int:
    """The pipeline rank on which a stage of a schedule lies."""
    return SCHEDULES[kind].stage_rank(stage, pp)


@functools.lru_cache(maxsize=256)
def stages_of(pp: int, virtual: int, kind: str) -> tuple[tuple[int, ...], ...]:
    """The stages of each pipeline rank, rising."""
    stages = range(pp * virtual)
    return tuple(tuple(n for n in stages if rank_of(n, pp, kind) == p) for p in range(pp))


def _gpipe(rank: int, pp: int, virtual: int, micro_batches: int) -> Actions:
    """Huang et al., 2019: all forwards, then all backwards."""
    return _actions(rank, FORWARD, micro_batches) + _actions(rank, BACKWARD, micro_batches)


def _one_forward_one_backward(rank: int, pp: int, virtual: int, micro_batches: int) -> Actions:
    """Narayanan et al., 2019 (PipeDream-flush): as many forwards ahead as there are stages behind."""
    forwards, backwards = (_actions(rank, kind, micro_batches) for kind in (FORWARD, BACKWARD))
    return _alternate(forwards, backwards, pp - rank - 1)


def _interleaved(rank: int, pp: int, virtual: int, micro_batches: int) -> Actions:
    """Narayanan et al., 2021: rounds of pp micro-batches pass every stage of a rank before the next round starts."""
    if virtual == 1:
        return _one_forward_one_backward(rank, pp, virtual, micro_batches)
    if micro_batches % pp and micro_batches > 1:  # one alone passes every stage in turn, as where nothing trains
        below, above = micro_batches // pp * pp, -(-micro_batches // pp) * pp
        nearest = above if not below or above - micro_batches <= micro_batches - below else below
        raise InputError(f"interleaved needs micro-batches divisible by pp {pp}, not {micro_batches}: take {nearest}")
    rounds, stages = range(0, micro_batches, pp), range(rank, virtual * pp, pp)
    down = [_actions(n, FORWARD, micro_batches) for n in stages]
    up = [_actions(n, BACKWARD, micro_batches) for n in reversed(stages)]
    forwards = tuple(action for r in rounds for row in down for action in row[r : r + pp])
    backwards = tuple(action for r in rounds for row in up for action in row[r : r + pp])
    return _alternate(forwards, backwards, 2 * (pp - rank - 1) + (virtual - 1) * pp)


def _alternate(forwards: Actions, backwards: Actions, ahead: int) -> Actions:
    """``ahead`` forwards, then a forward and a backward in turn, then the backwards left."""
    ahead = min(ahead, len(forwards))
    turns = itertools.chain.from_iterable(zip(forwards[ahead:], backwards, strict=False))
    return (*forwards[:ahead], *turns, *backwards[len(forwards) - ahead :])


@functools.lru_cache(maxsize=512)
def _actions(stage: int, kind: str, micro_batches: int) -> Actions:
    """A stage's actions of a kind; tables share them."""
    return tuple(Action(stage, kind, m) for m in range(micro_batches))


def _zero_bubble(rank: int, pp: int, virtual: int, micro_batches: int) -> Actions:
    """Qi et al., 2023 (ZB-H1): 1f1b whose rank r is r weights' gradients behind, to have them left when others end."""
    ahead = pp - rank - 1
    row = [Action(rank, FORWARD, m) for m in range(min(ahead, micro_batches))]
    for m in range(micro_batches + rank):
        turn = ((FORWARD, m + ahead), (BACKWARD, m), (WEIGHT_GRADIENT, m - rank))
        row += [Action(rank, kind, n) for kind, n in turn if 0 <= n < micro_batches]
    return tuple(row)


def _zbv(rank: int, pp: int, virtual: int, micro_batches: int) -> Actions:
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


def _round_after_round(stage: int, pp: int) -> int:
    return stage % pp


def _down_and_up(stage: int, pp: int) -> int:
    return 2 * pp - 1 - stage if stage >= pp else stage


@dataclass(frozen=True)
class Schedule:
    """All that is known of a schedule.

    ``rank_actions``: those of a rank, of pp, virtual and micro-batches. ``fewest_stages`` to ``most_stages`` lie on a
    rank (None: any number). ``stage_rank``: the pipeline rank of a stage, of pp. ``filling_micro_batches``: so many, of
    pp, make ranks as full as they get; None: all are in flight at once. ``forwards_first``: no backward of a step comes
    before its last forward. ``in_rounds``: micro-batches pass in rounds of pp. ``defers_weights``: their gradients
    wait. ``executed``: the runtime has all that it needs.
    """

    name: str
    rank_actions: Callable[[int, int, int, int], Actions]
    fewest_stages: int = 1
    most_stages: int | None = 1
    stage_rank: Callable[[int, int], int] = _round_after_round
    filling_micro_batches: Callable[[int], int] | None = lambda pp: 3 * pp
    forwards_first: bool = False
    in_rounds: bool = False
    defers_weights: bool = False
    executed: bool = True

    def takes(self, virtual: int) -> bool:
        """Whether it is of so many stages a rank."""
        return self.fewest_stages <= virtual and (self.most_stages is None or virtual <= self.most_stages)


_ROWS = (
    Schedule("gpipe", _gpipe, filling_micro_batches=None, forwards_first=True),
    Schedule("1f1b", _one_forward_one_backward, filling_micro_batches=lambda pp: pp + 1),
    Schedule("interleaved", _interleaved, fewest_stages=2, most_stages=None, in_rounds=True),
    Schedule("zero_bubble", _zero_bubble, defers_weights=True, executed=False),
    Schedule("zbv", _zbv, fewest_stages=2, most_stages=2, stage_rank=_down_and_up, defers_weights=True, executed=False),
)
SCHEDULES = {row.name: row for row in _ROWS}
PLAIN = "1f1b"  # the one of a single stage, and where nothing asks for another


def plainest(virtual: int) -> str:
    """The schedule of so many stages a rank where nothing asks for another."""
    return PLAIN if virtual == 1 else next(row.name for row in _ROWS if row.executed and row.takes(virtual))
