"""Which nodes of an emitted block backward runs again, and which of their results are kept."""

from __future__ import annotations

import operator

from torch import fx

from partitioner.layouts.run_again import RunAgain
from partitioner.lowering.program import Recompute
from partitioner.ops.collectives import OPS

_CONVERSIONS = {op.target: op for op in OPS.values()}


def marked(module: fx.GraphModule, row: RunAgain) -> Recompute:
    """Of the module emitted for a unit of which ``row`` says what runs again."""
    kinds = {(node.name, placement): kind for (node, placement), kind in row.kept.items()}
    passed = {(node.name, placement) for node, placement in row.passed}
    again = {node.name for node in row.region}
    kept, let_go, region = dict[str, str](), set[str](), set[fx.Node]()
    for node in (n for n in module.graph.nodes if n.op == "call_function" and "stands_for" in n.meta):
        key, conversion = (node.meta["stands_for"], node.meta["placement"]), _CONVERSIONS.get(str(node.target))
        if conversion is not None:
            kept |= {node.name: kinds[key]} if key in kinds and conversion.forward else {}
        elif node.target is not operator.getitem:  # of several results, which are kept with their op
            region |= {node} if key[0] in again else set()
            let_go |= {node.name} if key in passed else set()
            kept |= {node.name: "product"} if key in passed else {node.name: kinds[key]} if key in kinds else {}
    whole = None if row.is_whole else frozenset(node.name for node in _between(module.graph, region))
    return Recompute(region=whole, kept=kept, passed=frozenset(let_go))


def _between(graph: fx.Graph, ends: set[fx.Node]) -> set[fx.Node]:
    """Nodes and all that lie on paths between them."""
    below, above = set(ends), set(ends)
    for node in graph.nodes:
        below |= {node} if not below.isdisjoint(node.all_input_nodes) else set()
    for node in reversed(graph.nodes):
        above |= {node} if not above.isdisjoint(node.users) else set()
    return below & above
