"""Which values lie in memory: views and copies, chains of pointwise ops that run as one kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from partitioner.graph.nodes import is_tensor, op_name, op_of, operands, shape_of
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.op_kinds import is_attention
from partitioner.sharding.op_rules import rule_of
from partitioner.sharding.rule import Rule


def internal(folded: Folded) -> frozenset[fx.Node]:
    """Values that never leave a fused kernel: all that reads them is pointwise too, and of the same unit."""
    leaving = {node for _, node in folded.port_of} | {node for sources in folded.sources.values() for node in sources}
    found: set[fx.Node] = set()
    for group in range(len(folded.groups)):
        body = set(folded.body(group))
        for node in body:
            reading = readers(node)
            inside = all(r in body and (_is_fusible(r) or _fuses(r) == "sink") for r in reading)
            if reading and inside and _is_fusible(node) and not _is_view(node) and not _reach(node) & leaving:
                found.add(node)
    return frozenset(found)


def base(node: fx.Node) -> fx.Node:
    """What a node is a view of, itself where it is none."""
    while _is_view(node):
        node = operands(node)[0]
    return node


def distinct(keys: fx.Node, local: Sequence[float]) -> float:
    """The share of attention's keys or values, of this shape on a rank, that is not the same again: a head of theirs
    may stand for several of queries, and lies in memory once."""
    node, elements = keys, math.prod(shape_of(keys))
    least, heads = elements, local[-3] if len(local) > 2 else 1.0
    while _is_view(node):
        node = operands(node)[0]
        least = min(least, math.prod(shape_of(node)))
    return max(1.0, heads * least / elements) / heads


def repeats_heads(node: fx.Node) -> bool:
    """Whether attention broadcasts fewer heads of keys than of queries, which no fused kernel does unless told to."""
    if not is_attention(node) or op_of(node).literal("enable_gqa"):
        return False
    query, key = (shape_of(n)[:-2] for n in operands(node)[:2])
    return query != key


def _rule(node: fx.Node) -> Rule | None:
    return rule_of(op_name(node.target)) if node.op == "call_function" else None


def _is_view(node: fx.Node) -> bool:
    """Whether a node moves nothing; a kernel reads repeated heads (an expanded value, reshaped) where they lie."""
    rule = _rule(node)
    return rule is not None and rule.view


def is_copy(node: fx.Node) -> bool:
    """Whether a view's result has memory of its own: what it is a view of lies in no order that it could."""
    if not _is_view(node) or not is_tensor(node):
        return False
    values = [n.meta["val"].untyped_storage()._cdata for n in (node, operands(node)[0])]
    return values[0] != values[1]


def _is_fusible(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return _is_view(node) or torch.Tag.pointwise in tags or _fuses(node) == "chain"


def _fuses(node: fx.Node) -> str:
    rule = _rule(node)
    return rule.fuses if rule else ""


def _reach(node: fx.Node) -> set[fx.Node]:
    """A node and the views of it."""
    found = {node}
    for user in node.users:
        if _is_view(user):
            found |= _reach(user)
    return found


def readers(node: fx.Node) -> set[fx.Node]:
    """The ops that read a value or a view of it."""
    return {user for view in _reach(node) for user in view.users if not _is_view(user)}
