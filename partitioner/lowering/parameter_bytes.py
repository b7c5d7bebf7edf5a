"""What a Plan says each rank holds: bytes by parameter, from its stages and layouts alone, with nothing lowered."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from partitioner.graph.graph import Graph, stage_units
from partitioner.graph.nodes import is_parameter, operands
from partitioner.lowering.shard_groups import chunk_rows
from partitioner.plan.plan import Plan
from partitioner.sharding.layout import WHOLE, everywhere, local_shape, parse_layout
from partitioner.sharding.mesh_axes import PP, SHARD


def held_bytes(graph: Graph, plan: Plan, place: Mapping[str, int]) -> dict[str, int]:
    """The parameters of the rank at ``place``, its index on each axis: those that its stages read.

    What no op reads lies whole on the first stage.
    """
    axes, shards = plan.parallelism.axes, plan.parallelism.shards
    places = [(place[axis], ranks) for axis, ranks in axes]
    split = stage_units(graph, plan.decisions.stages)
    own = {u for n, units in enumerate(split) if plan.parallelism.pipeline_rank(n) == place[PP] for u in units}
    nodes = [graph.nodes[name] for unit in graph.units if unit in own for name in unit.nodes]
    read = {a.meta["source"] for node in nodes for a in operands(node) if is_parameter(a)}
    unread = graph.parameters.keys() - plan.parameters.keys() if place[PP] == 0 else set[str]()
    found: dict[str, int] = {}
    for name in (n for n in graph.parameters if n in read or n in unread):
        info = graph.parameters[name]
        layout = everywhere(WHOLE, axes) if name in unread else parse_layout(plan.parameters[name], len(axes))
        shape = local_shape(info.shape, layout, places)
        if shards > 1 and shape and info.dtype.is_floating_point and name not in unread:
            start, end = chunk_rows(shape[0], place[SHARD], shards)
            shape = (end - start, *shape[1:])
        own = str(info.dtype).removeprefix("torch.")
        kept = plan.decisions.precision.state_of(own) if info.requires_grad and name not in unread else None
        found[name] = math.prod(shape) * getattr(torch, kept or own).itemsize
    return found
