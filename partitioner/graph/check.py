"""Is this Graph legal? A Graph that is not is a fault of this package: a ValueError."""

from __future__ import annotations

import operator

from torch import fx

from partitioner.graph.graph import Graph, loss_node
from partitioner.ops.autograd_functions import AutogradCall


def check_graph(graph: Graph) -> None:
    """Every op is functional, its value known; the units cover in order what has a gradient; the loss is a scalar."""
    graph.module.graph.lint()
    for node in graph.module.graph.nodes:
        _check_node(node)
    free = {*graph.constants, *graph.prelude}
    body = [n.name for n in graph.module.graph.nodes if n.op == "call_function" and n.name not in free]
    if [name for unit in graph.units for name in unit.nodes] != body:
        raise ValueError("the units do not cover, in order, the ops that have a gradient")
    loss = loss_node(graph.module.graph).meta["val"]
    if loss.dim() or not loss.is_floating_point():
        raise ValueError(f"the graph returns {tuple(loss.shape)} of {loss.dtype}, not a loss")


def _check_node(node: fx.Node) -> None:
    if node.op == "output":
        return
    if node.op not in ("placeholder", "call_function"):
        raise ValueError(f"{node.name}: a {node.op} node can't stand in a Graph")
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        raise ValueError(f"{node.name}: {node.target} changes its operand")
    known = node.target is operator.getitem or isinstance(node.target, AutogradCall)
    if node.op == "call_function" and schema is None and not known:
        raise ValueError(f"{node.name}: {node.target} is not an op")
    if "val" not in node.meta:
        raise ValueError(f"{node.name}: {node.target} has no known value")
