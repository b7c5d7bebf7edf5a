"""Where the batch dimension lies in every value, and whether the loss is a sum over samples."""

from __future__ import annotations

from torch import fx

from partitioner.constants import module_path
from partitioner.graph import placeholders
from partitioner.layout import Segment, Shard
from partitioner.rules import complete
from partitioner.shapes import op_of, operands, shape_of


def batch_layouts(graph: fx.Graph, batch: int) -> tuple[dict[str, Shard], str | None]:
    """Follow the batch dimension from the inputs through every op's rule, in both directions along the edges.

    Returns where it lies in each value, and the first op that mixes samples (None when there is none).
    """
    found: dict[fx.Node, Shard] = {}
    work: list[fx.Node] = []
    for node in placeholders(graph, "input").values():
        shape = shape_of(node)
        if shape and shape[0] == batch:
            found[node] = Shard(0, (Segment(1, batch, 1),))
            work.append(node)
    while work:
        node = work.pop()
        for op, slot in _places(node):
            problem = _follow(op, slot, found[node], batch, found, work)
            if problem:
                return {n.name: s for n, s in found.items()}, problem
    return {n.name: s for n, s in found.items()}, None


def _places(node: fx.Node) -> list[tuple[fx.Node, int]]:
    """Each op that reads ``node``, with the operand's number; and the op that makes it, with -1."""
    made = [(node, -1)] if node.op == "call_function" else []
    readers = [(u, i) for u in node.users for i, n in enumerate(operands(u)) if n is node]
    return made + [(u, i) for u, i in readers if u.op == "call_function"]


def _follow(
    op: fx.Node, slot: int, shard: Shard, batch: int, found: dict[fx.Node, Shard], work: list[fx.Node]
) -> str | None:
    strategy = complete(op_of(op), slot, shard, batch)
    if strategy is None:
        return f"{op.name} ({op.target}) in {'.'.join(module_path(op)[-1:]) or 'the model'} mixes samples"
    for node, placement in [*zip(operands(op), strategy.operands, strict=True), (op, strategy.result)]:
        if not isinstance(placement, Shard):
            continue
        if node.op == "placeholder" and node.meta["kind"] != "input":
            return f"{op.name} ({op.target}) ties the batch to {node.meta['source']}"
        if node not in found:
            found[node] = placement
            work.append(node)
        elif found[node] != placement:
            return f"{op.name} ({op.target}) reads {node.name} with the batch in two places"
    return None
