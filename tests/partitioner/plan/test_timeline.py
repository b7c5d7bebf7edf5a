"""What a plan's file tells of its step: times and bytes as the search priced them, traffic as the Program sends it."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import pytest
from small_plans import graph_of

from examples.gpt import model
from partitioner import Cluster, Graph, Plan, lower, search, trace
from partitioner.hardware.link import Link
from partitioner.lowering.traffic import traffic
from partitioner.plan.sent_by_plan import leaving, moves, volume
from partitioner.plan.timeline import holdings, timeline
from partitioner.schedule.tables import PLAIN, SCHEDULES, Schedule

A100 = Cluster.load("dgx-a100", devices=8)
CLUSTER = replace(A100, node=Link(1e14, 1.0, 1e-9))  # so small models are worth dividing
WAYS: list[dict[str, str | int]] = [
    {"pp": 2, "dp": 2, "tp": 2, "micro_batch": 1, "schedule": "1f1b"},
    {"pp": 4, "dp": 1, "tp": 2, "micro_batch": 2, "schedule": "gpipe"},
    {"pp": 2, "dp": 1, "tp": 4, "micro_batch": 1, "schedule": "interleaved", "recompute": "full"},
    {"pp": 2, "dp": 4, "tp": 1, "micro_batch": 1, "schedule": "zero_bubble"},
    {"pp": 2, "dp": 4, "tp": 1, "micro_batch": 1, "schedule": "zbv"},
]


def test_every_schedule_is_tried() -> None:
    assert {row["schedule"] for row in WAYS} == set(SCHEDULES)


@functools.cache
def deep() -> Graph:
    """Of four blocks."""
    return trace(*model(vocab=256, hidden=32, heads=4, seq=32, layers=4))


def planned(name: str, pins: dict[str, str | int]) -> Plan:
    graph = deep() if name == "deep" else graph_of(name)
    return search(graph, CLUSTER, 16, {"zero": 0} | pins, plan_only=not _row(pins).executed)


def _row(pins: dict[str, str | int]) -> Schedule:
    return SCHEDULES[str(pins.get("schedule", PLAIN))]


@pytest.mark.parametrize("pins", WAYS, ids=lambda pins: pins["schedule"])
def test_spans_end_where_the_price_does_and_never_overlap(pins: dict[str, str | int]) -> None:
    plan = planned("deep", pins)
    rows, cost = timeline(plan), plan.cost
    assert len(rows) == pins["pp"]
    busy = []
    for row in rows:
        assert all(a.end <= b.start + 1e-12 for a, b in zip(row, row[1:], strict=False))
        busy.append(sum(span.end - span.start for span in row))
    makespan = max(row[-1].end for row in rows)
    assert makespan + cost.sync_seconds + cost.optimizer_seconds == pytest.approx(cost.step_seconds)
    assert makespan - max(busy) == pytest.approx(cost.bubble_seconds)
    assert {span.action.kind for row in rows for span in row} == set("FBW" if _row(pins).defers_weights else "FB")


@pytest.mark.parametrize("pins", [*WAYS, {"dp": 8, "micro_batch": 1, "zero": 3}], ids=str)
def test_holdings_peak_where_the_memory_model_does(pins: dict[str, str | int]) -> None:
    plan = planned("deep", pins)
    rows = timeline(plan)
    peaks = [max(h.total for h in holdings(plan, row, p)) for p, row in enumerate(rows)]
    assert max(peaks) == pytest.approx(plan.cost.peak_bytes)
    for p, own in enumerate(plan.parallelism.rank_stages):
        parts = [plan.cost.stages[n] for n in own]
        assert sum(part.peak_bytes for part in parts) == pytest.approx(peaks[p])
        fullest = max(holdings(plan, rows[p], p), key=lambda h: h.total)
        assert fullest.weights == pytest.approx(sum(part.weight_bytes for part in parts))
        assert fullest.activations == pytest.approx(sum(part.activation_bytes for part in parts))
        assert fullest.activations > 0


def test_exposed_seconds_are_the_communication_and_the_sync() -> None:
    slow = replace(CLUSTER, software=replace(CLUSTER.software, overlap_sends=False))
    ways = [*WAYS[:4], {"dp": 8, "micro_batch": 1, "zero": 3}, {"cp": 2, "tp": 2, "dp": 2, "micro_batch": 1}]
    seen = set[str]()
    for pins in ways:
        plan = search(deep(), slow, 16, pins, plan_only=True)
        cost = plan.cost
        assert sum(cost.exposed_seconds.values()) == pytest.approx(cost.communication_seconds + cost.sync_seconds)
        seen |= {axis for axis, seconds in cost.exposed_seconds.items() if seconds}
        axes = {axis for axis, size in plan.parallelism.mesh.items() if size > 1}
        assert {axis for axis, seconds in cost.exposed_seconds.items() if seconds} <= axes
    assert seen == {"tp", "pp", "dp", "cp"}


@pytest.mark.parametrize("boundary", ["whole", "sharded"])
@pytest.mark.parametrize("name", ["deep", "llama", "neox", "bert", "t5"])
@pytest.mark.parametrize("pins", [WAYS[0], {"tp": 8, "micro_batch": 4, "recompute": "full"}], ids=["pp", "tp"])
def test_volume_is_what_the_program_sends(name: str, pins: dict[str, str | int], boundary: str) -> None:
    graph, plan = deep() if name == "deep" else graph_of(name), planned(name, pins | {"boundary": boundary})
    program = lower(graph, plan)
    mesh = plan.parallelism.mesh
    for p in range(mesh["pp"]):
        wanted, found = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
        for row in traffic(program, p * mesh["dp"] * mesh["tp"]):
            if row.phase != "control" and (row.axis, row.phase) != ("pp", "sync"):
                wanted[row.axis, row.kind, row.phase] += row.bytes
        for row in volume(plan, p):
            found[row.axis, row.kind, row.phase] += round(row.bytes)
        assert found == wanted
        assert len(found) > 2


def test_a_plan_without_recompute_sends_nothing_again() -> None:
    plan = planned("deep", WAYS[2])
    phases = {row.phase for row in volume(plan, 0)}
    none = replace(plan, decisions=replace(plan.decisions, recomputed=(0,) * len(plan.decisions.stages)))
    assert "recompute" in phases
    assert {row.phase for row in volume(none, 0)} == phases - {"recompute"}


def test_a_unit_pays_for_what_it_hands_on_and_no_more() -> None:
    """The last block hands on another layout than the others."""
    device, software = replace(A100.device, spread=0.0), replace(A100.software, dispatch_seconds=0.0)
    cluster = replace(A100, device=device, software=software)
    plan = search(graph_of("gpt"), cluster, 16, WAYS[0] | {"boundary": "sharded"})
    rows = {name: row for row in plan.blocks for name in row.units}
    assert len({tuple(move.target for move in leaving(plan, name)) for name in rows if rows[name].is_block}) > 1
    for stage, units in zip(plan.cost.stages, plan.decisions.stages, strict=True):
        ops = [op for name in units for op in rows[name].ops]
        sent = [move for name in units for move in moves(plan, name)]
        forward = sum(op.forward_seconds for op in ops) + sum(move.forward_seconds for move in sent)
        backward = sum(op.backward_seconds for op in ops) + sum(move.backward_seconds for move in sent)
        assert stage.forward_seconds == pytest.approx(forward)
        assert stage.backward_seconds == pytest.approx(backward)
