"""Parallelism is written once, in the plan's file among its holder's fields; what can be executed is one table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_plans import graph_of

from partitioner import Cluster, search
from partitioner.errors import InputError
from partitioner.plan.executed import EXECUTED, not_executed, space_of
from partitioner.plan.parallelism import Parallelism, mesh_of
from partitioner.plan.plan import Plan
from partitioner.software import Software

SIX = Parallelism(
    mesh=mesh_of(pp=2, dp=3, cp=4, tp=5), order=("dp", "pp", "cp", "tp"), micro_batch=7, micro_batches=8,
    schedule="interleaved", virtual=2, recompute="full",
)  # fmt: skip


def test_numbers_follow_from_the_mesh() -> None:
    assert (SIX.world, SIX.replicas, SIX.stage_count) == (120, 12, 4)
    assert [SIX.stride(axis) for axis in ("dp", "pp", "cp", "tp", "ep")] == [40, 20, 5, 1, 1]
    assert SIX.rank_stages == ((0, 2), (1, 3))
    assert [SIX.pipeline_rank(n) for n in range(4)] == [0, 1, 0, 1]
    assert sum(map(len, SIX.actions)) == 2 * 4 * 8
    assert mesh_of(tp=2) == {"pp": 1, "dp": 1, "tp": 2}


def test_what_is_not_executed_is_named_in_order() -> None:
    assert list(not_executed(SIX)) == ["cp 4"]
    plain = replace(SIX, mesh=mesh_of(pp=2), order=("pp", "dp", "tp"))
    assert not list(not_executed(plain))
    strange = replace(SIX, zero=3, schedule="zbv")
    assert list(not_executed(strange)) == ["cp 4", "schedule zbv"]


def test_a_decision_without_a_row_is_executed_with_every_value() -> None:
    assert space_of(Software()).admits("tp", 64)
    spaces = [space_of(Software(), plan_only) for plan_only in (False, True)]
    assert [space.admits("zero", 3) for space in spaces] == [True, True]
    assert [space.admits("cp", 2) for space in spaces] == [False, True]
    assert EXECUTED["schedule"].searched(plan_only=False) == ("gpipe", "1f1b", "interleaved")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return search(graph_of("gpt"), Cluster.load("dgx-a100", devices=4), 16, {"tp": 2})


def test_a_file_has_one_flat_object_and_is_read_back_the_same(plan: Plan, tmp_path: Path) -> None:
    document = json.loads(plan.to_json())
    assert list(document["decisions"]) == [
        "mesh", "order", "refined", "micro_batch", "micro_batches", "schedule", "virtual", "stages", "recompute",
        "recomputed", "parameters", "boundaries", "zero", "zero_group", "precision", "plan_only", "seed",
    ]  # fmt: skip
    assert list(document["derived"]["candidates"][0])[:7] == [
        "mesh", "micro_batch", "schedule", "virtual", "recompute", "zero", "zero_group",
    ]  # fmt: skip
    plan.save(tmp_path / "plan.json")
    found = Plan.load(tmp_path / "plan.json")
    assert found == plan
    assert found.candidates[0].parallelism == found.parallelism
    assert len({c.parallelism.micro_batches for c in found.candidates}) > 1


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("mesh", {"pp": 1, "dp": 0, "tp": 4}, r"derived.candidates\[0\].mesh must give a positive size to each of pp"),
        ("mesh", {"pp": 1, "tp": 4}, r"derived.candidates\[0\].mesh must give"),
        ("order", ["tp", "tp", "pp"], r"derived.candidates\[0\].order must hold each of dp, pp, tp once"),
        ("micro_batch", 0, r"derived.candidates\[0\].micro_batch must be positive"),
        ("micro_batch", "one", r"derived.candidates\[0\].micro_batch has a wrong value"),
        ("micro_batches", 4, r"derived.candidates\[0\] has an unknown field"),
    ],
)
def test_a_broken_candidate_is_told(plan: Plan, tmp_path: Path, key: str, value: object, told: str) -> None:
    document = json.loads(plan.to_json())
    document["derived"]["candidates"][0][key] = value
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=told):
        Plan.load(tmp_path / "plan.json")
