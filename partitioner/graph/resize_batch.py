"""The batch size as a factor like any other: only the literals that hold it are rewritten."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from partitioner.errors import InputError
from partitioner.graph.counts import Count
from partitioner.graph.dependence import module_of
from partitioner.graph.graph import Graph, loss_node
from partitioner.graph.nodes import operands, propagate
from partitioner.graph.tied_blocks import Folded
from partitioner.sharding.layout import Segment, Shard
from partitioner.sharding.op_rules import rule_of


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
    return _at(graph, new, batch, _twins(graph))


def _at(graph: Graph, new: fx.Graph, batch: int, twins: Mapping[str, str] | None = None) -> Graph:
    """``graph`` with ``new``, a copy of all or of a part of its nodes, whose sizes are changed here."""
    for node in new.nodes:
        resize_node(node, batch - graph.batch)
    module = fx.GraphModule(graph.module, new)
    propagate(module, twins=twins)
    layout = {name: _scaled(shard, batch) for name, shard in graph.batch_layout.items()}
    counts = tuple(_resized_count(count, batch - graph.batch) for count in graph.counts)
    return dataclasses.replace(graph, module=module, batch=batch, batch_layout=layout, counts=counts)


def _resized_count(count: Count, more: int) -> Count:
    new, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    new.output(new.graph_copy(count.module.graph, copies))
    for old, node in copies.items():
        node.name, node.meta = old.name, dict(old.meta)
        resize_node(node, more)
    return dataclasses.replace(count, module=fx.GraphModule(nn.Module(), new))


def at_batch(folded: Folded, batch: int) -> Folded | None:
    """``folded`` with its representatives alone copied for ``batch`` samples: what pricing looks at, and no more.

    A unit that reads earlier units reads the copies of their representatives. None where a group reads two values of
    one representative (the same value of two blocks), which a copy can't tell apart.
    """
    known = {(g, folded.node[source]) for g, source in folded.port_of}
    if len(known) < len(folded.port_of):
        return None
    new, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    wanted = _needed(folded)
    for old in (n for n in folded.graph.module.graph.nodes if n in wanted):
        node = copies[old] = new.node_copy(old, lambda n: copies[folded.node.get(n, n)])
        node.name, node.meta = old.name, dict(old.meta)
    new.output(copies[folded.node[loss_node(folded.graph.module.graph)]])
    small = _at(folded.graph, new, batch)
    moved = {n: copies[r] for n, r in folded.node.items()}
    return dataclasses.replace(
        folded, sized=small, node=moved | {copy: copy for old, copy in copies.items() if old in moved},
        parameter={copies.get(n, n): copies[r] for n, r in folded.parameter.items()},
        sources={p: Counter({copies[n]: c for n, c in found.items()}) for p, found in folded.sources.items()},
        port_of={(g, moved[n]): port for (g, n), port in folded.port_of.items()},
    )  # fmt: skip


def _needed(folded: Folded) -> set[fx.Node]:
    """The representatives and what they read outside units, and the parameters that stand for others."""
    found = {folded.graph.nodes[name] for units in folded.groups for name in units[0].nodes}
    found.update(folded.parameter.values())
    for node in reversed(folded.graph.module.graph.nodes):
        if node in found:
            for operand in operands(node):
                found.add(folded.node.get(operand, operand))
    return found


def _twins(graph: Graph) -> dict[str, str]:
    """Nodes of a block by the same node of the first block of its kind; a view is not told apart from what it views."""
    first: dict[int, tuple[str, ...]] = {}
    found: dict[str, str] = {}
    for unit in graph.units:
        found |= dict(zip(unit.nodes, first.setdefault(unit.kind, unit.nodes), strict=True))
    views = {n for n in found if (rule := rule_of(str(graph.nodes[n].target))) and rule.view}
    return {name: twin for name, twin in found.items() if name != twin and name not in views}


def _scaled(shard: Shard, batch: int) -> Shard:
    return Shard(shard.dim, tuple(Segment(s.repeat, batch, s.granule) for s in shard.segments))


def resize_node(node: fx.Node, more: int) -> None:
    """Change the sizes of a node, whose slopes are noted, for ``more`` samples than it has."""
    slopes: dict[int, Fraction] = node.meta.get("slopes", {})
    if not slopes:
        return
    if any(more * slope % 1 for slope in slopes.values()):
        unit = math.lcm(*(slope.denominator for slope in slopes.values()))
        raise InputError(
            f"{node.target} in {module_of(node)} takes samples by {unit}: give a batch of a multiple of {unit}"
        )
    if node.op == "placeholder":
        value = node.meta["val"]
        shape = [n + int(more * slopes.get(d, 0)) for d, n in enumerate(value.shape)]
        node.meta["val"] = torch.empty(shape, dtype=value.dtype, device="meta")
        return
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    for place, slope in slopes.items():
        leaves[place] += int(more * slope)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    node.args, node.kwargs = tuple(args), dict(kwargs)
