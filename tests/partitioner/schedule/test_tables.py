"""Schedules against tables written out by hand, and every one of them against the simulator."""

from __future__ import annotations

import itertools
from itertools import product
from types import SimpleNamespace

import pytest
from torch.distributed.pipelining import ScheduleInterleavedZeroBubble, ScheduleZBVZeroBubble

from partitioner.errors import InputError
from partitioner.schedule.simulate import in_flight, most_in_flight, simulate
from partitioner.schedule.tables import (
    SCHEDULES,
    Action,
    Table,
    maker,
    plainest,
    rank_of,
    reader,
    releasing_kind,
    schedule,
)

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
    ("zero_bubble", 2, 1, 4): (
        "0F0 0F1 0B0 0W0 0F2 0B1 0W1 0F3 0B2 0W2 0B3 0W3",
        "1F0 1B0 1F1 1B1 1W0 1F2 1B2 1W1 1F3 1B3 1W2 1W3",
    ),
    ("zbv", 2, 2, 3): (
        "0F0 0F1 0F2 3F0 3B0 3W0 3F1 3B1 3W1 0B0 0W0 3F2 3B2 3W2 0B1 0W1 0B2 0W2",
        "1F0 2F0 1F1 2F1 2B0 2W0 1F2 1B0 1W0 2F2 2B1 2W1 1B1 2B2 1B2 1W1 2W2 1W2",
    ),
}
ALL = [("gpipe", 1), ("1f1b", 1), *(("interleaved", v) for v in (1, 2, 3)), ("zero_bubble", 1), ("zbv", 2)]


def _text(kind: str, pp: int, virtual: int, micro_batches: int) -> tuple[str, ...]:
    return tuple(" ".join(map(str, row)) for row in schedule(kind, pp, virtual, micro_batches))


@pytest.mark.parametrize("case", TABLES, ids=str)
def test_tables(case: tuple[str, int, int, int]) -> None:
    assert _text(*case) == TABLES[case]


def makespan(kind: str, pp: int, virtual: int, m: int, seconds: tuple[float, float, float], send: float = 0.0) -> float:
    """The makespan where all stages of a rank together take ``seconds`` for F, B and W."""
    forward, backward, weight = ([s / virtual] * (pp * virtual) for s in seconds)
    if not SCHEDULES[kind].defers_weights:
        backward, weight = [b + w for b, w in zip(backward, weight, strict=True)], []
    return simulate(schedule(kind, pp, virtual, m), pp, forward, backward, send, weight).makespan


def in_order(table: Table, stages: int) -> list[Action]:
    """All actions in an order that every rank and every dependency keeps; as many as can run."""
    done: dict[Action, None] = {}
    at = [0] * len(table)
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(table):
            while at[rank] < len(row) and all(a in done for a in needed(row[at[rank]], stages)):
                done[row[at[rank]]] = None
                at[rank] += 1
                moved = True
    return list(done)


def needed(action: Action, stages: int) -> list[Action]:
    s, m = action.stage, action.micro_batch
    if action.kind == "F":
        return [Action(s - 1, "F", m)] if s else []
    if action.kind == "W":
        return [Action(s, "B", m)]
    return [Action(s, "F", m), *([Action(s + 1, "B", m)] if s + 1 < stages else [])]


@pytest.mark.parametrize(("kind", "virtual"), ALL)
def test_every_schedule_runs_each_action_once_without_deadlock(kind: str, virtual: int) -> None:
    for pp, m in product((1, 2, 3, 4, 7), (1, 2, 3, 4, 5, 8, 12, 13, 28, 29)):
        if virtual > 1 and kind == "interleaved" and m % pp:
            continue
        table, stages = schedule(kind, pp, virtual, m), pp * virtual
        kinds = "FBW" if SCHEDULES[kind].defers_weights else "FB"
        actions = [Action(s, k, i) for s in range(stages) for k in kinds for i in range(m)]
        assert sorted(in_order(table, stages)) == sorted(actions)
        assert sorted(a for row in table for a in row) == sorted(actions)
        assert all(rank_of(a.stage, pp, kind) == rank for rank, row in enumerate(table) for a in row)
        ones = [1.0] * stages
        line = simulate(table, pp, ones, ones, 0.0, ones if SCHEDULES[kind].defers_weights else ())
        assert in_flight(table, stages) == most_in_flight(kind, pp, virtual, m)
        assert line.busy == (float(len(kinds)) * virtual * m,) * pp


def test_every_kind_is_tried() -> None:
    assert {kind for kind, _ in ALL} == set(SCHEDULES)
    assert all(SCHEDULES[kind].takes(virtual) for kind, virtual in ALL if (kind, virtual) != ("interleaved", 1))


def test_a_row_says_what_its_table_does() -> None:
    """Which kinds of actions, whether all micro-batches are in flight, their forwards first, whether in rounds."""
    for row in SCHEDULES.values():
        table = schedule(row.name, 4, row.fewest_stages, 40)
        assert {a.kind for actions in table for a in actions} == ({*"FBW"} if row.defers_weights else {*"FB"})
        assert releasing_kind(table[0]) == ("W" if row.defers_weights else "B")
        assert (max(in_flight(table, 4 * row.fewest_stages)) == 40) == (row.filling_micro_batches is None)
        first_backward = next(n for n, a in enumerate(table[0]) if a.kind != "F")
        assert all(a.kind != "F" for a in table[0][first_backward:]) == row.forwards_first
        if row.in_rounds:
            with pytest.raises(InputError):
                schedule(row.name, 4, row.fewest_stages, 41)
        else:
            schedule(row.name, 4, row.fewest_stages, 41)


def test_plainest() -> None:
    assert [plainest(n) for n in (1, 2, 8)] == ["1f1b", "interleaved", "interleaved"]


def test_who_waits_for_whom() -> None:
    assert [reader(Action(s, "F", 7), 3) for s in range(3)] == [Action(1, "F", 7), Action(2, "F", 7), None]
    assert [maker(Action(s, "F", 7), 3) for s in range(3)] == [None, Action(0, "F", 7), Action(1, "F", 7)]
    assert [reader(Action(s, "B", 7), 3) for s in range(3)] == [None, Action(0, "B", 7), Action(1, "B", 7)]
    assert [f(Action(1, "W", 7), 3) for f in (reader, maker)] == [None, None]


def test_a_v_lies_down_the_ranks_and_up_again() -> None:
    assert [rank_of(s, 3, "zbv") for s in range(6)] == [0, 1, 2, 2, 1, 0]
    assert [rank_of(s, 3, "interleaved") for s in range(9)] == [0, 1, 2] * 3


@pytest.mark.parametrize(("pp", "m"), [(2, 4), (3, 6), (4, 7), (4, 16), (6, 12)])
def test_torch_runs_the_same(pp: int, m: int) -> None:
    """Every rank of torch.distributed.pipelining's tables runs what ours does, in an order no shorter than ours."""
    for kind, virtual, cls in (("zero_bubble", 1, ScheduleInterleavedZeroBubble), ("zbv", 2, ScheduleZBVZeroBubble)):
        theirs = torch_table(cls, kind, pp, virtual, m)
        ours = schedule(kind, pp, virtual, m)
        assert [sorted(row) for row in theirs] == [sorted(row) for row in ours]
        ones = [1.0] * (pp * virtual)
        spans = [simulate(table, pp, ones, ones, 0.0, ones) for table in (ours, theirs)]
        assert spans[0].makespan <= spans[1].makespan
        if kind == "zbv":
            assert spans[0] == spans[1]


def torch_table(cls: type, kind: str, pp: int, virtual: int, m: int) -> Table:
    """What torch's schedule does on each rank; stages are stood in for, for the tables need no model."""
    kinds, stages, rows = {"FORWARD": "F", "BACKWARD_INPUT": "B", "BACKWARD_WEIGHT": "W"}, pp * virtual, []
    for rank in range(pp):
        given = [
            SimpleNamespace(
                group_size=pp, group_rank=rank, stage_index=s, num_stages=stages, has_backward=True, is_first=s == 0,
                is_last=s == stages - 1, submod=None, group=None,
            ) for s in range(stages) if rank_of(s, pp, kind) == rank
        ]  # fmt: skip
        found = cls(given, m, loss_fn=lambda *a: None).pipeline_order[rank]
        row = [Action(a.stage_index, kinds[a.computation_type.name], a.microbatch_index) for a in found if a]
        rows.append(tuple(row))
    return tuple(rows)


def test_bubble_is_the_known_one() -> None:
    """Narayanan et al., 2021: the bubble lasts (pp - 1) / virtual micro-batches; backward takes twice the forward."""
    for kind, virtual in (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 4)):
        assert makespan(kind, 4, virtual, 8, (1, 1, 1)) == pytest.approx(8 * 3 + 3 * 3 / virtual)


@pytest.mark.parametrize("seconds", [(1, 1, 1), (1, 1.2, 0.8), (1, 1, 0.5), (1, 2, 1), (2, 1, 1)])
def test_putting_weights_off_shortens_the_bubble(seconds: tuple[float, float, float]) -> None:
    """Qi et al., 2023: ZB-H1's lasts (pp - 1)(F + B - W), that of 1f1b (pp - 1)(F + B + W)."""
    f, b, w = seconds
    for pp, m in product((2, 4, 8), (8, 9, 24)):
        busy = m * sum(seconds)
        assert makespan("1f1b", pp, 1, m, seconds) == pytest.approx(busy + (pp - 1) * (f + b + w))
        assert makespan("zero_bubble", pp, 1, m, seconds) == pytest.approx(busy + (pp - 1) * (f + b - w))


def test_no_rank_of_a_v_waits_where_all_take_the_same() -> None:
    """Qi et al., 2024: all that is lost is that rank r starts r forwards of half a rank's blocks late."""
    for pp in (2, 3, 4, 8):
        for m in (2 * pp, 2 * pp + 1, 5 * pp):
            assert makespan("zbv", pp, 2, m, (1, 1, 1)) == pytest.approx(3 * m + (pp - 1) / 2)
            assert makespan("zbv", pp, 2, m, (1, 1, 1), 0.01) < makespan("zero_bubble", pp, 1, m, (1, 1, 1), 0.01)


@pytest.mark.parametrize(("kind", "virtual"), [("zero_bubble", 1), ("zbv", 2)])
def test_as_much_is_held_as_by_1f1b(kind: str, virtual: int) -> None:
    for pp, m in product((2, 4, 7), (14, 30)):
        for row in schedule(kind, pp, virtual, m):
            held = itertools.accumulate({"F": 1, "B": 0, "W": -1}[action.kind] for action in row)
            assert max(held) == virtual * max(in_flight(schedule("1f1b", pp, 1, m), pp))


def test_sends_delay_across_ranks_only() -> None:
    assert makespan("1f1b", 2, 1, 1, (1, 1, 0), 0.25) == 4.5
    assert makespan("interleaved", 1, 2, 1, (2, 2, 0), 0.25) == 4.0
    assert makespan("zbv", 2, 2, 1, (2, 2, 0), 0.25) == 9.0


def test_in_flight() -> None:
    assert in_flight(schedule("gpipe", 2, 1, 5), 2) == (5, 5)
    assert in_flight(schedule("1f1b", 4, 1, 8), 4) == (4, 3, 2, 1)
    assert in_flight(schedule("interleaved", 2, 2, 4), 4) == (4, 3, 2, 1)
    assert in_flight(schedule("zero_bubble", 4, 1, 8), 4) == (4, 4, 4, 4)
    assert in_flight(schedule("zbv", 2, 2, 8), 4) == (4, 3, 2, 1)


def test_deadlock_is_found() -> None:
    crossed = ((Action(0, "F", 0), Action(0, "B", 0)), (Action(1, "B", 0), Action(1, "F", 0)))
    with pytest.raises(ValueError, match="rank 1 waits at 1B0|rank 0 waits at 0B0"):
        simulate(crossed, 2, [1.0] * 2, [1.0] * 2, 0.0)
    early = (tuple(Action(0, kind, 0) for kind in "FWB"),)
    with pytest.raises(ValueError, match="rank 0 waits at 0W0"):
        simulate(early, 1, [1.0], [1.0], 0.0, [1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zigzag", 2, 1, 4), "gpipe, 1f1b, interleaved"),
        (("1f1b", 2, 2, 4), "choose interleaved"),
        (("interleaved", 4, 2, 6), "take 8"),
        (("interleaved", 4, 2, 2), "take 4"),
        (("gpipe", 0, 1, 1), "at least 1"),
        (("zero_bubble", 2, 2, 4), "choose interleaved"),
        (("zbv", 2, 1, 4), "takes virtual 2, not 1: choose zero_bubble"),
    ],
)
def test_refusals(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule(*arguments)


@pytest.mark.parametrize("pp", [2, 4])
def test_one_micro_batch_alone_passes_every_stage_in_turn(pp: int) -> None:
    ones = [1.0] * (2 * pp)
    assert simulate(schedule("interleaved", pp, 2, 1), pp, ones, ones, 0.0).makespan == 4.0 * pp
