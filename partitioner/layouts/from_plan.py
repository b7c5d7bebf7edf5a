"""Layouts out of a plan file: the chosen strategies again, after checking that they are of this graph."""

from __future__ import annotations

from typing import Any

from torch import fx

from partitioner.errors import InputError
from partitioner.graph.nodes import operands
from partitioner.graph.tied_blocks import Folded, Port
from partitioner.layouts.solution import Solution
from partitioner.plan.derived_rows import BlockRow
from partitioner.plan.digests import digest_of
from partitioner.plan.plan import Plan
from partitioner.sharding.equations import Strategies, Strategy
from partitioner.sharding.layout import Layout, parse_layout
from partitioner.sharding.mesh_axes import Axes


def graph_digest(folded: Folded) -> str:
    """A hash of the folded program that holds for every batch size: ops, wiring, counts, parameter shapes."""
    rows = [
        (str(n.target), len(operands(n)), len(units)) for g, units in enumerate(folded.groups) for n in folded.body(g)
    ]
    shapes = [(list(p.names), list(p.shape)) for p in folded.graph.parameters.values()]
    return digest_of([rows, shapes])


def recall(plan: Plan, folded: Folded) -> Solution:
    """The Solution that ``plan`` holds for this graph; raises InputError when it is stale or of another model."""
    if plan.stale:
        raise InputError(
            f"the plan is stale: {', '.join(plan.edited)} were edited after its layouts were found; "
            "partitioner plan --edit PLAN solves it again around the edits"
        )
    if plan.model["digest"] != graph_digest(folded):
        raise InputError(f"the plan is for another model: {_difference(plan, folded)}")
    own, traced = plan.decisions.precision, folded.graph.precision
    if traced not in (own, own.promoted()):
        raise InputError(f"the plan's precision is {own}, the model was traced with {traced}: trace it with the plan's")
    axes = plan.parallelism.axes
    strategies: dict[fx.Node, Strategies] = {}
    ports: dict[Port, Layout] = {}
    for group, row in enumerate(plan.blocks):
        for index, words in enumerate(row.ports):
            ports[Port(group, index)] = _layout(words, axes, row)
        for node, op in zip(folded.body(group), row.ops, strict=True):
            sides = [_layout(words, axes, row) for words in (*op.operands, op.result)]
            each = zip(*sides, strict=True)
            strategies[node] = Strategies(tuple(Strategy(side[:-1], side[-1]) for side in each))
    names = {n.meta["source"]: n for n in dict.fromkeys(folded.parameter.values())}
    by_pattern = plan.parameters
    parameters = {n: _layout(by_pattern[name], axes, None) for name, n in names.items()}
    return Solution(axes, strategies, ports, parameters, 0.0)


def _layout(words: Any, axes: Axes, row: BlockRow | None) -> Layout:
    try:
        return parse_layout(words, len(axes))
    except ValueError as error:
        where = f" in block {row.units[0]}" if row else ""
        raise InputError(f"the plan{where}: {error}") from error


def _difference(plan: Plan, folded: Folded) -> str:
    if len(plan.blocks) != len(folded.groups):
        return f"it has {len(plan.blocks)} kinds of blocks, this model {len(folded.groups)}"
    for row, (group, units) in zip(plan.blocks, enumerate(folded.groups), strict=True):
        if len(row.units) != len(units):
            return f"it has {len(row.units)} blocks like {row.units[0]}, this model {len(units)}"
        for op, node in zip(row.ops, folded.body(group), strict=False):
            if op.op != str(node.target):
                return f"in {row.units[0]} its {op.name} is {op.op}, here {node.target}"
        if len(row.ops) != len(folded.body(group)):
            return f"{row.units[0]} has {len(row.ops)} ops, here {len(folded.body(group))}"
    return "its parameters have other names or shapes"
