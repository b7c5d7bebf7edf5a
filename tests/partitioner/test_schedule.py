"""Schedules against tables written out by hand, and every one of them against the simulator."""

from __future__ import annotations

from itertools import product

import pytest

from partitioner.errors import InputError
from partitioner.schedule import Action, in_flight, most_in_flight, schedule, simulate

TABLES = {
    ("gpipe", 2, 1, 3): (
        "0F0 0F1 0F2 0B0 0B1 0B2",
        "1F0 1F1 1F2 1B0 1B1 1B2",
    ),
    ("1f1b", 3, 1, 4): (
        "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3",
        "1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3",
        "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3",
    ),
    ("1f1b", 3, 1, 1): ("0F0 0B0", "1F0 1B0", "2F0 2B0"),
    ("1f1b", 1, 1, 2): ("0F0 0B0 0F1 0B1",),
    ("interleaved", 2, 2, 4): (
        "0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3",
        "1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3",
    ),
}


def _text(kind: str, pp: int, virtual: int, micro_batches: int) -> tuple[str, ...]:
    return tuple(" ".join(map(str, row)) for row in schedule(kind, pp, virtual, micro_batches))


@pytest.mark.parametrize("case", TABLES, ids=str)
def test_tables(case: tuple[str, int, int, int]) -> None:
    assert _text(*case) == TABLES[case]


def test_every_schedule_runs_each_action_once_without_deadlock() -> None:
    sizes = (1, 2, 3, 4), (1, 2, 3), (1, 3, 4, 8, 12, 24)
    for kind, pp, virtual, m in product(("gpipe", "1f1b", "interleaved"), *sizes):
        if (virtual > 1 and kind != "interleaved") or (virtual > 1 and m % pp):
            continue
        table = schedule(kind, pp, virtual, m)
        assert sorted(a for row in table for a in row) == sorted(
            Action(s, k, i) for s in range(pp * virtual) for k in "FB" for i in range(m)
        )
        assert all(a.stage % pp == rank for rank, row in enumerate(table) for a in row)
        ones = [1.0] * (pp * virtual)
        line = simulate(table, pp, ones, ones, 0.0)
        assert line.in_flight == most_in_flight(kind, pp, virtual, m)
        assert line.busy == (2.0 * virtual * m,) * pp


def test_bubble_is_the_known_one() -> None:
    """Narayanan et al., 2021: the bubble lasts (pp - 1) / virtual micro-batches; backward takes twice the forward."""
    for kind, virtual in (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 4)):
        forward, backward = [1.0 / virtual] * (4 * virtual), [2.0 / virtual] * (4 * virtual)
        line = simulate(schedule(kind, 4, virtual, 8), 4, forward, backward, 0.0)
        assert line.makespan == pytest.approx(8 * 3 + 3 * 3 / virtual)


def test_sends_delay_across_ranks_only() -> None:
    assert simulate(schedule("1f1b", 2, 1, 1), 2, [1.0] * 2, [1.0] * 2, 0.25).makespan == 4.5
    assert simulate(schedule("interleaved", 1, 2, 1), 1, [1.0] * 2, [1.0] * 2, 0.25).makespan == 4.0


def test_in_flight() -> None:
    assert in_flight(schedule("gpipe", 2, 1, 5), 2) == (5, 5)
    assert in_flight(schedule("1f1b", 4, 1, 8), 4) == (4, 3, 2, 1)
    assert in_flight(schedule("interleaved", 2, 2, 4), 4) == (4, 3, 2, 1)


def test_deadlock_is_found() -> None:
    crossed = ((Action(0, "F", 0), Action(0, "B", 0)), (Action(1, "B", 0), Action(1, "F", 0)))
    with pytest.raises(ValueError, match="rank 1 waits at 1B0|rank 0 waits at 0B0"):
        simulate(crossed, 2, [1.0] * 2, [1.0] * 2, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zigzag", 2, 1, 4), "gpipe, 1f1b, interleaved"),
        (("1f1b", 2, 2, 4), "choose interleaved"),
        (("interleaved", 4, 2, 6), "take 8"),
        (("interleaved", 4, 2, 1), "take 4"),
        (("gpipe", 0, 1, 1), "at least 1"),
    ],
)
def test_refusals(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule(*arguments)
