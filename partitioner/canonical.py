"""One row an op: how each op that export captures is written in the few ops that rules read."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx

from partitioner.ops import own
from partitioner.shapes import emit, shape_of

aten = torch.ops.aten


def canonicalize(graph: fx.Graph) -> None:
    """Replace each node by what its target's row builds in its place; a row that answers None keeps the node."""
    for node in list(graph.nodes):
        row = _CANONICAL.get(node.target) if node.op == "call_function" else None
        if row is None:
            continue
        with graph.inserting_before(node):
            new = row(graph, node)
        if new is not None and new is not node:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _same(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return node.args[0]  # type: ignore[return-value]


def _reshape(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if shape_of(source) == shape_of(node):
        return source
    return emit(graph, node, aten.reshape.default, source, list(shape_of(node)))


def _permute(graph: fx.Graph, node: fx.Node) -> fx.Node:
    rank = len(shape_of(node))
    order = list(range(rank))
    if node.target == aten.permute.default:
        order = [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]
    elif node.target == aten.numpy_T.default:
        order = order[::-1]
    elif node.target == aten.mT.default:
        order = [*order[:-2], rank - 1, rank - 2]
    elif rank > 1:
        a, b = (0, 1) if node.target == aten.t.default else (int(node.args[1]) % rank, int(node.args[2]) % rank)  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    return emit(graph, node, aten.permute.default, node.args[0], order)


def _cast(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dtype = node.meta["val"].dtype
    return source if source.meta["val"].dtype == dtype else emit(graph, node, aten.to.dtype, source, dtype)


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


def _slice(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source if shape_of(source) == shape_of(node) else None


def _cat(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Empty operands (a fresh key-value cache) add nothing."""
    parts = [p for p in node.args[0] if p.meta["val"].numel()]  # type: ignore[union-attr]
    if len(parts) == 1:
        return parts[0]
    return emit(graph, node, node.target, parts, *node.args[1:]) if len(parts) < len(node.args[0]) else None  # type: ignore[arg-type]


def _topk(graph: fx.Graph, node: fx.Node) -> None:
    """The places of the k largest, and the values gathered from there, as two ops of one result each."""
    source, k = node.args[:2]
    dim = int(node.args[2]) if len(node.args) > 2 else -1  # type: ignore[arg-type]
    if len(node.args) > 3 and not node.args[3]:
        return
    places = emit(graph, node, own.top_indices.default, source, k, dim)
    for item in list(node.users):
        with graph.inserting_before(item):
            new = places if item.args[1] else emit(graph, item, aten.gather.default, source, dim, places)
        item.replace_all_uses_with(new)
        graph.erase_node(item)


def _scalar(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return emit(graph, node, _SCALAR[node.target], *node.args, **node.kwargs)  # type: ignore[index]


_SCALAR: dict[object, Callable[..., object]] = {
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
}


def _mean(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A mean of all elements is one over every dimension."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dims = list(range(len(shape_of(source))))
    return emit(graph, node, aten.mean.dim, source, dims, False, **node.kwargs) if dims else None


def _reversed_sub(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """``other - alpha x``."""
    source, other = node.args[:2]
    alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    negative = emit(graph, node, aten.neg.default, source)
    scaled = negative if alpha == 1 else emit(graph, node, aten.mul.Tensor, negative, alpha)
    return emit(graph, node, aten.add.Tensor, scaled, other)


def _linear(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    if len(node.args) < 3 or node.args[2] is None:
        return None
    product = emit(graph, node, aten.linear.default, node.args[0], node.args[1])
    return emit(graph, node, aten.add.Tensor, product, node.args[2])


def _mm(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A product by a transposed matrix is a linear."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    if weight.target == aten.permute.default and weight.args[1] == [1, 0] and len(shape_of(node)) > 1:
        return emit(graph, node, aten.linear.default, node.args[0], weight.args[0])
    return None if node.target == aten.matmul.default else emit(graph, node, aten.matmul.default, *node.args[:2])


def _baddbmm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """beta input + alpha a @ b."""
    base, a, b = node.args
    product = emit(graph, node, aten.matmul.default, a, b)
    scales = [node.kwargs.get(name, 1) for name in ("beta", "alpha")]
    terms = [
        x if scale == 1 else emit(graph, node, aten.mul.Tensor, x, scale)
        for x, scale in zip((base, product), scales, strict=True)
    ]
    return emit(graph, node, aten.add.Tensor, *terms)


def _stack(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A cat along a new dimension."""
    shape = list(shape_of(node))
    dim = int(node.args[1]) % len(shape) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    shape[dim] = 1
    rows = [emit(graph, node, aten.reshape.default, part, shape) for part in node.args[0]]  # type: ignore[union-attr]
    return emit(graph, node, aten.cat.default, rows, dim)


def _addmm(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    if node.kwargs:
        return None
    product = emit(graph, node, aten.matmul.default, node.args[1], node.args[2])
    return emit(graph, node, aten.add.Tensor, product, node.args[0])


def _split(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Each getitem of a split, chunk or unbind becomes a part that knows all sizes."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    position = {aten.unbind.int: 1, aten.chunk.default: 2}.get(node.target, 2)  # type: ignore[call-overload]
    dim = int(node.args[position]) if len(node.args) > position else 0  # type: ignore[arg-type]
    dim %= len(shape_of(source))
    unbind = node.target == aten.unbind.int
    sizes = [1 if unbind else value.shape[dim] for value in node.meta["val"]]
    for item in list(node.users):
        with graph.inserting_before(item):
            new = emit(graph, item, own.part.default, source, dim, sizes, int(item.args[1]))  # type: ignore[arg-type]
            new = emit(graph, item, aten.reshape.default, new, list(shape_of(item))) if unbind else new
        item.replace_all_uses_with(new)
        graph.erase_node(item)
    return None


def _broadcast(graph: fx.Graph, node: fx.Node) -> None:
    """Each getitem of tensors broadcast together is one of them, expanded."""
    for item in list(node.users):
        source = node.args[0][int(item.args[1])]  # type: ignore[index, arg-type]
        with graph.inserting_before(item):
            same = shape_of(source) == shape_of(item)  # type: ignore[arg-type]
            new = source if same else emit(graph, item, aten.expand.default, source, list(shape_of(item)))
        item.replace_all_uses_with(new)  # type: ignore[arg-type]
        graph.erase_node(item)


def _attention(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Attention with dropout is written out, so that its mask can be the same under every plan."""
    arguments = _sdpa_arguments(node)
    query, key, value, mask, probability, causal, scale, grouped = arguments
    if grouped:
        key, value = (_repeat_heads(graph, node, t, shape_of(query)[-3]) for t in (key, value))
    if not probability:
        return emit(
            graph, node, aten.scaled_dot_product_attention.default, query, key, value, mask, 0.0, causal, scale=scale
        )
    rank = len(shape_of(key))
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores = emit(graph, node, aten.matmul.default, query, emit(graph, node, aten.permute.default, key, order))
    scores = emit(graph, node, aten.mul.Tensor, scores, scale or 1 / math.sqrt(shape_of(query)[-1]))
    if causal:
        mask = _causal_mask(graph, node, shape_of(query)[-2], shape_of(key)[-2])
    if mask is not None and (causal or mask.meta["val"].dtype == torch.bool):
        scores = emit(graph, node, aten.where.ScalarOther, mask, scores, -math.inf)
    elif mask is not None:
        scores = emit(graph, node, aten.add.Tensor, scores, mask)
    weights = emit(graph, node, aten.softmax.int, scores, -1)
    weights = emit(graph, node, aten.dropout.default, weights, probability, True)
    weights.meta |= {name: node.meta[name] for name in ("site",) if name in node.meta}
    return emit(graph, node, aten.matmul.default, weights, value)


def _sdpa_arguments(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node | None, float, bool, float | None, bool]:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    defaults = (None, None, None, None, 0.0, False, None, False)
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return tuple(given.get(n, d) for n, d in zip(names, defaults, strict=True))  # type: ignore[return-value]


def _repeat_heads(graph: fx.Graph, node: fx.Node, tensor: fx.Node, heads: int) -> fx.Node:
    *lead, kv, length, width = shape_of(tensor)
    if kv == heads:
        return tensor
    grown = emit(graph, node, aten.reshape.default, tensor, [*lead, kv, 1, length, width])
    grown = emit(graph, node, aten.expand.default, grown, [*lead, kv, heads // kv, length, width])
    return emit(graph, node, aten.reshape.default, grown, [*lead, heads, length, width])


def _causal_mask(graph: fx.Graph, node: fx.Node, queries: int, keys: int) -> fx.Node:
    rows = emit(graph, node, aten.reshape.default, emit(graph, node, aten.arange.default, queries), [queries, 1])
    return emit(graph, node, aten.ge.Tensor, rows, emit(graph, node, aten.arange.default, keys))


def _dropout(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    probability, train = node.args[1], node.args[2]
    return node.args[0] if not train or probability == 0 else None  # type: ignore[return-value]


def _strip_device(graph: fx.Graph, node: fx.Node) -> None:
    """Constants are made on the device where the stage runs."""
    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("device", "pin_memory", "layout")}


def _full_like(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """zeros_like, ones_like, new_zeros, ... depend on no value: they become one number, expanded to their shape."""
    fills = {"zeros": 0, "ones": 1, "empty": 0}
    name = str(node.target)
    fill = next((v for k, v in fills.items() if k in name), None)
    value = node.args[-1] if fill is None else fill
    shape = list(shape_of(node))
    one = emit(graph, node, aten.full.default, [1] * len(shape), value, dtype=node.meta["val"].dtype)
    return emit(graph, node, aten.expand.default, one, shape)


_CANONICAL: dict[object, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    **dict.fromkeys(
        (aten.alias.default, aten.lift_fresh_copy.default, aten.contiguous.default, aten.clone.default), _same
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
            aten.mT.default,
        ),
        _permute,
    ),
    **dict.fromkeys(
        (
            aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default,
            aten._to_copy.default,
        ),
        _cast,
    ),
    **dict.fromkeys((aten.expand.default, aten.expand_as.default), _expand),
    aten.repeat.default: _repeat,
    aten.slice.Tensor: _slice,
    aten.cat.default: _cat,
    aten.topk.default: _topk,
    **dict.fromkeys(_SCALAR, _scalar),
    aten.mean.default: _mean,
    aten.rsub.Scalar: _reversed_sub,
    aten.rsub.Tensor: _reversed_sub,
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _baddbmm,
    aten.stack.default: _stack,
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.matmul.default), _mm),
    **dict.fromkeys(
        (
            aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default, aten.unbind.int,
            aten.tensor_split.sections, aten.tensor_split.indices,
        ),
        _split,
    ),
    aten.broadcast_tensors.default: _broadcast,
    aten.scaled_dot_product_attention.default: _attention,
    aten.dropout.default: _dropout,
    **dict.fromkeys((aten.arange.default, aten.arange.start, aten.arange.start_step, aten.full.default,
                     aten.zeros.default, aten.ones.default, aten.scalar_tensor.default), _strip_device),
    **dict.fromkeys(
        (
            aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default,
            aten.new_ones.default, aten.new_full.default, aten.empty_like.default, aten.new_empty.default,
            aten.empty.memory_format,
        ),
        _full_like,
    ),
}  # fmt: skip
