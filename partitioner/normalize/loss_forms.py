"""Losses in one form: a value of each row or element, then a sum, divided by a count where the loss is a mean.

    cross_entropy(z, y)                    sum(cross_entropy of each row) / sum(y != ignored)
    nll_loss(log_softmax(z), y)            the same
    log_softmax(z).gather(y)               minus cross_entropy of each row
    logsumexp(z) - z.gather(y)             cross_entropy of each row
    mse_loss(a, b), kl_div, l1, bce, ...   mean(mse of each element)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from partitioner.graph.nodes import arguments, emit, operands, schema_of, shape_of
from partitioner.ops.own_ops import own

aten = torch.ops.aten
_NONE, _MEAN, _SUM = 0, 1, 2  # at::Reduction
_RESHAPE, _GATHER = aten.reshape.default, aten.gather.default


def loss_forms(graph: fx.Graph) -> None:
    """Write each loss of ``graph`` out, in place."""
    for node in list(graph.nodes):
        row = _FORMS.get(node.target) or (_elementwise if _reduces(node) else None)
        if row is None:
            continue
        with graph.inserting_before(node):
            new = row(graph, node)
        if new is not None:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _arguments(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by the names of its schema, defaults included."""
    schema = schema_of(node)
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema.arguments}


def _reduces(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(a.name == "reduction" for a in schema.arguments)


def _elementwise(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A loss of each element by itself, reduced by a sum or mean over all of them."""
    given = _arguments(node)
    if given["reduction"] == _NONE:
        return None
    schema = schema_of(node)
    each = given | {"reduction": _NONE}
    positional = [each[a.name] for a in schema.arguments if not a.kwarg_only]
    keywords = {a.name: each[a.name] for a in schema.arguments if a.kwarg_only}
    function: Any = node.target
    return _reduced(graph, node, emit(graph, node, function, *positional, **keywords), given["reduction"])


def _reduced(graph: fx.Graph, node: fx.Node, each: fx.Node, reduction: int) -> fx.Node:
    if reduction == _NONE:
        return each
    if reduction == _SUM:
        return emit(graph, node, aten.sum.default, each)
    return emit(graph, node, aten.mean.dim, each, list(range(len(shape_of(each)))))


def _cross_entropy(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Of class numbers or class probabilities, weighted or not."""
    given = _arguments(node)
    logits, target, weight = given["self"], given["target"], given["weight"]
    smoothing = given["label_smoothing"]
    if target.meta["val"].is_floating_point():
        return _of_probabilities(graph, node, logits, target, weight, smoothing, given["reduction"])
    rows, labels = _rows(graph, node, logits, target)
    if weight is None:
        each = emit(graph, node, own.cross_entropy.default, rows, labels, given["ignore_index"], smoothing)
        return _mean_of_counted(graph, node, each, labels, given, shape_of(target))
    picked = _picked_weights(graph, node, labels, weight, given["ignore_index"])
    each = emit(graph, node, own.cross_entropy.default, rows, labels, given["ignore_index"], 0.0)
    each = emit(graph, node, aten.mul.Tensor, each, picked)
    if smoothing:
        smooth = _smooth(graph, node, rows, labels, weight, given["ignore_index"])
        each = emit(graph, node, aten.mul.Tensor, each, 1.0 - smoothing)
        smooth = emit(graph, node, aten.mul.Tensor, smooth, smoothing / shape_of(rows)[1])
        each = emit(graph, node, aten.add.Tensor, each, smooth)
    return _weighted(graph, node, each, picked, given["reduction"], shape_of(target))


def _smooth(
    graph: fx.Graph, node: fx.Node, rows: fx.Node, labels: fx.Node, weight: fx.Node, ignored: int
) -> fx.Node:  # fmt: skip
    """Of each counted row: the sum over classes of -weight x log-probability."""
    logs = emit(graph, node, aten.mul.Tensor, emit(graph, node, aten.log_softmax.int, rows, 1), weight)
    total = emit(graph, node, aten.neg.default, emit(graph, node, aten.sum.dim_IntList, logs, [1]))
    counted = emit(graph, node, aten.ne.Scalar, labels, ignored)
    return emit(graph, node, aten.where.ScalarOther, counted, total, 0.0)


def _mean_of_counted(
    graph: fx.Graph, node: fx.Node, each: fx.Node, labels: fx.Node, given: dict[str, Any], shape: tuple[int, ...]
) -> fx.Node:
    """Rows reduced; a mean is over the labels that are counted."""
    if given["reduction"] != _MEAN:
        return _weighted(graph, node, each, each, given["reduction"], shape)
    counted = emit(graph, node, aten.ne.Scalar, labels, given["ignore_index"])
    return _mean(graph, node, each, emit(graph, node, aten.sum.default, counted))


def _weighted(
    graph: fx.Graph, node: fx.Node, each: fx.Node, weights: fx.Node, reduction: int, shape: tuple[int, ...]
) -> fx.Node:
    """Rows as they are in their first shape, their sum, or their sum over that of their weights."""
    if reduction == _NONE:
        return emit(graph, node, _RESHAPE, each, list(shape)) if shape_of(each) != shape else each
    if reduction == _SUM:
        return emit(graph, node, aten.sum.default, each)
    return _mean(graph, node, each, _wide_sum(graph, node, weights))


def _mean(graph: fx.Graph, node: fx.Node, each: fx.Node, by: fx.Node) -> fx.Node:
    """The sum of all rows over ``by``, of the rows' data type: the sum alone may be beyond what float16 holds."""
    mean = emit(graph, node, aten.div.Tensor, _wide_sum(graph, node, each), by)
    dtype = each.meta["val"].dtype
    return mean if mean.meta["val"].dtype == dtype else emit(graph, node, aten.to.dtype, mean, dtype)


def _wide_sum(graph: fx.Graph, node: fx.Node, each: fx.Node) -> fx.Node:
    """The sum of all rows, in at least float32."""
    if each.meta["val"].dtype.itemsize >= 4:
        return emit(graph, node, aten.sum.default, each)
    dims = list(range(len(shape_of(each))))
    return emit(graph, node, aten.sum.dim_IntList, each, dims, False, dtype=torch.float32)


def _picked_weights(
    graph: fx.Graph, node: fx.Node, labels: fx.Node, weight: fx.Node, ignored: int
) -> fx.Node:  # fmt: skip
    """The weight of each row's class, 0 where the label is ignored."""
    counted = emit(graph, node, aten.ne.Scalar, labels, ignored)
    safe = emit(graph, node, aten.where.ScalarOther, counted, labels, 0)
    table = emit(graph, node, _RESHAPE, weight, [shape_of(weight)[0], 1])
    picked = emit(graph, node, aten.embedding.default, table, safe)
    picked = emit(graph, node, _RESHAPE, picked, list(shape_of(labels)))
    return emit(graph, node, aten.where.ScalarOther, counted, picked, 0.0)


def _of_probabilities(
    graph: fx.Graph, node: fx.Node, logits: fx.Node, target: fx.Node, weight: fx.Node | None, smoothing: float,
    reduction: int,
) -> fx.Node:  # fmt: skip
    dim = 1 if len(shape_of(logits)) > 1 else 0
    classes = shape_of(logits)[dim]
    if smoothing:
        target = emit(graph, node, aten.mul.Tensor, target, 1.0 - smoothing)
        target = emit(graph, node, aten.add.Tensor, target, smoothing / classes)
    logs = emit(graph, node, aten.mul.Tensor, emit(graph, node, aten.log_softmax.int, logits, dim), target)
    if weight is not None:
        shape = [classes if d == dim else 1 for d in range(len(shape_of(logits)))]
        logs = emit(graph, node, aten.mul.Tensor, logs, emit(graph, node, _RESHAPE, weight, shape))
    each = emit(graph, node, aten.neg.default, emit(graph, node, aten.sum.dim_IntList, logs, [dim]))
    return _reduced(graph, node, each, reduction)


def _rows(graph: fx.Graph, node: fx.Node, values: fx.Node, target: fx.Node) -> tuple[fx.Node, fx.Node]:
    """(t, v) and (t,) of values whose classes lie in dimension 1, or in the only one."""
    shape = shape_of(values)
    if len(shape) == 2:
        return values, target
    if len(shape) > 2:
        values = emit(graph, node, aten.permute.default, values, [0, *range(2, len(shape)), 1])
    classes = shape[min(1, len(shape) - 1)]
    tokens = math.prod(shape) // classes
    return (
        emit(graph, node, _RESHAPE, values, [tokens, classes]),
        emit(graph, node, _RESHAPE, target, [tokens]),
    )


def _nll(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The picked class of each row, of whatever: of a log-softmax it is a cross entropy."""
    given = _arguments(node)
    values, target, weight, ignored = given["self"], given["target"], given["weight"], given["ignore_index"]
    rows, labels = _rows(graph, node, values, target)
    logits = _logits(graph, node, rows)
    if logits is not None:
        each = emit(graph, node, own.cross_entropy.default, logits, labels, ignored, 0.0)
    else:
        counted = emit(graph, node, aten.ne.Scalar, labels, ignored)
        safe = emit(graph, node, aten.where.ScalarOther, counted, labels, 0)
        place = emit(graph, node, _RESHAPE, safe, [*shape_of(labels), 1])
        picked = emit(graph, node, _GATHER, rows, 1, place)
        picked = emit(graph, node, aten.neg.default, emit(graph, node, _RESHAPE, picked, list(shape_of(labels))))
        each = emit(graph, node, aten.where.ScalarOther, counted, picked, 0.0)
    if weight is None:
        return _mean_of_counted(graph, node, each, labels, given, shape_of(target))
    picked = _picked_weights(graph, node, labels, weight, ignored)
    each = emit(graph, node, aten.mul.Tensor, each, picked)
    return _weighted(graph, node, each, picked, given["reduction"], shape_of(target))


def _logits(graph: fx.Graph, node: fx.Node, rows: fx.Node) -> fx.Node | None:
    """The logits (t, v) of which ``rows`` (t, v) are the log-softmax over v, through reshapes of the rows."""
    source = _through_views(rows)
    if source.target != aten.log_softmax.int:
        return None
    last = len(shape_of(source)) - 1
    if int(arguments(source)[1]) % (last + 1) != last:
        return None
    if shape_of(source)[-1] != shape_of(rows)[-1] or source.kwargs.get("dtype") or len(source.args) > 2:
        return None
    (logits,) = operands(source)
    same = shape_of(logits) == shape_of(rows)
    return logits if same else emit(graph, node, _RESHAPE, logits, list(shape_of(rows)))


def _through_views(node: fx.Node) -> fx.Node:
    """What ``node`` is a reshape of."""
    while node.op == "call_function" and node.target == _RESHAPE:
        node = arguments(node)[0]
    return node


def _picked_logs(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """One class of each row of a log-softmax: minus its cross entropy."""
    each = _entropy(graph, node, node, of_logs=True)
    return each and emit(graph, node, aten.neg.default, each)


def _difference(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """logsumexp(z) less the picked logits, or the other way round."""
    if len(node.args) < 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
        return None
    if len({shape_of(node), *(shape_of(a) for a in arguments(node))}) > 1:
        return None
    total, picked = (_through_views(a) for a in arguments(node))
    turned = picked.target == aten.logsumexp.default
    total, picked = (picked, total) if turned else (total, picked)
    if total.target != aten.logsumexp.default or picked.target != _GATHER or total.args[0] is not picked.args[0]:
        return None
    rank = len(shape_of(arguments(total)[0]))
    if [d % rank for d in arguments(total)[1]] != [rank - 1]:
        return None
    each = _entropy(graph, node, picked, of_logs=False)
    return emit(graph, node, aten.neg.default, each) if turned and each else each


def _entropy(graph: fx.Graph, node: fx.Node, picked: fx.Node, of_logs: bool) -> fx.Node | None:
    """Cross entropy in the shape of ``node``, where ``picked`` gathers a class of each row of logits or their logs."""
    values, dim, places = arguments(picked)[:3]
    assert isinstance(values, fx.Node)
    assert isinstance(places, fx.Node)
    rank = len(shape_of(values))
    if int(dim) % rank != rank - 1 or shape_of(picked) != (*shape_of(values)[:-1], 1):
        return None
    tokens, classes = math.prod(shape_of(values)[:-1]), shape_of(values)[-1]
    rows = values if rank == 2 else emit(graph, node, _RESHAPE, values, [tokens, classes])
    logits = _logits(graph, node, rows) if of_logs else rows
    if logits is None:
        return None
    labels = emit(graph, node, _RESHAPE, places, [tokens])
    each = emit(graph, node, own.cross_entropy.default, logits, labels, -100, 0.0)
    return emit(graph, node, _RESHAPE, each, list(shape_of(node))) if shape_of(each) != shape_of(node) else each


_FORMS: dict[object, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    aten.cross_entropy_loss.default: _cross_entropy,
    aten.nll_loss_nd.default: _nll,
    aten.nll_loss.default: _nll,
    aten.nll_loss2d.default: _nll,
    aten.gather.default: _picked_logs,
    aten.sub.Tensor: _difference,
}
