"""Which nodes of an emitted block backward runs again, and which of their results are kept."""

from __future__ import annotations

import operator

from torch import fx

from partitioner.layouts.run_again import RunAgain
from partitioner.lowering.program import Recompute
from partitioner.ops.collectives import OPS

_CONVERSIONS = {op.target: op for op in OPS.values()}


def marked(module: fx.GraphModule, row: RunAgain) -> Recompute | None:
    """Of the module emitted for a unit of which ``row`` says what runs again; None for nothing."""
    converted = {(node.name, layout) for (node, layout), kind in row.kept.items() if kind == "collective"}
    kinds = {node.name: kind for (node, _), kind in row.kept.items() if kind != "collective"}
    passed = {node.name for node, _ in row.passed}
    kept, let_go, ends = dict[str, str](), set[str](), [set[fx.Node]() for _ in row.regions]
    for node in (n for n in module.graph.nodes if n.op == "call_function" and "stands_for" in n.meta):
        name, conversion = node.meta["stands_for"], _CONVERSIONS.get(str(node.target))
        name = node.meta.get("part_of", name) if name not in kinds else name  # of a product that kernels compute apart
        if conversion is not None:
            is_kept = (node.meta["stands_for"], node.meta["layout"]) in converted and conversion.forward
            kept |= {node.name: "collective"} if is_kept else {}
        elif node.target is not operator.getitem:  # of several results, which are kept with their op
            for inside, region in zip(ends, row.regions, strict=True):
                inside |= {node} if name in {n.name for n in region} else set()
            let_go |= {node.name} if name in passed else set()
            kept |= {node.name: "product"} if name in passed else {node.name: kinds[name]} if name in kinds else {}
    if row.is_whole:
        return Recompute(kept=kept, passed=frozenset(let_go))
    regions = (frozenset(node.name for node in _between(module.graph, inside)) for inside in ends if inside)
    found = tuple(regions)
    return Recompute(regions=found) if found else None


def _between(graph: fx.Graph, ends: set[fx.Node]) -> set[fx.Node]:
    """Nodes and all that lie on paths between them."""
    below, above = set(ends), set(ends)
    for node in graph.nodes:
        below |= {node} if not below.isdisjoint(node.all_input_nodes) else set()
    for node in reversed(graph.nodes):
        above |= {node} if not above.isdisjoint(node.users) else set()
    return below & above
