"""The axes of a mesh of ranks: their names, which stand here alone, and what parallelism asks of each.

    pp 2 x dp 4 x tp 8      rank (p, d, t) = 32 p + 8 d + t where they lie in this order
"""

from __future__ import annotations

from dataclasses import dataclass

PP, DP, CP, TP = "pp", "dp", "cp", "tp"  # pipeline, data, context, tensor


@dataclass(frozen=True)
class MeshAxis:
    """``replicates``: its ranks hold the same parameters, so that gradients are summed over it. ``is_always``: a mesh
    names it where it divides nothing, too."""

    replicates: bool = False
    is_always: bool = True


AXES = {  # as they usually lie, outermost first
    PP: MeshAxis(),  # divides stages
    DP: MeshAxis(replicates=True),  # samples
    CP: MeshAxis(replicates=True, is_always=False),  # tokens
    TP: MeshAxis(),  # ops
}
SHARD, REPLICA = "dp_shard", "dp_replica"  # of dp where state is divided: neighbours divide it, and hold it again
REFINED = {DP: (REPLICA, SHARD)}  # outermost first
REPLICATING = tuple(axis for axis, row in AXES.items() if row.replicates)
NAMED = (TP, CP, PP, DP)  # as tables and messages name them
