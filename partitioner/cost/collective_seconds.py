"""Seconds of one collective, and of turning one placement of a value into another.

hops x latency + bytes / bandwidth, by a ring or a tree, inside a node or through its ports     (alpha-beta)
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from partitioner.cluster import Route
from partitioner.cost.op_seconds import ZERO, Seconds
from partitioner.cost.op_work import Setting
from partitioner.ops.collective_kinds import KINDS
from partitioner.ops.collectives import conversion, payloads
from partitioner.ops.payloads import RANK_OPS
from partitioner.ops.rank_form import rank_form
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import REPLICATE, Placement

Sendings = list[tuple[str, float]]
_TREE_HOPS = 2  # messages that a node of a binary tree waits for at each level, one from each child


def collective_seconds(kind: str, payload: float, route: Route) -> float:
    """One collective of ``payload`` bytes (all_gather: gathered; all_to_all: held by a rank) over a group's ranks.

    A ring passes every member in each of its phases; an all_reduce that spans nodes may go by a tree of them instead.
    """
    ranks = route.ranks
    if not kind or ranks == 1 or not payload:
        return 0.0
    row = KINDS[kind]
    if row.own_part:
        far = payload * (ranks - ranks / route.nodes) / ranks / route.far_bytes_per_second if route.nodes > 1 else 0.0
        return _hops(route, route.nodes - 1) + max(far, payload * (ranks - 1) / ranks / route.bytes_per_second)
    moved = row.phases * payload * (ranks - 1) / ranks / route.bytes_per_second
    far_hops = route.nodes - 1
    if row.tree:
        far_hops = min(far_hops, _TREE_HOPS * math.ceil(math.log2(route.nodes)))
    return row.phases * _hops(route, far_hops) + moved


def _hops(route: Route, far: int) -> float:
    inside = math.ceil(route.ranks / route.nodes) - 1
    return inside * route.hop_seconds + far * route.far_hop_seconds


def convert_seconds(
    setting: Setting, node: fx.Node, source: Placement, target: Placement, route: Route
) -> Seconds | None:
    """Time to turn one placement of a value into another, both phases; None where no collective does."""
    if source == target:
        return ZERO
    differentiable = node in setting.folded.differentiable
    rows = conversion(source, target, setting.ranks, differentiable)
    if rows is None:
        return None
    size = setting.bytes(node, REPLICATE)
    forward, backward = (payloads(size, rows, setting.ranks, phase) for phase in ("forward", "backward"))
    return Seconds(
        sum(collective_seconds(kind, size, route) for kind, size in forward),
        sum(collective_seconds(kind, size, route) for kind, size in backward) if differentiable else 0.0,
    )


def rank_payloads(setting: Setting, node: fx.Node, strategy: Strategy) -> tuple[Sendings, Sendings]:
    """(kind, bytes) of what an op of ours sends on a rank in the place of ``node``, of all tokens of the rank: in
    forward, and in backward where it has one."""
    form = rank_form(setting.op(node), node.args, strategy, "")
    row = RANK_OPS.get(str(form[0])) if form else None
    if form is None or row is None:
        return [], []
    args: tuple[Any, ...] = fx.map_arg(form[1], lambda n: n.meta["val"])
    ways = row.forward(0, *args), row.backward(0, *args) if node in setting.folded.differentiable else ()
    forward, backward = ([(kind, size * setting.tokens(node)) for kind, size in way] for way in ways)
    return forward, backward
