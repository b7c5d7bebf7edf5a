"""Which values are cached: of those on the way to where they are looked at, the one that holds the fewest bytes."""

from __future__ import annotations

import math

import torch
from torch import fx

from partitioner.generating.positions import Walked
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import operands, shape_of
from partitioner.sharding.layout import Segment
from partitioner.sharding.op_rules import rule_of

aten = torch.ops.aten


def way_up(graph: Graph, walked: Walked, node: fx.Node, length: int) -> list[fx.Node]:
    """From a value that is looked at, through views alone, up to the one that is cached, both included."""
    way = [node]
    while (above := _viewed(walked, way[-1])) is not None:
        way.append(above)
    sized = [(_bytes(n) if can_be_cached(graph, walked, n, length) else math.inf, i) for i, n in enumerate(way)]
    return way[: min(sized)[1] + 1]


def _viewed(walked: Walked, node: fx.Node) -> fx.Node | None:
    rule = rule_of(str(node.target)) if node.op == "call_function" else None
    if not (rule and rule.view) or len(operands(node)) != 1:
        return None
    (source,) = operands(node)
    places = walked.places.get(source)
    return source if places and places.query and not places.key and source.op == "call_function" else None


def can_be_cached(graph: Graph, walked: Walked, node: fx.Node, length: int) -> bool:
    """Whether its samples and its positions have dimensions of their own."""
    query, shard = walked.places[node].query, graph.batch_layout.get(node.name)
    return bool(query and shard) and (shard.segments, query.segments) == (  # type: ignore[union-attr]
        (Segment(1, graph.batch, 1),), (Segment(1, length, 1),)
    )  # fmt: skip


def shared_heads(node: fx.Node) -> fx.Node | None:
    """Of keys (.., heads, L, e), of which several heads have the same, (.., shared, 1, L, e); None where none do."""
    grown = operands(node)[0] if node.target == aten.reshape.default else None
    if grown is None or grown.target != aten.expand.default or len(shape_of(grown)) != len(shape_of(node)) + 1:
        return None
    (source,) = operands(grown)
    *lead, shared, each, length, width = shape_of(grown)
    alike = shape_of(source) == (*lead, shared, 1, length, width)
    return source if alike and shape_of(node) == (*lead, shared * each, length, width) else None


def slots(reach: int, length: int, chunk: int) -> int:
    """Of a cache of which no position looks back further than ``reach``, itself counted: a ring of what the ``chunk``
    positions of a call may see, or all positions of a text and of a call that begins at its last."""
    return min(reach, length) + chunk - 1


def reaches(graph: Graph, walked: Walked, length: int) -> dict[fx.Node, int]:
    """How far back each value that is cached is looked at, itself counted: the whole ``length`` where no mask says
    less. Those that meet the same keys have as many slots, for the one that is looked at from farthest."""
    rows = ((n, r) for node, readings in walked.readings.items() for n, r in zip(operands(node), readings, strict=True))
    tops = {n: way_up(graph, walked, n, length)[-1] for n, reading in rows if reading.cached}
    groups = [({tops[n] for n in _looked_at(walked, node)}, mask.reach) for node, mask in walked.masks.items()]
    found, before = dict[fx.Node, int](), None
    while found != before:
        before = dict(found)
        for group, reach in groups:
            found |= dict.fromkeys(group, max([reach, *(found.get(n, 0) for n in group)]))
    return dict.fromkeys(tops.values(), length) | found


def _looked_at(walked: Walked, node: fx.Node) -> set[fx.Node]:
    """The values whose positions a sum over keys sees, and those that meet these afterwards."""
    found, seen, work = set[fx.Node](), set[fx.Node](), [node, *_behind(walked, node)]
    while work:
        at = work.pop()
        if at in seen or at not in walked.readings:
            continue
        seen.add(at)
        for operand, reading in zip(operands(at), walked.readings[at], strict=True):
            if reading.cached:
                found.add(operand)
            elif (places := walked.places.get(operand)) and places.key:
                work.append(operand)
    return found


def _behind(walked: Walked, node: fx.Node) -> list[fx.Node]:
    """Ops that read what this one made of keys, as long as it has them."""
    found, work = list[fx.Node](), [node] if walked.places[node].key else []
    while work:
        for user in work.pop().users:
            if user in walked.places and user not in found:
                found.append(user)
                if walked.places[user].key:
                    work.append(user)
    return found


def _bytes(node: fx.Node) -> float:
    value = node.meta["val"]
    return float(value.numel() * value.element_size())


def smallest_view(graph: Graph, node: fx.Node) -> fx.Node:
    """Of a value and those that it is a view of, one after another, the one of fewest bytes whose samples have a
    dimension of their own; itself where none has."""
    way = [node]
    while way[-1].op == "call_function" and (rule := rule_of(str(way[-1].target))) and rule.view:
        if len(operands(way[-1])) != 1 or operands(way[-1])[0].op != "call_function":
            break
        way.append(operands(way[-1])[0])
    return min(way, key=lambda n: _bytes(n) if has_own_samples(graph, n) else math.inf)


def has_own_samples(graph: Graph, node: fx.Node) -> bool:
    """Whether samples are a dimension of a value's own."""
    shard = graph.batch_layout.get(node.name)
    return bool(shard) and shard.segments == (Segment(1, graph.batch, 1),) and shape_of(node)[shard.dim] == graph.batch
