"""Captures of one model at several batch sizes, node by node: they are the same ops, or the model is refused."""

from __future__ import annotations

from torch import fx

from partitioner.errors import InputError
from partitioner.graph.dependence import module_of

Sizes = tuple[int, int]


def pairs(first: fx.Graph, second: fx.Graph, sizes: Sizes) -> list[tuple[fx.Node, fx.Node]]:
    """The nodes of two captures of one model; raises InputError naming where they are not the same ops."""
    twin: dict[fx.Node, fx.Node] = {}
    for a, b in zip(first.nodes, second.nodes, strict=False):
        reads = [twin.get(n) for n in a.all_input_nodes]
        if (a.op, str(a.target)) != (b.op, str(b.target)) or reads != b.all_input_nodes:
            raise unlike(a, b, sizes)
        twin[a] = b
    if len(first.nodes) != len(second.nodes):
        raise unlike(next(iter(reversed(first.nodes))), next(iter(reversed(second.nodes))), sizes)
    return list(twin.items())


def unlike(a: fx.Node, b: fx.Node, sizes: Sizes) -> InputError:
    """That two nodes which should be one are not."""
    words = [f"{n.target if n.op == 'call_function' else n.op} in {module_of(n)}" for n in (a, b)]
    return InputError(
        f"the model is not the same for every batch: first {words[0]} with {sizes[0]} samples, {words[1]} with "
        f"{sizes[1]}; what forward does must not depend on the batch size, on chance or on earlier calls"
    )
