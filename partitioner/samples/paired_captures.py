"""Captures of one model at several batch sizes, node by node: they are the same ops, or the model is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from partitioner.graph.dependence import module_of
from partitioner.samples.sample_inputs import UnlikeBatches, inputs_of

aten = torch.ops.aten
Sizes = tuple[int, int]
_COUNTING = (aten.arange.default, aten.arange.start, aten.arange.start_step)  # their numbers are sizes


def pairs(first: fx.Graph, second: fx.Graph, sizes: Sizes) -> list[tuple[fx.Node, fx.Node]]:
    """The nodes of two captures of one model; raises UnlikeBatches naming where they are not the same ops."""
    twin: dict[fx.Node, fx.Node] = {}
    for a, b in zip(first.nodes, second.nodes, strict=False):
        reads = [twin.get(n) for n in a.all_input_nodes]
        if (a.op, str(a.target)) != (b.op, str(b.target)) or reads != b.all_input_nodes:
            raise unlike(a, b, sizes)
        twin[a] = b
    if len(first.nodes) != len(second.nodes):
        raise unlike(next(iter(reversed(first.nodes))), next(iter(reversed(second.nodes))), sizes)
    return list(twin.items())


def unlike(a: fx.Node, b: fx.Node, sizes: Sizes) -> UnlikeBatches:
    """That two nodes which should be one are not."""
    return UnlikeBatches(unlike_words((words_of(a), words_of(b)), sizes), inputs_of([a, b]))


def unlike_words(ops: tuple[str, str], sizes: Sizes) -> str:
    """Of two ops, in words, where one should be."""
    return (
        f"the model is not the same for every batch: first {ops[0]} with {sizes[0]} samples, {ops[1]} with {sizes[1]}; "
        "what forward does must not depend on the batch size, on chance or on earlier calls"
    )


def words_of(node: fx.Node) -> str:
    """What a node is and where it was made."""
    return f"{node.target if node.op == 'call_function' else node.op} in {module_of(node)}"


def is_size(node: fx.Node, path: tuple[Any, ...]) -> bool:
    """Whether the argument at a path of the tree (args, kwargs) counts elements, and is no value."""
    if node.target in _COUNTING:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    which, key = path[0].idx, path[1]
    argument = schema.arguments[key.idx] if which == 0 else next(a for a in schema.arguments if a.name == key.key)
    return "int" in str(argument.type)
