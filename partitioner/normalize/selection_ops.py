"""Ops of two results as two ops: what picks elements as the places and a gather from them, moments, both extremes."""

from __future__ import annotations

import torch
from torch import fx

from partitioner.graph.nodes import arguments, emit, op_of, shape_of
from partitioner.ops.own_ops import own

aten = torch.ops.aten


def topk(graph: fx.Graph, node: fx.Node) -> None:
    """The places of the k largest, and the values gathered from there, as two ops of one result each."""
    source, k = node.args[:2]
    dim = int(arguments(node)[2]) if len(arguments(node)) > 2 else -1
    if len(node.args) > 3 and not node.args[3]:
        source = emit(graph, node, aten.neg.default, source)
    _answer(graph, node, dim, emit(graph, node, own.top_indices.default, source, k, dim))


def extreme(graph: fx.Graph, node: fx.Node) -> None:
    """The place of the largest (or smallest), and the value gathered from there, whose gradient goes there alone."""
    source, keep = node.args[0], bool(node.args[2]) if len(node.args) > 2 else False
    assert isinstance(source, fx.Node)
    if not shape_of(source):
        return
    dim = int(arguments(node)[1]) % len(shape_of(source))
    extreme = aten.argmax.default if node.target == aten.max.dim else aten.argmin.default
    _answer(graph, node, dim, emit(graph, node, extreme, source, dim, True), keep)


def _answer(graph: fx.Graph, node: fx.Node, dim: object, places: fx.Node, keep: bool = True) -> None:
    """Values (item 0) are gathered from the places, which are item 1; without ``keep`` their dimension goes."""
    for item in list(node.users):
        with graph.inserting_before(item):
            new = places if item.args[1] else emit(graph, item, aten.gather.default, node.args[0], dim, places)
            new = new if keep else emit(graph, item, aten.reshape.default, new, list(shape_of(item)))
        item.replace_all_uses_with(new)
        graph.erase_node(item)


def moments(graph: fx.Graph, node: fx.Node) -> None:
    """The variance (or deviation) and the mean."""
    source, op = node.args[0], op_of(node)
    assert isinstance(source, fx.Node)
    keep, dims = op.literal("keepdim") is True, op.dims("dim", len(shape_of(source)))
    told = op.literal("correction") if "correction" in op.arguments else op.literal("unbiased")
    correction = 1 if told is None else int(told) if isinstance(told, bool) else told
    spread = aten.var.correction if op.target.startswith("aten.var_mean") else aten.std.correction
    _apart(
        graph, node, emit(graph, node, spread, source, list(dims), correction=correction, keepdim=keep),
        emit(graph, node, aten.mean.dim, source, list(dims), keep),
    )  # fmt: skip


def extremes(graph: fx.Graph, node: fx.Node) -> None:
    """The smallest and the largest."""
    dim = node.kwargs.get("dim")
    dims, keep = [] if dim is None else [dim], node.kwargs.get("keepdim", False)
    both = (emit(graph, node, op, node.args[0], dims, keep) for op in (aten.amin.default, aten.amax.default))
    _apart(graph, node, *both)


def _apart(graph: fx.Graph, node: fx.Node, *results: fx.Node) -> None:
    """Each result where it is taken from ``node``."""
    for item in list(node.users):
        item.replace_all_uses_with(results[arguments(item)[1]])
        graph.erase_node(item)


def in_order(graph: fx.Graph) -> None:
    """Each sort is its order, and the values gathered in it."""
    for node in [n for n in graph.nodes if n.target in (aten.sort.default, aten.sort.stable)]:
        source, given = node.args[0], dict(zip(("dim", "descending"), node.args[1:], strict=False)) | dict(node.kwargs)
        dim, descending = given.get("dim", -1), given.get("descending", False)
        with graph.inserting_before(node):
            order = emit(graph, node, aten.argsort.default, source, dim, descending)
        _answer(graph, node, dim, order)
        graph.erase_node(node)


def take_along(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A gather from operands that broadcast, but for the dimension itself; without one, from the flattened tensor."""
    source, places = node.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(places, fx.Node)
    dim = node.args[2] if len(node.args) > 2 else None
    if dim is None:
        flat = [emit(graph, node, aten.reshape.default, n, [-1]) for n in (source, places)]
        return emit(graph, node, aten.gather.default, flat[0], 0, flat[1])
    rank = len(shape_of(source))
    both = zip(shape_of(source), shape_of(places), strict=True)
    wide = [max(sizes) if i != int(dim) % rank else -1 for i, sizes in enumerate(both)]  # type: ignore[call-overload]
    grown = [_grown(graph, node, n, wide) for n in (source, places)]
    return emit(graph, node, aten.gather.default, grown[0], dim, grown[1])


def _grown(graph: fx.Graph, node: fx.Node, tensor: fx.Node, shape: list[int]) -> fx.Node:
    """``tensor`` expanded to ``shape``, -1 for a size of its own."""
    wide = [own if size < 0 else size for own, size in zip(shape_of(tensor), shape, strict=True)]
    return tensor if wide == list(shape_of(tensor)) else emit(graph, node, aten.expand.default, tensor, wide)
