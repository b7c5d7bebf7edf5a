"""An axis of a mesh is a row of the table: one that was never heard of divides ops, and what runs equals the module."""

from __future__ import annotations

from pathlib import Path

import plans
import pytest
import torch

from examples.gpt import model
from partitioner import Plan, lower, search, trace
from partitioner.comparing.resample import resample
from partitioner.lowering.parameter_bytes import held_bytes
from partitioner.plan.derived_rows import OpRow
from partitioner.sharding.layout import Shard, parse_layout
from partitioner.sharding.mesh_axes import AXES, MeshAxis
from runtime.dry_run.dry_run import run_ranks
from runtime.verify.trial import prepare, run_plan
from tools.verify.plan_families import cluster

NEW, ROW = "xp", MeshAxis(("values",), is_always=False)  # as context parallelism will be: parameters stay whole
SIZES = {"vocab": 32, "hidden": 16, "heads": 4, "seq": 8, "layers": 2}


@pytest.fixture
def axis(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(AXES, NEW, ROW)
    return NEW


def planned(ranks: int, **pins: int) -> Plan:
    return search(trace(*model(batch=3, **SIZES)), cluster(ranks), 8, {"micro_batch": 2, **pins})


def divided(op: OpRow, slot: int) -> bool:
    return any(isinstance(parse_layout(words)[slot], Shard) for words in (*op.operands, op.result))


_BESIDE_DATA = pytest.param({NEW: 2, "dp": 2, "zero": 2}, marks=pytest.mark.parity)


@pytest.mark.parametrize("pins", [{NEW: 2}, {NEW: 2, "tp": 2}, _BESIDE_DATA, {NEW: 4, "zero": 0}])
def test_a_row_in_the_table_is_all_that_it_takes(axis: str, pins: dict[str, int], tmp_path: Path) -> None:
    ranks = pins[NEW] * pins.get("tp", 1) * pins.get("dp", 1)
    plan = planned(ranks, **pins)
    assert plan.parallelism.axes == (("tp", pins.get("tp", 1)), (NEW, pins[NEW]))
    assert all(divided(op, 1) for row in plan.blocks if row.is_block for op in row.ops if op.flops)
    layouts = [parse_layout(words)[1] for words in plan.parameters.values()]
    assert {str(placement) for placement in layouts} <= {"W", "R"}
    assert sum(row.partial_bytes[NEW] for row in plan.cost.stages) > 0
    assert plan.cost.exposed_seconds[NEW] > 0
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    plans.spawn(_train, ranks, str(tmp_path / "plan.json"))


def _train(rank: int, path: str) -> None:
    AXES[NEW] = ROW
    torch.manual_seed(0)
    module, example = model(batch=3, **SIZES)
    graph = trace(module, example)
    found = run_plan(prepare(module, graph, resample(example, graph.batched, 8)), Plan.load(path))
    if rank == 0:
        assert found is not None
        assert found.apart.largest <= found.limit
        assert (found.first, found.unforeseen) == ("", "")


def test_its_traffic_is_as_predicted(axis: str) -> None:
    graph = trace(*model(batch=2, **SIZES))
    plan = search(graph, cluster(4), 8, {"micro_batch": 2, axis: 2, "tp": 2})
    rows = run_ranks(lower(graph, plan), model(batch=2, **SIZES)[1], lambda place: held_bytes(graph, plan, place))
    assert not [problem for row in rows for problem in row.problems]
    assert {op.axis for row in rows for op in row.tape.ops} >= {"tp", axis}
