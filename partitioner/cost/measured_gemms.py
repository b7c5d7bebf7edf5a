"""Seconds of products and of the work fused into them, as they were measured on the cluster's device.

What is measured of a product is all of its GEMM: the ops that join it cost nothing beside it, nor does the backward of
those whose gradient rides on its dgrad. A product of which a part was not measured keeps its modelled price.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from cutlass_ops.tuning.database import Measured
from partitioner.cluster import Cluster
from partitioner.cost.op_seconds import ZERO, Seconds
from partitioner.cost.op_work import Setting
from partitioner.emit.block_code import emit
from partitioner.emit.product_rows import products
from partitioner.layouts.exports import exports
from partitioner.layouts.solution import Solution


def measured(
    setting: Setting, solution: Solution, cluster: Cluster, group: int, modelled: Mapping[fx.Node, Seconds]
) -> dict[fx.Node, Seconds]:
    """By op of the group's representative: the seconds that replace the modelled ones."""
    folded = setting.folded
    first = folded.groups[group][0]
    wanted = tuple((first.nodes.index(e.node.name), e.layout) for e in exports(folded, solution)[first])
    module = emit(folded, solution, group, wanted).module
    rows = products(module, solution.axes, cluster)
    modelled_in_part = {row.whole for row in rows if None in row.measured}
    nodes, found = {node.name: node for node in modelled}, dict[fx.Node, Seconds]()
    for row in rows:
        if row.whole not in modelled_in_part:
            found[nodes[row.whole]] = found.get(nodes[row.whole], ZERO) + _seconds(row.measured, cluster)
            for name in row.members:
                found[nodes[name]] = Seconds(0.0, (found.get(nodes[name]) or modelled[nodes[name]]).backward)
            for name in row.inner:
                found[nodes[name]] = Seconds((found.get(nodes[name]) or modelled[nodes[name]]).forward, 0.0)
    return found


def _seconds(parts: tuple[Measured | None, ...], cluster: Cluster) -> Seconds:
    forward, dgrad, wgrad = (part.seconds / cluster.software.efficiency for part in parts if part is not None)
    return Seconds(forward, dgrad + wgrad)
