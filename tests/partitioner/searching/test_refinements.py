"""tp refined where heads that others share are fewer than its ranks: found in the graph, named by nobody."""

from __future__ import annotations

import functools

import pytest

from partitioner import Cluster, Graph, Plan, search, trace
from partitioner.errors import InputError
from partitioner.graph.tied_blocks import fold
from partitioner.plan.parallelism import refined_error
from partitioner.searching.pins import Pins
from partitioner.searching.refinements import refinements, repeated
from partitioner.sharding.layout import Shard, parse_layout
from tools.models.load import load

NOTHING = Pins({}, {})
DEGREES = (("cp", 1), ("tp", 4))


@functools.cache
def llama(heads: int, kv: int) -> Graph:
    settings = {
        "hidden_size": 512, "num_attention_heads": heads, "num_key_value_heads": kv, "num_hidden_layers": 2,
        "intermediate_size": 1024, "vocab_size": 512,
    }  # fmt: skip
    source = load("hf:llama", settings, seq=128, batch=2, meta=True)
    return trace(source.module, source.batch)


def test_what_is_shared_is_found() -> None:
    assert repeated(fold(llama(8, 2))) == {(2, 4)}
    assert repeated(fold(llama(8, 8))) == set()


def test_an_axis_is_refined_where_that_divides_more() -> None:
    two = ((("tp_kv", 2), ("tp_repeat", 2)),)
    assert refinements(fold(llama(8, 2)), DEGREES, NOTHING) == [(), *two]
    assert refinements(fold(llama(8, 2)), (("cp", 1), ("tp", 2)), NOTHING) == [()]  # its heads are enough
    assert refinements(fold(llama(8, 8)), DEGREES, NOTHING) == [()]
    assert refinements(fold(llama(8, 8)), DEGREES, Pins({"tp_kv": 2}, {})) == [*two]
    assert refinements(fold(llama(8, 2)), DEGREES, Pins({"tp_repeat": 4}, {})) == []


def planned(**pins: int) -> Plan:
    return search(llama(8, 2), Cluster.load("dgx-a100", devices=4), 16, {"tp": 4, "micro_batch": 16, **pins})


def test_each_rank_has_its_own_part_of_keys_and_queries() -> None:
    """Of two heads of keys each rank of four makes one, whole along the inner part."""
    plan = planned(tp_kv=2)
    assert plan.parallelism.axes == (("tp_kv", 2), ("tp_repeat", 2))
    attention = next(op for row in plan.blocks for op in row.ops if "attention" in op.op)
    query, key = (parse_layout(words) for words in attention.operands[:2])
    assert all(isinstance(placement, Shard) for placement in (*query, *key))
    heads = [word for op in attention.inputs[1:2] for word in _entering(plan, op)]
    assert isinstance(heads[0], Shard), "divided by the outer part before they are repeated"


def _entering(plan: Plan, name: str) -> tuple[object, ...]:
    """How the value lies that an op repeats on the way to ``name``."""
    ops = {op.name: op for row in plan.blocks if row.is_block for op in row.ops}
    while not ops[name].op.startswith("aten.expand"):
        (name, *_) = ops[name].inputs
    return parse_layout(ops[name].operands[0])


def test_search_takes_the_better_of_both() -> None:
    """Those pinned to a part are among the candidates of a search that is not."""
    free, refined = planned(), planned(tp_kv=2)
    assert free.cost.step_seconds <= refined.cost.step_seconds
    assert any(row.parallelism.refined for row in free.candidates)


def test_parts_that_do_not_go_together_are_told() -> None:
    with pytest.raises(InputError, match="tp_kv=3"):
        planned(tp_kv=3)
    assert refined_error({"tp": 4}, {"tp_kv": 2, "tp_repeat": 2}) == ""
    for wrong in ({"tp_kv": 2}, {"tp_kv": 4, "tp_repeat": 4}, {"dp_shard": 2, "dp_replica": 2}, {"ep": 2}):
        assert refined_error({"tp": 4}, wrong).startswith("refined must give sizes")
