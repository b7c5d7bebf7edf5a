"""One row an op: how each op that export captures is written in the few ops that rules read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from partitioner.graph.nodes import arguments, emit, shape_of
from partitioner.normalize.attention_ops import attention
from partitioner.normalize.counting_ops import COUNTING
from partitioner.normalize.movement_ops import MOVES
from partitioner.normalize.selection_ops import extreme, extremes, moments, take_along, topk

aten = torch.ops.aten


def canonicalize(graph: fx.Graph) -> None:
    """Replace each node by what its target's row builds in its place; a row that answers None keeps the node."""
    for node in list(graph.nodes):
        if node.op == "call_function":
            _by_place(node)
        row = _CANONICAL.get(node.target) if node.op == "call_function" else None
        if row is None:
            continue
        with graph.inserting_before(node):
            new = row(graph, node)
        if new is not None and new is not node:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _by_place(node: fx.Node) -> None:
    """Arguments that have a place in the schema stand there, as rows read them."""
    schema = getattr(node.target, "_schema", None)
    rest = [a for a in schema.arguments if not a.kwarg_only][len(node.args) :] if schema else []
    while rest and any(a.name in node.kwargs for a in rest):
        first = rest.pop(0)
        node.args = (*node.args, node.kwargs.get(first.name, first.default_value))
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != first.name}


def _conjugate(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """In memory of its own, not as a view that says so: collectives and views of its parts read memory."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    is_complex = source.meta["val"].is_complex()
    return emit(graph, node, aten.conj_physical.default, source) if is_complex else source


def _cast(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dtype = node.meta["val"].dtype
    return source if source.meta["val"].dtype == dtype else emit(graph, node, aten.to.dtype, source, dtype)


def _outer(graph: fx.Graph, node: fx.Node) -> fx.Node:
    column = emit(graph, node, aten.reshape.default, node.args[0], [-1, 1])
    return emit(graph, node, aten.mul.Tensor, column, node.args[1])


def _scalar(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return emit(graph, node, _SCALAR[node.target], *node.args, **node.kwargs)


_SCALAR: dict[object, Callable[..., object]] = {
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
    aten.multiply.Tensor: aten.mul.Tensor,
    aten.multiply.Scalar: aten.mul.Tensor,
    aten.subtract.Tensor: aten.sub.Tensor,
    aten.true_divide.Tensor: aten.div.Tensor,
    aten.divide.Tensor: aten.div.Tensor,
    aten.negative.default: aten.neg.default,
    aten.absolute.default: aten.abs.default,
    aten.clip.default: aten.clamp.default,
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
    """beta input + alpha a @ b: baddbmm, addmm, addmv."""
    base, a, b = node.args
    product = emit(graph, node, aten.matmul.default, a, b)
    scales = [node.kwargs.get(name, 1) for name in ("beta", "alpha")]
    terms = [
        x if scale == 1 else emit(graph, node, aten.mul.Tensor, x, scale)
        for x, scale in zip((base, product), scales, strict=True)
    ]
    return emit(graph, node, aten.add.Tensor, *terms)


def _dropout(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    probability, train = node.args[1], node.args[2]
    return arguments(node)[0] if not train or probability == 0 else None


def _strip_device(graph: fx.Graph, node: fx.Node) -> None:
    """Constants are made on the device where the stage runs."""
    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("device", "pin_memory", "layout")}


_CANONICAL: dict[object, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    **MOVES,
    **COUNTING,
    **dict.fromkeys((aten.conj.default, aten._conj.default), _conjugate),
    **dict.fromkeys(
        (
            aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default,
            aten._to_copy.default,
        ),
        _cast,
    ),
    aten.outer.default: _outer,
    aten.take_along_dim.default: take_along,
    **dict.fromkeys((aten.max.dim, aten.min.dim), extreme),
    aten.topk.default: topk,
    aten.aminmax.default: extremes,
    **dict.fromkeys(
        (getattr(op, form) for op in (aten.var_mean, aten.std_mean) for form in ("default", "dim", "correction")),
        moments,
    ),
    **dict.fromkeys(_SCALAR, _scalar),
    aten.mean.default: _mean,
    aten.rsub.Scalar: _reversed_sub,
    aten.rsub.Tensor: _reversed_sub,
    aten.linear.default: _linear,
    **dict.fromkeys((aten.baddbmm.default, aten.addmm.default, aten.addmv.default), _baddbmm),
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.matmul.default), _mm),
    aten.scaled_dot_product_attention.default: attention,
    aten.dropout.default: _dropout,
    **dict.fromkeys((aten.arange.default, aten.arange.start, aten.arange.start_step, aten.full.default,
                     aten.zeros.default, aten.ones.default, aten.scalar_tensor.default), _strip_device),
}  # fmt: skip
