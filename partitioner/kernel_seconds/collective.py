"""Seconds of one collective.

hops x latency + bytes / bandwidth, by a ring or a tree, inside a node or through its ports     (alpha-beta)
"""

from __future__ import annotations

import math

from partitioner.hardware.link import Route
from partitioner.ops.collective_kinds import KINDS

_TREE_HOPS = 2  # messages that a node of a binary tree waits for at each level, one from each child


def collective_seconds(kind: str, payload: float, route: Route) -> float:
    """One collective of ``payload`` bytes (all_gather: gathered; all_to_all: held by a rank) over a group's ranks.

    A ring passes every member in each of its phases; an all_reduce that spans nodes may go by a tree of them instead.
    Inside a node, as was measured of its link where that was.
    """
    ranks = route.ranks
    if not kind or ranks == 1 or not payload:
        return 0.0
    row = KINDS[kind]
    measured = route.direct if row.own_part else route.ring
    if measured and route.nodes == 1:
        phases = 1 if row.own_part else row.phases
        return measured.seconds(kind, ranks, phases * (ranks - 1), phases * payload * (ranks - 1) / ranks)
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
