"""What follows the last block is made for one position of each text alone: the one whose logits are asked for."""

from __future__ import annotations

from torch import fx

from partitioner.generating.ends import Ends
from partitioner.generating.positions import Reading, Walked
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import operands, shape_of


def last_unit(graph: Graph, ends: Ends, walked: Walked) -> tuple[fx.Node, frozenset[fx.Node]]:
    """The one value of each position that enters the last unit, and that unit's ops on it; the logits themselves, and
    none, where several values enter, or it looks at other positions."""
    unit = next((u for u in graph.units if ends.logits.name in u.nodes), None)
    inside = {n for n in map(graph.nodes.__getitem__, unit.nodes if unit else ()) if n in walked.places}
    entering = {o for n in inside for o in operands(n) if o in walked.places and o not in inside}
    alike = all(r == Reading() for n in inside for r in walked.readings[n]) and not inside & walked.masks.keys()
    if unit is None or unit.is_block or len(entering) != 1 or not alike:
        return ends.logits, frozenset()
    (root,) = entering
    plain = root is not ends.tokens and _is_plain(graph, walked, root)
    return (root, frozenset(inside)) if plain else (ends.logits, frozenset())


def _is_plain(graph: Graph, walked: Walked, node: fx.Node) -> bool:
    """Whether its positions and samples have dimensions of their own."""
    query, shard = walked.places[node].query, graph.batch_layout.get(node.name)
    if query is None or shard is None or len(query.segments) != 1:
        return False
    (segment,) = query.segments
    return (segment.repeat, segment.granule) == (1, 1) and shape_of(node)[shard.dim] == graph.batch
