"""What a graph's loss is about: between how many classes it chooses."""

from __future__ import annotations

from torch import fx

from partitioner.graph.nodes import operands, shape_of
from partitioner.ops.own_ops import own


def classes(graph: fx.Graph) -> int:
    """Between how many classes the loss chooses at the most; 0 where nothing is classified."""
    found = [operands(n)[0] for n in graph.nodes if n.target == own.cross_entropy.default]
    return max((shape_of(logits)[1] for logits in found), default=0)
