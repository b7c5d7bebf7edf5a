"""Layouts out of a plan file: the chosen strategies again, after checking that they are of this graph."""

from __future__ import annotations

from typing import Any

from torch import fx

from partitioner.errors import InputError
from partitioner.graph.nodes import operands
from partitioner.graph.tied_blocks import Folded, Port
from partitioner.layouts.solution import Solution
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
        what = _difference(plan, folded) or "its parameters have other names or shapes"
        raise InputError(f"the plan is for another model: {what}")
    if what := _difference(plan, folded):
        raise InputError(f"the plan's derived.blocks are not those of its model: {what}; plan again")
    own, traced = plan.decisions.precision, folded.graph.precision
    if traced not in (own, own.promoted()):
        raise InputError(f"the plan's precision is {own}, the model was traced with {traced}: trace it with the plan's")
    axes = plan.parallelism.axes
    strategies: dict[fx.Node, Strategies] = {}
    ports: dict[Port, Layout] = {}
    for group, row in enumerate(plan.blocks):
        for index, words in enumerate(row.ports):
            ports[Port(group, index)] = _layout(words, axes, f"ports of {row.units[0]}")
        for node, op in zip(folded.body(group), row.ops, strict=True):
            where = f"{op.name} of {row.units[0]}"
            each = zip(*(_layout(words, axes, where) for words in (*op.operands, op.result)), strict=True)
            strategies[node] = Strategies(tuple(Strategy(side[:-1], side[-1]) for side in each))
    names = {n.meta["source"]: n for n in dict.fromkeys(folded.parameter.values())}
    if missing := [name for name in names if name not in plan.parameters]:
        raise InputError(f"the plan's derived.parameters have no layout of {missing[0]}: plan again")
    parameters = {n: _layout(plan.parameters[name], axes, f"parameter {name}") for name, n in names.items()}
    return Solution(axes, strategies, ports, parameters, 0.0)


def _layout(words: Any, axes: Axes, where: str) -> Layout:
    try:
        return parse_layout(words, len(axes))
    except ValueError as error:
        raise InputError(f"the plan, {where}: {error}") from error


def _difference(plan: Plan, folded: Folded) -> str:
    """Of blocks and ops; "" where there is none."""
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
        for op, node in zip(row.ops, folded.body(group), strict=True):
            if len(op.operands) != len(operands(node)):
                return f"in {row.units[0]} its {op.name} has {len(op.operands)} operands, here {len(operands(node))}"
    return ""
