"""Reductions of a whole tensor as sums, which separate over samples as any sum does.

    any(x)              sum(x != 0) > 0
    all(x)              sum(x == 0) == 0
    count_nonzero(x)    sum(x != 0)
    nansum(x)           sum(where(isnan(x), 0, x))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from partitioner.graph.nodes import emit

aten = torch.ops.aten


def _number_of(graph: fx.Graph, node: fx.Node, test: Callable[..., object]) -> fx.Node:
    return emit(graph, node, aten.sum.default, emit(graph, node, test, node.args[0], 0))


def _any(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return emit(graph, node, aten.gt.Scalar, _number_of(graph, node, aten.ne.Scalar), 0)


def _all(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return emit(graph, node, aten.eq.Scalar, _number_of(graph, node, aten.eq.Scalar), 0)


def _count_nonzero(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    whole = len(node.args) < 2 or node.args[1] is None
    return _number_of(graph, node, aten.ne.Scalar) if whole else None


def _sum_of_numbers(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    if len(node.args) != 1 and node.args[1] is not None:
        return None
    source = node.args[0]
    known = emit(graph, node, aten.where.ScalarSelf, emit(graph, node, aten.isnan.default, source), 0.0, source)
    return emit(graph, node, aten.sum.default, known, **node.kwargs)


COUNTING: dict[object, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    aten.any.default: _any,
    aten.all.default: _all,
    aten.count_nonzero.default: _count_nonzero,
    aten.nansum.default: _sum_of_numbers,
}
