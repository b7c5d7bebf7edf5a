"""Ops that only move elements, in few: each is a reshape, a permute, an expand, a slice, a part or a cat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from partitioner.graph.nodes import arguments, call, emit, shape_of
from partitioner.ops.own_ops import own

aten = torch.ops.aten


def _same(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return arguments(node)[0]


def _reshape(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if shape_of(source) == shape_of(node):
        return source
    return emit(graph, node, aten.reshape.default, source, list(shape_of(node)))


def _permute(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Whatever only reorders dimensions, its order read off sizes that all differ."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    marked = torch.empty([n + 2 for n in range(len(shape_of(source)))], device="meta")
    order = [size - 2 for size in call(node, marked, *node.args[1:], **node.kwargs).shape]
    return emit(graph, node, aten.permute.default, source, order)


def _expand(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = shape_of(node)
    return source if shape_of(source) == shape else emit(graph, node, aten.expand.default, source, list(shape))


def _repeat(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape, target = shape_of(source), shape_of(node)
    padded = (1,) * (len(target) - len(shape)) + shape
    if all(a in (b, 1) for a, b in zip(padded, target, strict=True)):
        return emit(graph, node, aten.expand.default, source, list(target))
    apart = [size for a in padded for size in (1, a)]
    grown = [size for a, b in zip(padded, target, strict=True) for size in (b // a, a)]
    lined = emit(graph, node, aten.reshape.default, source, apart)
    return emit(graph, node, aten.reshape.default, emit(graph, node, aten.expand.default, lined, grown), list(target))


def _repeat_each(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Each element several times: expanded along a new dimension behind its own."""
    source, times = node.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(times, int)
    shape, dim = list(shape_of(source)), arguments(node)[2] if len(node.args) > 2 else None
    at = (int(dim) % len(shape) if dim is not None else len(shape) - 1) + 1
    apart = emit(graph, node, aten.reshape.default, source, [*shape[:at], 1, *shape[at:]])
    grown = emit(graph, node, aten.expand.default, apart, [*shape[:at], times, *shape[at:]])
    return emit(graph, node, aten.reshape.default, grown, list(shape_of(node)))


def _slice(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """All of a dimension is no slice; what was written to a slice of a cache is read there again."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if shape_of(source) == shape_of(node):
        return source
    written = source.target == aten.slice_scatter.default and _reach(source, 2) == _reach(node, 1)
    return arguments(source)[1] if written else None


def _reach(node: fx.Node, place: int) -> tuple[int, range]:
    """The dimension of a slice and what it takes of it, from the arguments behind ``place`` - 1."""
    given: list[Any] = [*node.args[place:], *(0, None, None, 1)[len(node.args) - place :]]
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dim = int(given[0]) % len(shape_of(source))
    start, end, step = given[1:]
    return dim, range(shape_of(source)[dim])[slice(start, end, step)]


def _narrow(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source, dim, start, length = arguments(node)
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    assert isinstance(source, fx.Node)
    start += shape_of(source)[dim] if start < 0 else 0
    return emit(graph, node, aten.slice.Tensor, source, dim, start, start + length)


def _cat(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Empty operands (a fresh key-value cache) add nothing."""
    parts = [p for p in arguments(node)[0] if p.meta["val"].numel()]
    if len(parts) == 1:
        return parts[0]
    if len(parts) == len(arguments(node)[0]) and node.target == aten.cat.default:
        return None
    return emit(graph, node, aten.cat.default, parts, *node.args[1:])


def _stack(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A cat along a new dimension."""
    shape = list(shape_of(node))
    dim = int(arguments(node)[1]) % len(shape) if len(arguments(node)) > 1 else 0
    shape[dim] = 1
    rows = [emit(graph, node, aten.reshape.default, part, shape) for part in arguments(node)[0]]
    return emit(graph, node, aten.cat.default, rows, dim)


def _broadcast(graph: fx.Graph, node: fx.Node) -> None:
    for item in list(node.users):
        with graph.inserting_before(item):
            source, shape = arguments(node)[0][arguments(item)[1]], list(shape_of(item))
            assert isinstance(source, fx.Node)
            same = list(shape_of(source)) == shape
            new = source if same else emit(graph, item, aten.expand.default, source, shape)
        item.replace_all_uses_with(new)
        graph.erase_node(item)


def _split(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Each getitem of a split, chunk or unbind becomes a part that knows all sizes."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    position = 1 if node.target == aten.unbind.int else 2
    dim = int(arguments(node)[position]) if len(arguments(node)) > position else 0
    dim %= len(shape_of(source))
    unbind = node.target == aten.unbind.int
    sizes = [1 if unbind else value.shape[dim] for value in node.meta["val"]]
    for item in list(node.users):
        with graph.inserting_before(item):
            new = emit(graph, item, own.part.default, source, dim, sizes, int(arguments(item)[1]))
            new = emit(graph, item, aten.reshape.default, new, list(shape_of(item))) if unbind else new
        item.replace_all_uses_with(new)
        graph.erase_node(item)
    return None


def _full_like(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """zeros_like, ones_like, new_zeros, ... depend on no value: they become one number, expanded to their shape."""
    fills = {"zeros": 0, "ones": 1, "empty": 0}
    name = str(node.target)
    fill = next((v for k, v in fills.items() if k in name), None)
    value = node.args[-1] if fill is None else fill
    shape = list(shape_of(node))
    one = emit(graph, node, aten.full.default, [1] * len(shape), value, dtype=node.meta["val"].dtype)
    return emit(graph, node, aten.expand.default, one, shape)


MOVES: dict[object, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    **dict.fromkeys(
        (
            aten.alias.default, aten.lift_fresh_copy.default, aten.contiguous.default, aten.clone.default,
            aten.resolve_conj.default, aten.resolve_neg.default,
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
            aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims,
            aten.view_as.default, aten.reshape_as.default,
        ),
        _reshape,
    ),
    **dict.fromkeys(
        (
            aten.transpose.int, aten.t.default, aten.permute.default, aten.swapaxes.default, aten.numpy_T.default,
            aten.mT.default, aten.swapdims.default, aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int,
            aten.moveaxis.intlist,
        ),
        _permute,
    ),
    **dict.fromkeys((aten.expand.default, aten.expand_as.default, aten.broadcast_to.default), _expand),
    aten.broadcast_tensors.default: _broadcast,
    **dict.fromkeys((aten.repeat.default, aten.tile.default), _repeat),
    aten.repeat_interleave.self_int: _repeat_each,
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    **dict.fromkeys((aten.cat.default, aten.concat.default, aten.concatenate.default), _cat),
    aten.stack.default: _stack,
    **dict.fromkeys(
        (
            aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default, aten.unbind.int,
            aten.tensor_split.sections, aten.tensor_split.indices,
        ),
        _split,
    ),
    **dict.fromkeys(
        (
            aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default,
            aten.new_ones.default, aten.new_full.default, aten.empty_like.default, aten.new_empty.default,
            aten.empty.memory_format,
        ),
        _full_like,
    ),
}  # fmt: skip
