"""An op that writes to memory is given it as it lies: a part cut out is a copy, and what is written there is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from answers import derived
from torch import fx

from partitioner.cost.op_work import Setting
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import operands
from partitioner.graph.step_inputs import is_kept
from partitioner.graph.tied_blocks import Folded, Value, fold
from partitioner.layouts.check import check_layouts
from partitioner.layouts.solution import Solution
from partitioner.sharding.equations import Strategies
from partitioner.sharding.layout import REPLICATE, Placement, shard_whole
from partitioner.sharding.op_rules import is_written
from partitioner.solve.axis_by_axis import solve_axes
from tools.models.load import load
from tools.verify.plan_families import cluster

TP = 2


@pytest.fixture(scope="module", params=["what a source leaves", "what is cached"])
def graph(request: pytest.FixtureRequest) -> Graph:
    """Of one text, so that samples can't be divided; its source has positions that can."""
    source = load("examples/translation/model.py:model", {"vocab": 90, "hidden": 32, "heads": 4})
    derivation = derived(source.module, source.batch, 10, rows=1, source=24)
    return derivation.source() if request.param == "what a source leaves" else derivation.answering(4, 4)


def solved(folded: Folded, kept_alike: bool) -> Solution:
    def allowed(value: Value, placement: Placement) -> bool:
        kept = isinstance(value, fx.Node) and is_kept(value.meta["source"])
        return not (kept and kept_alike) or placement == REPLICATE

    mesh = {"pp": 1, "dp": 1, "tp": TP}
    return solve_axes(Setting.of(folded, cluster(TP), mesh), cluster(TP), [1], lambda axis: allowed)[1]


@pytest.mark.parametrize("kept_alike", [False, True])
def test_memory_is_written_where_it_lies(graph: Graph, kept_alike: bool) -> None:
    folded = fold(graph)
    solution, seen = solved(folded, kept_alike), 0
    for group in range(len(folded.groups)):
        for node in (n for n in folded.body(group) if is_written(str(n.target))):
            lies = solution.arrives(folded, group, operands(node)[0])
            assert solution.strategies[node].operands[0] == lies
            assert not kept_alike or lies == (REPLICATE,)
            seen += 1
    assert seen >= 2
    check_layouts(folded, solution)


def test_a_plan_that_cuts_a_part_out_of_memory_is_refused(graph: Graph) -> None:
    folded = fold(graph)
    solution = solved(folded, kept_alike=True)
    node = next(n for g in range(len(folded.groups)) for n in folded.body(g) if is_written(str(n.target)))
    cut = shard_whole(1, operands(node)[0].meta["val"].shape[1], TP)
    own = solution.strategies[node].each[0]
    strategies = Strategies((replace(own, operands=(cut, *own.operands[1:])),))
    wrong = replace(solution, strategies=solution.strategies | {node: strategies})
    with pytest.raises(InputError, match=f"write to .* of {operands(node)[0].name}, which lies as .*: plan again"):
        check_layouts(folded, wrong)
