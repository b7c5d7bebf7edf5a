"""Are tables by positions what they are for every length? Their first rows are, and none is read behind the last."""

from __future__ import annotations

import torch
from torch import fx

from partitioner.errors import InputError
from partitioner.generating.numbers import Numbers
from partitioner.generating.positions import Walked
from partitioner.generating.refusal import refused
from partitioner.graph.dependence import constants, evaluate
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import operands, shape_of
from partitioner.sharding.op_rules import rule_of

MOST_ELEMENTS = 1 << 26  # of a table that is looked at


def check_tables(walked: Walked, first: Graph, second: Graph, numbers: Numbers) -> None:
    """Raises NotDerived where a table that is cut at positions is another one at another length, as scaled rotations
    that hang on the length of the whole text are."""
    graphs = first, second
    fixed = tuple(constants(graph.module.graph) for graph in graphs)
    leaves = _leaves(walked, fixed[0])
    few = {n for n in leaves if n.meta["val"].numel() <= MOST_ELEMENTS and numbers.grown(n)}
    here = evaluate(first.module.graph, fixed[0], few, first.buffers)
    twins = {numbers.twin[n]: n for n in few}
    there = evaluate(second.module.graph, fixed[1], set(twins), second.buffers)
    for twin, value in there.items():
        node = twins[twin]
        parts = [here[node], value]
        for dim in numbers.grown(node):
            size = min(part.shape[dim] for part in parts)
            parts = [part.narrow(dim, 0, size) for part in parts]
        if not torch.equal(*parts):
            raise refused(node, "is another one for every length of the whole text")


def _leaves(walked: Walked, fixed: set[fx.Node]) -> set[fx.Node]:
    """The constants that tables by positions are, or are made of."""
    work = [
        operand for node, readings in walked.readings.items()
        for operand, reading in zip(operands(node), readings, strict=True) if reading.is_table
    ]  # fmt: skip
    found, seen = set[fx.Node](), set[fx.Node]()
    while work:
        node = work.pop()
        if node not in seen:
            seen.add(node)
            if node in fixed and node.op == "call_function":
                found.add(node)
            else:
                work += node.all_input_nodes
    return found


def check_rows(graph: Graph, length: int) -> None:
    """Raises InputError where positions are looked up behind the last row of a parameter."""
    fixed = constants(graph.module.graph)
    for node in graph.module.graph.nodes:
        rule = rule_of(str(node.target)) if node.op == "call_function" else None
        if not (rule and rule.lookup) or operands(node)[1] not in fixed:
            continue
        table, index = operands(node)[:2]
        last, rows = int(evaluate(graph.module.graph, fixed, {index}, graph.buffers)[index].max()), shape_of(table)[0]
        if last >= rows:
            name = table.meta.get("source", table.name)
            raise InputError(f"texts of {length} positions: {name} has {rows} rows, and row {last} would be read")
