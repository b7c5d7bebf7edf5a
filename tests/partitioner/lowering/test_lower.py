"""Programs: what is read, made, sent and held fits; printed, they are Python; another model's plan is refused."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from pathlib import Path

import models
import pytest
from small_plans import graph_of, plan_of, program_of

from partitioner import Cluster, Plan, lower, search
from partitioner.errors import DoesNotFit, InputError
from partitioner.sharding.layout import local_shape

NAMES = ("gpt", "llama", "t5", "mixtral", "gemma2")


@pytest.mark.parametrize("name", NAMES)
def test_every_value_that_is_read_was_made_or_received(name: str) -> None:
    program = program_of(name, tp=2, pp=2)
    given = {*program.step_inputs, *(f"buffer:{b}" for b in program.buffers)}
    sent: set[str] = set()
    for stage in program.stages:
        known = given | set(stage.parameters) | {v.name for v in stage.receives}
        assert {v.name for v in stage.receives} == sent
        for call in [c for c in (stage.constants, stage.prelude, *stage.calls) if c]:
            placeholders = [n for n in call.module.graph.nodes if n.op == "placeholder"]
            assert len(placeholders) == len(call.arguments)
            assert set(call.arguments) <= known, call.block
            known |= set(call.results)
        sent = {v.name for v in stage.sends}
        assert sent <= known
    assert program.stages[-1].loss in known


@pytest.mark.parametrize("name", NAMES)
def test_identical_blocks_share_one_module(name: str) -> None:
    program = program_of(name, tp=2, pp=1, dp=2)
    blocks = len(graph_of(name).blocks)
    modules = {id(c.module) for s in program.stages for c in s.calls}
    assert len(modules) < sum(len(s.calls) for s in program.stages)
    assert blocks >= 2


def test_printed_it_is_python_and_names_collectives_and_layouts() -> None:
    text = str(program_of("gpt", tp=2, pp=2))
    ast.parse(text)
    assert "2F0" in text or "1F0" in text
    assert "# stage 1" in text


def test_products_are_gemm_ops_that_take_their_bias_along() -> None:
    text = str(program_of("gpt", tp=1, pp=1))
    assert "aten.linear" not in text
    assert re.search(r"cutlass_ops.linear.default\(\w+, blocks_0_up_weight, blocks_0_up_bias, False\)", text)
    assert re.search(r"cutlass_ops.linear.default\(\w+, embed_weight, None, False\)", text)


def test_what_crosses_stages_has_its_local_shape() -> None:
    programs = (program_of("gpt", tp=2, pp=2, boundary=word) for word in ("whole", "sharded"))
    whole, divided = (program.stages[1].receives[0] for program in programs)
    assert len(divided.shape) == 3
    assert 2 * math.prod(divided.shape) == math.prod(whole.shape)


def test_an_uneven_vocabulary_is_divided_without_padding() -> None:
    name = next(n for p in graph_of("gpt").parameters.values() for n in p.names if p.shape[0] == models.VOCABULARY)
    program = program_of("gpt", tp=2, pp=1, dp=2, **{name: "shard:0"})
    head = program.parameters[name]
    assert head.shape[0] == models.VOCABULARY
    assert [local_shape(head.shape, head.layout, [(rank, 2)])[0] for rank in range(2)] == [51, 50]


def test_a_plan_of_another_model_is_refused_with_what_differs() -> None:
    with pytest.raises(InputError, match="another model"):
        lower(graph_of("llama"), plan_of("gpt", tp=2, pp=2, micro_batch=2))


def test_an_edited_plan_is_stale() -> None:
    plan = plan_of("gpt", tp=2, pp=2, micro_batch=2)
    parallelism = dataclasses.replace(plan.parallelism, recompute="full")
    decisions = dataclasses.replace(plan.decisions, parallelism=parallelism, recomputed=(1, 1))
    edited = dataclasses.replace(plan, decisions=decisions)
    assert edited.stale
    with pytest.raises(InputError, match="stale"):
        lower(graph_of("gpt"), edited)


def test_a_plan_survives_the_disk(tmp_path: Path) -> None:
    plan = plan_of("gpt", tp=2, pp=2, micro_batch=2)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.to_json() == plan.to_json()
    assert str(lower(graph_of("gpt"), again)) == str(lower(graph_of("gpt"), plan))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("version",), 99, "version 99"),
        (("decisions", "mesh"), {"tp": 2}, "mesh"),
        (("decisions", "micro_batch"), "two", "decisions.micro_batch"),
        (("decisions", "micro_batch"), None, "decisions.micro_batch"),
        (("found", "cost", "step_seconds"), "fast", "found.cost.step_seconds"),
        (("found", "cost", "step_seconds"), float("nan"), "found.cost.step_seconds"),
        (("found", "cost", "stages", 0, "acting_bytes"), [1.0], "acting_bytes must be a list of 3"),
        (("decisions", "stages"), "all", "decisions.stages"),
        (("decisions", "strange"), 1, "unknown field 'strange'"),
        (("derived", "blocks", 0, "ops", 0, "op"), 7, "derived.blocks\\[0\\].ops\\[0\\].op"),
        (("asked", "model"), [], "asked.model"),
    ],
)
def test_a_broken_field_is_named(tmp_path: Path, path: tuple[str | int, ...], value: object, words: str) -> None:
    data = json.loads(plan_of("gpt", tp=2, pp=2, micro_batch=2).to_json())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=words):
        Plan.load(tmp_path / "plan.json")


def test_a_truncated_plan_is_refused(tmp_path: Path) -> None:
    text = plan_of("gpt", tp=2, pp=2, micro_batch=2).to_json()
    (tmp_path / "plan.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="not a whole JSON document"):
        Plan.load(tmp_path / "plan.json")


def test_nothing_fits_says_by_how_much() -> None:
    cluster = Cluster.load("local-cpu")
    small = dataclasses.replace(cluster, device=dataclasses.replace(cluster.device, memory_bytes=1e3))
    with pytest.raises(DoesNotFit, match="misses"):
        search(graph_of("gpt"), small, 8)


def test_memory_decides() -> None:
    """With less memory than the best plan needs, another is chosen that fits."""
    free = plan_of("gpt", micro_batch=2)
    room = (free.cost.peak_bytes + min(c.peak_bytes for c in free.candidates)) / 2
    cluster = Cluster.load("local-cpu")
    tight = dataclasses.replace(cluster, device=dataclasses.replace(cluster.device, memory_bytes=room))
    plan = search(graph_of("gpt"), tight, 8, {"micro_batch": 2})
    assert plan.cost.peak_bytes <= room < free.cost.peak_bytes
    assert plan.cost.step_seconds > free.cost.step_seconds


def test_the_parts_of_a_step_add_up() -> None:
    cost = plan_of("gpt", tp=2, pp=2, micro_batch=2, boundary="sharded").cost
    parts = (
        cost.compute_seconds,
        cost.communication_seconds,
        cost.bubble_seconds,
        cost.sync_seconds,
        cost.optimizer_seconds,
    )
    assert sum(parts) == pytest.approx(cost.step_seconds)
    assert all(p >= 0 for p in parts)
    assert min(cost.compute_seconds, cost.communication_seconds, cost.bubble_seconds) > 0
