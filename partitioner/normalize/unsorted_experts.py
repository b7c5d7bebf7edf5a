"""Mixture-of-experts layers that sort rows by expert, written as row-wise ops: each row is multiplied by its expert.

    as captured                                         as rewritten
    ------------------------------------------------    ------------------------------------
    sorted, order = sort(expert)
    a = index(x, [order // k])                          a = each row of x, k times
    b = grouped_mm(a, w, cumsum(histc(sorted)))         b = expert_linear(a, w, expert)
    c = row-wise ops of b and of index(y, [order])      c = the same ops of b and y
    index(c, [inverse of order])                        c

Sorting is how a kernel runs the product, not what the model computes; unsorted, the layer separates over rows.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from partitioner.graph.graph import op_of
from partitioner.graph.nodes import arguments, emit, operands, shape_of
from partitioner.ops.own_ops import own
from partitioner.sharding.layout import Shard, shard_whole
from partitioner.sharding.op_rules import complete

aten = torch.ops.aten
_COUNTS = (aten.histc.default, aten.bincount.default)
_GROUPED = ("transformers.grouped_mm_fallback.default", "aten._grouped_mm.default")


def undo_sorting(graph: fx.Graph) -> None:
    """Rewrite each sort of a vector whose permutation is undone again; any other sort stays as it is."""
    for node in [n for n in graph.nodes if n.op == "call_function" and str(n.target).startswith("aten.sort.")]:
        if len(shape_of(node.args[0])) == 1 and any(str(u.target) in _GROUPED for u in _reached(node)):
            _Unsort(graph, node).run()
    graph.eliminate_dead_code()


def _reached(node: fx.Node) -> list[fx.Node]:
    """All nodes that depend on ``node``, in graph order."""
    found = {node}
    for later in node.graph.nodes:
        if any(n in found for n in later.all_input_nodes):
            found.add(later)
    return [n for n in node.graph.nodes if n in found and n is not node]


class _Unsort:
    """``plain`` maps each value whose rows are sorted to the same value with its rows in the model's order."""

    def __init__(self, graph: fx.Graph, sort: fx.Node) -> None:
        self.graph = graph
        self.expert: fx.Node = arguments(sort)[0]
        self.rows = shape_of(self.expert)[0]
        self.order = {n for n in sort.users if n.args[1] == 1}
        self.plain: dict[fx.Node, fx.Node] = {n: self.expert for n in sort.users if arguments(n)[1] == 0}
        self.repeats: dict[fx.Node, int] = {}
        self.inverse: set[fx.Node] = set()

    def run(self) -> None:
        for node in _reached(next(iter(self.order)).args[0]):  # type: ignore[arg-type]
            if node.op == "call_function" and node.target is not operator.getitem:
                with self.graph.inserting_before(node):
                    self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        first = node.args[0]
        if node.target == aten.floor_divide.default and first in self.order:
            self.repeats[node] = int(arguments(node)[1])
        elif node.target in (aten.index_put.default, aten.argsort.default):
            self._find_inverse(node)
        elif node.target == aten.index.Tensor:
            self._index(node)
        elif str(node.target) in _GROUPED and first in self.plain and self._counts(node.args[2]):
            given = self.plain[first], node.args[1], self.expert
            self.plain[node] = emit(self.graph, node, own.expert_linear.default, *given)
        elif any(n in self.plain for n in node.all_input_nodes):
            self._row_wise(node)

    def _find_inverse(self, node: fx.Node) -> None:
        """``index_put(anything, [order], arange)`` and ``argsort(order)`` undo the permutation."""
        if node.target == aten.argsort.default and node.args[0] in self.order:
            self.inverse.add(node)
        elif node.target == aten.index_put.default:
            _, places, values = node.args[:3]
            counts = isinstance(values, fx.Node) and (values.target, values.args) == (aten.arange.default, (self.rows,))
            if counts and len(places) == 1 and places[0] in self.order:  # type: ignore[arg-type, index]
                self.inverse.add(node)

    def _index(self, node: fx.Node) -> None:
        source, places = node.args
        place = places[0] if len(places) == 1 else None  # type: ignore[index, arg-type]
        assert isinstance(source, fx.Node)
        if place in self.order:
            self.plain[node] = source
        elif place in self.repeats:
            self.plain[node] = self._repeat(node, source, self.repeats[place])
        elif place in self.plain and source not in self.plain:  # of each row's own expert: a bias
            self.plain[node] = emit(self.graph, node, aten.index.Tensor, source, [self.plain[place]])
        elif place in self.inverse and source in self.plain:
            node.replace_all_uses_with(self.plain[source])

    def _repeat(self, node: fx.Node, source: fx.Node, times: int) -> fx.Node:
        rows, *rest = shape_of(source)
        grown = emit(self.graph, node, aten.reshape.default, source, [rows, 1, *rest])
        grown = emit(self.graph, node, aten.expand.default, grown, [rows, times, *rest])
        return emit(self.graph, node, aten.reshape.default, grown, [rows * times, *rest])

    def _counts(self, ends: object) -> bool:
        """Whether ``ends`` are the running counts of each expert's rows."""
        if not isinstance(ends, fx.Node) or ends.target != aten.cumsum.default:
            return False
        counts = ends.args[0]
        return isinstance(counts, fx.Node) and counts.target in _COUNTS and counts.args[0] in (*self.plain, self.expert)

    def _row_wise(self, node: fx.Node) -> None:
        """An op whose rule shards its rows does the same to each row, in any order."""
        sources = operands(node)
        slot = next(i for i, n in enumerate(sources) if n in self.plain)
        strategy = complete(op_of(node), slot, shard_whole(0, self.rows, self.rows), self.rows)
        if strategy is None or not isinstance(strategy.result, Shard) or strategy.result.dim:
            return
        if all((n in self.plain) == isinstance(p, Shard) for n, p in zip(sources, strategy.operands, strict=True)):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.plain.get(n, n))
            self.plain[node] = emit(self.graph, node, node.target, *args, **kwargs)  # type: ignore[arg-type]
