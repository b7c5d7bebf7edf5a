"""The batch size as a factor like any other: only the literals that hold it are rewritten."""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from partitioner.graph import Graph
from partitioner.layout import Segment, Shard
from partitioner.localize import resized
from partitioner.rules import rule_of
from partitioner.shapes import propagate


def resize(graph: Graph, batch: int) -> Graph:
    """The same graph for ``batch`` samples; ``graph`` is left as it was."""
    if batch == graph.batch:
        return graph
    copies: dict[fx.Node, fx.Node] = {}
    new = fx.Graph()
    output = new.graph_copy(graph.module.graph, copies)
    new.output(output)
    for old, node in copies.items():
        node.name, node.meta = old.name, dict(old.meta)
        shard = graph.batch_layout.get(old.name)
        if shard is not None:
            _resize(node, shard, graph.batch, batch)
    module = fx.GraphModule(graph.module, new)
    propagate(module, twins=_twins(graph))
    layout = {name: _scaled(shard, batch) for name, shard in graph.batch_layout.items()}
    return dataclasses.replace(graph, module=module, batch=batch, batch_layout=layout)


def _twins(graph: Graph) -> dict[str, str]:
    """Nodes of a block by the same node of the first block of its kind; a view is not told apart from what it views."""
    first: dict[int, tuple[str, ...]] = {}
    found: dict[str, str] = {}
    for unit in graph.units:
        found |= dict(zip(unit.nodes, first.setdefault(unit.kind, unit.nodes), strict=True))
    views = {n for n in found if (rule := rule_of(str(graph.nodes[n].target))) and rule.view}
    return {name: twin for name, twin in found.items() if name != twin and name not in views}


def _resize(node: fx.Node, shard: Shard, old: int, new: int) -> None:
    if node.op == "placeholder":
        value = node.meta["val"]
        shape = [*value.shape]
        shape[shard.dim] = shape[shard.dim] // old * new
        node.meta["val"] = torch.empty(shape, dtype=value.dtype, device="meta")
    else:
        node.args, node.kwargs = resized(node, shard.dim, lambda size: size // old * new)  # type: ignore[assignment]


def _scaled(shard: Shard, batch: int) -> Shard:
    return Shard(shard.dim, tuple(Segment(s.repeat, batch, s.granule) for s in shard.segments))
