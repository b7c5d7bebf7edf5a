"""From the IR that export captures to the one that rules read: few passes, each Graph -> Graph with the same numbers.

After the passes every node returns one tensor (or a tuple read by getitem), nothing is changed in place, every view is
a reshape, permute, expand or part, a bias is an add, a loss is a sum over a count, and no dropout is fused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx

import partitioner.ops
import partitioner.part  # both register the ops that the passes insert
from partitioner.constants import fold_masks, sort_by_dependence
from partitioner.errors import InputError
from partitioner.functional import functionalize, inline_regions
from partitioner.graph import ParameterInfo
from partitioner.shapes import propagate, shape_of, to_meta

aten = torch.ops.aten
own = torch.ops.partitioner


def normalize(
    module: fx.GraphModule,
    parameters: dict[str, ParameterInfo],
    buffers: dict[str, torch.Tensor],
    inputs: tuple[str, ...],
    batch: int,
) -> None:
    """Rewrite ``module`` in place into the normal form. ``batch`` is the size of the traced batch dimension."""
    inline_regions(module)
    to_meta(module.graph)
    functionalize(module.graph)
    propagate(module, missing_only=True)
    _rewrite(module.graph, _CANONICAL)
    _tile_slices(module.graph)
    _number_dropouts(module.graph, batch)
    _count_losses(module.graph)
    propagate(module, missing_only=True)
    fold_masks(module, buffers, batch)
    sort_by_dependence(module.graph)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        if node.op == "placeholder" and node.meta["kind"] == "buffer" and not node.users:
            module.graph.erase_node(node)
    propagate(module)
    module.recompile()


def _rewrite(graph: fx.Graph, table: dict[object, Callable[[fx.Graph, fx.Node], fx.Node | None]]) -> None:
    """Replace each node by what its target's row builds in its place; None drops nothing and keeps the node."""
    for node in list(graph.nodes):
        row = table.get(node.target) if node.op == "call_function" else None
        if row is None:
            continue
        with graph.inserting_before(node):
            new = row(graph, node)
        if new is not None and new is not node:
            _carry_meta(new, node)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _carry_meta(new: fx.Node, old: fx.Node) -> None:
    if new.op == "call_function":
        new.meta = {**old.meta, **{k: v for k, v in new.meta.items() if k == "val"}}


def _emit(graph: fx.Graph, like: fx.Node, target: Callable[..., object], *args: object, **kwargs: object) -> fx.Node:
    """A new node that keeps the module stack of ``like``."""
    node = graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
    node.meta = {k: v for k, v in like.meta.items() if k in ("nn_module_stack", "stack_trace")}
    return node


def _same(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return node.args[0]  # type: ignore[return-value]


def _reshape(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if shape_of(source) == shape_of(node):
        return source
    return _emit(graph, node, aten.reshape.default, source, list(shape_of(node)))


def _permute(graph: fx.Graph, node: fx.Node) -> fx.Node:
    rank = len(shape_of(node))
    order = list(range(rank))
    if node.target == aten.permute.default:
        order = [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]
    elif rank > 1:
        a, b = (0, 1) if node.target == aten.t.default else (int(node.args[1]) % rank, int(node.args[2]) % rank)  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    return _emit(graph, node, aten.permute.default, node.args[0], order)


def _cast(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dtype = node.meta["val"].dtype
    return source if source.meta["val"].dtype == dtype else _emit(graph, node, aten.to.dtype, source, dtype)


def _expand(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = shape_of(node)
    return source if shape_of(source) == shape else _emit(graph, node, aten.expand.default, source, list(shape))


def _repeat(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape, target = shape_of(source), shape_of(node)
    padded = (1,) * (len(target) - len(shape)) + shape
    if any(a != b and a != 1 for a, b in zip(padded, target, strict=True)):
        return None
    return _emit(graph, node, aten.expand.default, source, list(target))


def _slice(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source if shape_of(source) == shape_of(node) else None


def _linear(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    if len(node.args) < 3 or node.args[2] is None:
        return None
    product = _emit(graph, node, aten.linear.default, node.args[0], node.args[1])
    return _emit(graph, node, aten.add.Tensor, product, node.args[2])


def _mm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _emit(graph, node, aten.matmul.default, *node.args[:2])


def _addmm(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    if node.kwargs:
        return None
    product = _emit(graph, node, aten.matmul.default, node.args[1], node.args[2])
    return _emit(graph, node, aten.add.Tensor, product, node.args[0])


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
            new = _emit(graph, item, own.part.default, source, dim, sizes, int(item.args[1]))  # type: ignore[arg-type]
            new = _emit(graph, item, aten.reshape.default, new, list(shape_of(item))) if unbind else new
        new.meta["val"] = item.meta["val"]
        item.replace_all_uses_with(new)
        graph.erase_node(item)
    return None


def _attention(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Attention with dropout is written out, so that its mask can be the same under every plan."""
    arguments = _sdpa_arguments(node)
    query, key, value, mask, probability, causal, scale, grouped = arguments
    if grouped:
        key, value = (_repeat_heads(graph, node, t, shape_of(query)[-3]) for t in (key, value))
    if not probability:
        return _emit(
            graph, node, aten.scaled_dot_product_attention.default, query, key, value, mask, 0.0, causal, scale=scale
        )
    rank = len(shape_of(key))
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores = _emit(graph, node, aten.matmul.default, query, _emit(graph, node, aten.permute.default, key, order))
    scores = _emit(graph, node, aten.mul.Tensor, scores, scale or 1 / math.sqrt(shape_of(query)[-1]))
    if causal:
        mask = _causal_mask(graph, node, shape_of(query)[-2], shape_of(key)[-2])
    if mask is not None and (causal or mask.meta["val"].dtype == torch.bool):
        scores = _emit(graph, node, aten.where.ScalarOther, mask, scores, -math.inf)
    elif mask is not None:
        scores = _emit(graph, node, aten.add.Tensor, scores, mask)
    weights = _emit(graph, node, aten.softmax.int, scores, -1)
    weights = _emit(graph, node, aten.dropout.default, weights, probability, True)
    return _emit(graph, node, aten.matmul.default, weights, value)


def _sdpa_arguments(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node | None, float, bool, float | None, bool]:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    defaults = (None, None, None, None, 0.0, False, None, False)
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return tuple(given.get(n, d) for n, d in zip(names, defaults, strict=True))  # type: ignore[return-value]


def _repeat_heads(graph: fx.Graph, node: fx.Node, tensor: fx.Node, heads: int) -> fx.Node:
    *lead, kv, length, width = shape_of(tensor)
    if kv == heads:
        return tensor
    grown = _emit(graph, node, aten.reshape.default, tensor, [*lead, kv, 1, length, width])
    grown = _emit(graph, node, aten.expand.default, grown, [*lead, kv, heads // kv, length, width])
    return _emit(graph, node, aten.reshape.default, grown, [*lead, heads, length, width])


def _causal_mask(graph: fx.Graph, node: fx.Node, queries: int, keys: int) -> fx.Node:
    rows = _emit(graph, node, aten.reshape.default, _emit(graph, node, aten.arange.default, queries), [queries, 1])
    return _emit(graph, node, aten.ge.Tensor, rows, _emit(graph, node, aten.arange.default, keys))


def _dropout(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    probability, train = node.args[1], node.args[2]
    return node.args[0] if not train or probability == 0 else None  # type: ignore[return-value]


def _strip_device(graph: fx.Graph, node: fx.Node) -> None:
    """Constants are made on the device where the stage runs."""
    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("device", "pin_memory", "layout")}


def _full_like(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """zeros_like, ones_like, new_zeros, ... depend on no value: they become constants of their shape."""
    fills = {"zeros": 0, "ones": 1, "empty": 0}
    name = str(node.target)
    fill = next((v for k, v in fills.items() if k in name), None)
    value = node.args[-1] if fill is None else fill
    return _emit(graph, node, aten.full.default, list(shape_of(node)), value, dtype=node.meta["val"].dtype)


_CANONICAL: dict[object, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    **dict.fromkeys((aten.alias.default, aten.lift_fresh_copy.default, aten.contiguous.default, aten.clone.default), _same),
    **dict.fromkeys(
        (
            aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
            aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims,
            aten.view_as.default, aten.reshape_as.default,
        ),
        _reshape,
    ),
    **dict.fromkeys((aten.transpose.int, aten.t.default, aten.permute.default, aten.swapaxes.default), _permute),
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
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    **dict.fromkeys((aten.mm.default, aten.bmm.default), _mm),
    **dict.fromkeys(
        (aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default, aten.unbind.int), _split
    ),
    aten.scaled_dot_product_attention.default: _attention,
    aten.dropout.default: _dropout,
    **dict.fromkeys((aten.arange.default, aten.arange.start, aten.arange.start_step, aten.full.default,
                     aten.zeros.default, aten.ones.default, aten.scalar_tensor.default), _strip_device),
    **dict.fromkeys(
        (
            aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default,
            aten.new_ones.default, aten.new_full.default, aten.empty_like.default, aten.new_empty.default,
        ),
        _full_like,
    ),
}  # fmt: skip


def _tile_slices(graph: fx.Graph) -> None:
    """Slices that together tile a dimension become parts of it (Phi-3's fused q, k, v)."""
    groups: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target == aten.slice.Tensor and len(node.args) >= 4:
            if len(node.args) > 4 and node.args[4] != 1:
                continue
            source, dim = node.args[0], int(node.args[1])
            groups.setdefault((source, dim % len(shape_of(source))), []).append(node)
    for (source, dim), nodes in groups.items():
        extent = shape_of(source)[dim]
        bounds = sorted({_bounds(n, extent) for n in nodes})
        if bounds[0][0] or bounds[-1][1] != extent or any(a[1] != b[0] for a, b in zip(bounds, bounds[1:], strict=False)):
            continue
        sizes = [end - start for start, end in bounds]
        for node in nodes:
            node.target = own.part.default
            node.args = (source, dim, sizes, bounds.index(_bounds(node, extent)))


def _bounds(node: fx.Node, extent: int) -> tuple[int, int]:
    start, end = (int(a) if a is not None else d for a, d in zip(node.args[2:4], (0, extent), strict=True))  # type: ignore[arg-type]
    start, end = (min(max(v + extent if v < 0 else v, 0), extent) for v in (start, end))
    return start, end


def _number_dropouts(graph: fx.Graph, batch: int) -> None:
    """Each dropout gets its call site's number and reads the samples' keys: its mask is a function of both."""
    sites = [n for n in graph.nodes if n.op == "call_function" and n.target == aten.dropout.default]
    if not sites:
        return
    keys = _new_input(graph, "sample_keys", (batch,), torch.int64)
    for site, node in enumerate(sites):
        node.target = own.dropout.default
        node.args = (node.args[0], node.args[1], keys, site)


def _new_input(graph: fx.Graph, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        node = graph.placeholder(name)
    node.meta |= {"source": name, "kind": "input", "val": torch.empty(shape, dtype=dtype, device="meta")}
    return node


def _count_losses(graph: fx.Graph) -> None:
    """A mean cross entropy becomes a sum divided by the input ``loss_count``, which the runtime counts globally."""
    losses = [n for n in graph.nodes if n.op == "call_function" and n.target == aten.cross_entropy_loss.default]
    if len(losses) != 1:
        raise InputError(
            f"the loss must be one cross entropy, the model has {len(losses)}: other losses are not split over samples yet"
        )
    node = losses[0]
    names = ("self", "target", "weight", "reduction", "ignore_index", "label_smoothing")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    reduction, smoothing = given.get("reduction", 1), given.get("label_smoothing", 0.0)
    if given.get("weight") is not None or reduction == 0:
        raise InputError("the cross entropy has class weights or no reduction: its mean does not separate over samples")
    logits, target = given["self"], given["target"]
    assert isinstance(logits, fx.Node) and isinstance(target, fx.Node)
    with graph.inserting_before(node):
        logits, target = _two_dimensional(graph, node, logits, target)
        total = _emit(graph, node, own.cross_entropy_sum.default, logits, target, given.get("ignore_index", -100), smoothing)
        loss = total
        if reduction == 1:
            loss = _emit(graph, node, aten.div.Tensor, total, _new_input(graph, "loss_count", (), torch.float64))
    node.replace_all_uses_with(loss)
    graph.erase_node(node)


def _two_dimensional(graph: fx.Graph, node: fx.Node, logits: fx.Node, target: fx.Node) -> tuple[fx.Node, fx.Node]:
    shape = shape_of(logits)
    if len(shape) <= 2:
        return logits, target
    order = [0, *range(2, len(shape)), 1]
    moved = _emit(graph, node, aten.permute.default, logits, order)
    tokens = math.prod(shape) // shape[1]
    return (
        _emit(graph, node, aten.reshape.default, moved, [tokens, shape[1]]),
        _emit(graph, node, aten.reshape.default, target, [tokens]),
    )
