"""Attention in one form: no shared heads, and written out where it has dropout, whose mask every plan must share."""

from __future__ import annotations

import math

import torch
from torch import fx

from partitioner.graph.nodes import emit, shape_of

aten = torch.ops.aten


def attention(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
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
