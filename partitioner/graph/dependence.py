"""Which values of a graph depend on what: buffers, parameters, inputs; and the values of those that depend on none."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from partitioner.errors import InputError
from partitioner.graph.nodes import call


def constants(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on buffers and literals only."""
    return _closed(graph, {"buffer"})


def input_free(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on buffers, literals and parameters only."""
    return _closed(graph, {"buffer", "parameter"})


def parameter_free(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on buffers, literals and batch inputs only: nothing in them has a gradient."""
    return _closed(graph, {"buffer", "input"})


def _closed(graph: fx.Graph, kinds: set[str]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if node.meta["kind"] in kinds:
                found.add(node)
        elif node.op == "call_function" and all(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def evaluate(
    graph: fx.Graph, fixed: set[fx.Node], wanted: set[fx.Node], buffers: dict[str, torch.Tensor]
) -> dict[fx.Node, torch.Tensor]:
    """The values of the constants ``wanted``, computed from ``buffers`` and literals."""
    needed: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    values: dict[fx.Node, Any] = {}
    remaining = {n: sum(u in needed for u in n.users) for n in needed}
    for node in [n for n in graph.nodes if n in needed]:
        values[node] = _run(node, values, buffers)
        for source in node.all_input_nodes:
            remaining[source] -= 1
            if not remaining[source] and source not in wanted:
                del values[source]
    return {n: values[n] for n in graph.nodes if n in wanted}


def _run(node: fx.Node, values: dict[fx.Node, Any], buffers: dict[str, torch.Tensor]) -> Any:
    if node.op == "placeholder":
        buffer = buffers[node.meta["source"]]
        if buffer.is_meta:
            raise InputError(
                f"buffer {node.meta['source']} lies on the meta device and has no value: "
                "build the model with real buffers"
            )
        return buffer.cpu()
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    with torch.no_grad():
        return call(node, *args, **kwargs)


def module_path(node: fx.Node) -> tuple[str, ...]:
    """Names of the nested modules whose forward made the node, outermost first."""
    return node.meta.get("modules", ())


def module_of(node: fx.Node) -> str:
    """The innermost module that made a node, for messages."""
    return ".".join(module_path(node)[-1:]) or "the model"
