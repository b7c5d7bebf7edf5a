"""Constants and preludes of a stage: the part of the graph without a gradient that makes some named values."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from partitioner.graph.graph import Graph
from partitioner.graph.nodes import value_name
from partitioner.lowering.program import Call


def extract(graph: Graph, among: tuple[str, ...], wanted: Iterable[str], name: str) -> Call | None:
    """A call that makes those of ``wanted`` that are nodes ``among`` these; None when there are none."""
    results = [n for n in among if n in set(wanted)]
    if not results:
        return None
    needed = _closure(graph, set(among), results)
    new = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    inputs: list[fx.Node] = []
    body = [graph.nodes[n] for n in among if n in needed]
    for node in body:
        for operand in node.all_input_nodes:
            if operand.name not in needed and operand not in values:
                inputs.append(operand)
                values[operand] = new.placeholder(operand.name)
                values[operand].meta["val"] = operand.meta["val"]
    for node in body:
        values[node] = new.node_copy(node, lambda n: values[n])
    new.output(tuple(values[graph.nodes[n]] for n in results))
    module = fx.GraphModule(nn.Module(), new)
    return Call(name, module, tuple(value_name(n) for n in inputs), tuple(results))


def _closure(graph: Graph, among: set[str], results: list[str]) -> set[str]:
    found: set[str] = set()
    work = list(results)
    while work:
        name = work.pop()
        if name not in found:
            found.add(name)
            work += [n.name for n in graph.nodes[name].all_input_nodes if n.name in among]
    return found
