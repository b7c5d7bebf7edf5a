"""The moments of a schedule's first rounds hold the fullest one of the whole table, whatever stages keep and do."""

from __future__ import annotations

import random

import numpy as np
import pytest

from partitioner.schedule.fullest_moments import IN_BACKWARD, IN_FIRST_BACKWARD, IN_FORWARD, moments
from partitioner.schedule.tables import SCHEDULES, Action, Actions, Schedule, rank_of, schedule

CASES = [
    ("gpipe", 2, 1, 5), ("gpipe", 3, 1, 1), ("1f1b", 1, 1, 4), ("1f1b", 4, 1, 20), ("1f1b", 4, 1, 5),
    ("1f1b", 4, 1, 4), ("1f1b", 4, 1, 2), ("interleaved", 2, 2, 16), ("interleaved", 4, 3, 32),
    ("zero_bubble", 4, 1, 24), ("zbv", 3, 2, 24),
]  # fmt: skip


def fullest(kind: str, pp: int, virtual: int, many: int, p: int, kept: list[float], acts: list[list[float]]) -> float:
    """Every action of the whole table, played."""
    own = [n for n in range(pp * virtual) if rank_of(n, pp, kind) == p]
    flying: dict[int, int] = dict.fromkeys(own, 0)
    seen: set[int] = set()
    row = schedule(kind, pp, virtual, many)[p]
    last = "W" if any(a.kind == "W" for a in row) else "B"
    most = 0.0
    for action in row:
        n = own.index(action.stage)
        what = IN_FORWARD if action.kind == "F" else IN_BACKWARD if action.stage in seen else IN_FIRST_BACKWARD
        held = sum(kept[i] * flying[s] for i, s in enumerate(own))
        there = sum(7.0 * (i + 1) for i, s in enumerate(own) if s in seen)
        most = max(most, held + there + acts[n][what])
        flying[action.stage] += {"F": 1, last: -1}.get(action.kind, 0)
        seen |= {action.stage} if action.kind == "B" else set()
    return most


@pytest.mark.parametrize(("kind", "pp", "virtual", "many"), CASES)
def test_the_fullest_moment_is_among_them(kind: str, pp: int, virtual: int, many: int) -> None:
    draw, found = random.Random(0), moments(kind, pp, virtual, many)
    assert len(found.acting_stage) <= 12 * pp * virtual**2
    ranks = np.split(np.arange(len(found.acting_stage)), found.starts[1:])
    for p, rows in enumerate(ranks):
        own = found.stages[rows[0]].tolist()
        for _ in range(20):
            kept = [draw.uniform(1, 10) for _ in range(virtual)]
            acts = [[draw.uniform(0, 50) for _ in range(3)] for _ in range(virtual)]
            values = [
                sum(k * f for k, f in zip(kept, found.in_flight[m], strict=True))
                + sum(7.0 * (i + 1) for i, there in enumerate(found.has_gradients[m]) if there)
                + acts[own.index(found.acting_stage[m])][found.action[m]]
                for m in rows
            ]  # fmt: skip
            assert max(values) == pytest.approx(fullest(kind, pp, virtual, many, p, kept, acts))


def _held_to_the_end(rank: int, pp: int, virtual: int, micro_batches: int) -> Actions:
    """Forward and backward in turn, all weights' gradients last."""
    turns = [Action(rank, kind, m) for m in range(micro_batches) for kind in "FB"]
    return (*turns, *(Action(rank, "W", m) for m in range(micro_batches)))


def test_all_may_be_in_flight_while_backwards_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last forward finds gradients there, and what all others keep."""
    row = Schedule("held", _held_to_the_end, filling_micro_batches=None, defers_weights=True, executed=False)
    monkeypatch.setitem(SCHEDULES, row.name, row)
    test_the_fullest_moment_is_among_them(row.name, 2, 1, 7)
    found = moments(row.name, 2, 1, 7)
    rows = zip(found.action, found.in_flight[:, 0], found.has_gradients[:, 0], strict=True)
    assert (IN_FORWARD, 6, True) in rows
