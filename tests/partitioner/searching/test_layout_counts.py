"""A plan's layouts are the cheapest for the micro-batches that its own step has, and satisfy what is pinned of them."""

from __future__ import annotations

import functools

import pytest
from small_plans import graph_of

from examples.gpt import model
from partitioner import Cluster, Graph, search, trace
from partitioner.cost.op_work import Setting
from partitioner.errors import InputError
from partitioner.graph.resize_batch import resize
from partitioner.graph.tied_blocks import Value, fold
from partitioner.layouts.strategies import space
from partitioner.searching.reprice import Repricer
from partitioner.sharding.layout import Layout, Placement
from partitioner.solve.choices import Choices, Prices
from partitioner.solve.solve import increases, solve, solve_each

CLUSTER = Cluster.load("dgx-a100", devices=4)


@functools.cache
def gpt() -> Graph:
    return trace(*model(layers=2), compare=False)


@pytest.mark.parametrize("cluster", ["dgx-a100", "local-cpu"])
def test_nothing_else_is_cheaper_at_the_plans_own_prices(cluster: str) -> None:
    known = Cluster.load(cluster, devices=4)
    plan = search(gpt(), known, 64, {"tp": 2, "pp": 2})
    assert plan.parallelism.micro_batches > 1
    priced = Repricer(gpt(), plan).tried(known).priced
    prices = Prices(known, priced.setting, plan.parallelism.micro_batches)
    choices = Choices(priced.folded, space(priced.folded, "tp", 2), prices, lambda value, placement: True)
    for value, more in increases(choices).items():
        made = [c.strategy or c.placement for c in choices.of[value]]
        solution = priced.solution
        runs = solution.strategies.get(value)  # type: ignore[call-overload]
        (chosen,) = runs.each if runs else solution.made(value)
        assert more[made.index(chosen)] == pytest.approx(0.0, abs=1e-14), value
    alike = [op for b in plan.blocks for op in b.ops for o in op.others if o.seconds == 0.0]
    assert all(op.forward_seconds == op.backward_seconds == 0.0 for op in alike), "views alone"


def test_layouts_for_many_counts_are_those_of_each() -> None:
    folded = fold(resize(gpt(), 16))
    options, counts = space(folded, "tp", 2), (1, 2, 3, 4, 8, 16, 64, 512)
    prices_of = functools.partial(Prices, CLUSTER, Setting.of(folded, CLUSTER, {"tp": 2}))
    found = solve_each(folded, options, prices_of(1), counts)
    assert 1 < len({id(solution) for solution in found.values()}) < len(counts)
    for n, solution in found.items():
        allowed = functools.partial(lies, {**solution.ports, **solution.parameters})
        forced, free = (solve(folded, options, prices_of(n), rule).seconds for rule in (allowed, lambda v, p: True))
        assert forced == pytest.approx(free, rel=1e-12)


def lies(known: dict[Value, Layout], value: Value, placement: Placement) -> bool:
    return known[value] == (placement,)


def test_sharded_boundaries_are_asked_for_where_there_is_tp_alone() -> None:
    plan = search(graph_of("gpt"), CLUSTER, 8, {"boundary": "sharded"})
    ports = [p for row in plan.blocks if row.is_block for p in row.ports]
    assert plan.parallelism.mesh == {"pp": 1, "dp": 2, "tp": 2}
    assert ports == [[[2, [[1, 2, 24]]]]]  # of a block's one input, features in halves of 24


@pytest.mark.parametrize("tp", [1, 5])
def test_a_boundary_that_can_not_be_divided_is_named(tp: int) -> None:
    cluster = Cluster.load("dgx-a100", devices=tp)
    with pytest.raises(InputError, match=f"pin boundary=sharded: tp {tp} can't divide add.* evenly where it enters "):
        search(graph_of("gpt"), cluster, 8, {"boundary": "sharded", "tp": tp})


def test_a_tp_that_the_pins_exclude_is_passed_over() -> None:
    """On one rank nothing is divided, so that tp 1 is none of theirs."""
    pins: dict[str, str | int] = {"blocks.0.up.weight": "shard:0"}
    plan = search(graph_of("gpt"), CLUSTER, 8, pins)
    assert plan.parallelism.mesh["tp"] > 1
    with pytest.raises(InputError, match="blocks.0.up.weight"):
        search(graph_of("gpt"), CLUSTER, 8, pins | {"tp": 1})
