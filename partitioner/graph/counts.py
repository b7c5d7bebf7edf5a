"""A loss as a sum over samples, its counts as numbers of the global batch.

    as written                               as rewritten
    -------------------------------------    -------------------------------------------------------
    sum(rows) / sum(y != -100).clamp(1)      sum(rows) / count_0.clamp(1)    count_0 = sum(y != -100)
    sum(rows) / n + w.pow(2).sum()           sum(rows) / n + w.pow(2).sum() * batch_share
    sum(rows) / n - 0.5                      sum(rows) / n - 0.5 * batch_share

A sum over samples that only linear ops read is left: added up over micro-batches and data ranks it is the whole one.
One without a gradient that another op reads is a count: it is summed over the global batch *before* that op. What is
the same in every micro-batch counts by the micro-batch's share. A sum with a gradient that another op reads mixes
samples, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

from partitioner.graph.dependence import parameter_free
from partitioner.graph.nodes import arguments, emit, op_of, operands, shape_of, value_name
from partitioner.graph.step_inputs import batch_share, step_input
from partitioner.sharding.layout import PARTIAL
from partitioner.sharding.op_rules import partial

aten = torch.ops.aten
# ops linear in an operand and a number together: the operand among all, the number's place
_LINEAR_LITERAL: dict[object, tuple[int, int | None]] = {
    aten.add.Tensor: (0, 1), aten.sub.Tensor: (0, 1), aten.where.ScalarOther: (1, 2), aten.where.ScalarSelf: (1, 1),
    aten.masked_fill.Scalar: (0, 2),
}  # fmt: skip
# ops linear in these operands together
_CHOOSING: dict[object, tuple[int, ...]] = {aten.where.self: (1, 2), aten.masked_fill.Tensor: (0, 2)}


@dataclass(frozen=True)
class Count:
    """A number (or a tensor of numbers) that is summed over the samples of the global batch before a step.

    ``module`` maps ``arguments`` (batch inputs, buffers as ``buffer:NAME``, earlier counts) of one micro-batch to its
    part. Counts of one ``level`` read those of lower ones only. ``divides``: something is divided by the sum itself.
    """

    name: str
    module: fx.GraphModule
    arguments: tuple[str, ...]
    level: int
    divides: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the sum."""
        return shape_of(self._result)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the sum."""
        return self._result.meta["val"].dtype

    @property
    def numbers(self) -> int:
        """How many numbers it is."""
        return math.prod(self.shape)

    @property
    def _result(self) -> fx.Node:
        return next(iter(reversed(self.module.graph.nodes))).args[0]


class Separation:
    """Rewrites a graph in place; ``mixed`` are the ops that mix samples, ``counts`` what became a number of the step.

    ``samples``: nodes that carry samples along a dimension; ``sums``: those that are sums over samples by themselves.
    """

    def __init__(self, graph: fx.Graph, samples: set[fx.Node], sums: set[fx.Node]) -> None:
        self.graph, self.samples, self.sums = graph, samples, set(sums)
        self.free = parameter_free(graph)
        self.counts: list[Count] = []
        self.mixed: list[fx.Node] = []
        self.cuts: dict[fx.Node, fx.Node] = {}

    def run(self, loss: fx.Node) -> None:
        """Follow the sums over samples to the loss."""
        for node in list(self.graph.nodes):
            if node.op == "call_function":
                told = self._told_by_count(node)
                loss = told if node is loss else loss
                if told is node or told not in self.sums:
                    self._visit(told)
        output = next(n for n in self.graph.nodes if n.op == "output")
        if loss not in self.sums:
            output.replace_input_with(loss, self._shared(output, loss))

    def _visit(self, node: fx.Node) -> None:
        read = [n for n in operands(node) if n in self.sums]
        if not read:
            return
        linear = () if node in self.samples or node in self.sums else self._linear(node)
        for slots in (*linear, frozenset[int]()):
            others = [n for i, n in enumerate(operands(node)) if n in self.sums and i not in slots]
            if all(n in self.free for n in others):
                self._accept(node, slots, others)
                return
        self.mixed.append(node)

    def _told_by_count(self, node: fx.Node) -> fx.Node:
        """What asks a sum of samples by a count whether it is a number asks the count; ``node``, or what it became.

        A sum that is none itself is left as it is: then the loss is no number either, which a run refuses.
        """
        source = node.args[0] if node.target in _ASKING else None
        if not isinstance(source, fx.Node) or source not in self.sums or source in self.free:
            return node
        count = _divisor(source)
        asked = _ASKING[node.target]
        if asked is None:
            with self.graph.inserting_before(node):
                new = source if count is None else self._where_none(node, source, count)
        elif count is None or not all(_takes(user, source) for user in _readers(node)):
            return node
        else:
            with self.graph.inserting_before(node):
                new = emit(self.graph, node, asked, count, 0)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        return new

    def _where_none(self, node: fx.Node, source: fx.Node, count: fx.Node) -> fx.Node:
        """``source``, or what ``node`` makes of no number, where nothing is counted."""
        nothing = emit(self.graph, node, aten.eq.Scalar, count, 0)
        self.free.add(nothing)
        instead = dict(enumerate(node.args)).get(1, node.kwargs.get("nan")) or 0.0
        return emit(self.graph, node, aten.where.ScalarSelf, nothing, instead, source)

    def _linear(self, node: fx.Node) -> list[frozenset[int]]:
        """Sets of operands that ``node`` is linear in together, those first that hold most sums."""
        found = [
            frozenset(i for i, p in enumerate(s.operands) if p == PARTIAL) for s in partial(op_of(node))
        ]  # fmt: skip
        slot, place = _LINEAR_LITERAL.get(node.target, (0, None))
        if place is not None and not any(isinstance(a, fx.Node) for a in node.args[place : place + 1]):
            found.append(frozenset({slot}))
        found.append(frozenset(_CHOOSING.get(node.target, ())))
        sums = [i for i, n in enumerate(operands(node)) if n in self.sums]
        found = [slots for slots in found if any(i in slots for i in sums)]
        return sorted(found, key=lambda slots: -sum(i in slots for i in sums))

    def _accept(self, node: fx.Node, slots: frozenset[int], others: list[fx.Node]) -> None:
        """``node`` is linear in ``slots``; the other sums that it reads become counts."""
        sources = operands(node)
        alone = [sources[i] for i in slots if sources[i] not in self.sums]
        if any(n in self.samples for n in alone):
            self.mixed.append(node)
            return
        for other in others:
            node.replace_input_with(other, self._count(other, node))
        if not slots:
            return
        for lone in dict.fromkeys(alone):
            node.replace_input_with(lone, self._shared(node, lone))
        self._share_literal(node)
        self.sums.add(node)

    def _shared(self, before: fx.Node, node: fx.Node) -> fx.Node:
        """What is the same in every micro-batch, by this one's share."""
        dtype = node.meta["val"].dtype
        with self.graph.inserting_before(before):
            share = batch_share(self.graph)
            if dtype != torch.float64:
                share = emit(self.graph, before, aten.to.dtype, share, torch.float32)
            part = emit(self.graph, before, aten.mul.Tensor, node, share)
            if part.meta["val"].dtype != dtype and dtype.is_floating_point:
                part = emit(self.graph, before, aten.to.dtype, part, dtype)
        return part

    def _share_literal(self, node: fx.Node) -> None:
        _, place = _LINEAR_LITERAL.get(node.target, (0, None))
        number = node.args[place] if place is not None and place < len(node.args) else None
        if place is None or isinstance(number, fx.Node) or number is None or number == 0:
            return
        dtype = torch.float64 if node.meta["val"].dtype == torch.float64 else torch.float32
        with self.graph.inserting_before(node):
            whole = emit(self.graph, node, aten.full.default, [], number, dtype=dtype)
        node.update_arg(place, self._shared(node, whole))
        node.target = _OF_TENSORS.get(node.target, node.target)

    def _count(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """The placeholder of ``node`` summed over the global batch."""
        divides = reader.target == aten.div.Tensor and len(reader.args) > 1 and reader.args[1] is node
        if node not in self.cuts:
            name = f"count_{len(self.counts)}"
            self.counts.append(self._program(node, name, divides))
            self.cuts[node] = step_input(self.graph, name, shape_of(node), node.meta["val"].dtype)
            self.free.add(self.cuts[node])
        return self.cuts[node]

    def _program(self, node: fx.Node, name: str, divides: bool) -> Count:
        needed: set[fx.Node] = set()
        stack = [node]
        while stack:
            if (now := stack.pop()) not in needed:
                needed.add(now)
                stack += now.all_input_nodes
        new, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        names: list[str] = []
        levels = {c.name: c.level for c in self.counts}
        for one in [n for n in self.graph.nodes if n in needed]:
            copies[one] = new.node_copy(one, lambda n: copies[n])
            copies[one].meta = dict(one.meta)
            if one.op == "placeholder":
                names.append(value_name(one))
        new.output(copies[node])
        level = 1 + max((levels[n] for n in names if n in levels), default=-1)
        return Count(name, fx.GraphModule(nn.Module(), new), tuple(names), level, divides)


_OF_TENSORS: dict[object, Callable[..., object]] = {
    aten.where.ScalarOther: aten.where.self, aten.where.ScalarSelf: aten.where.self,
    aten.masked_fill.Scalar: aten.masked_fill.Tensor,
}  # fmt: skip
_ASKING: dict[object, Callable[..., object] | None] = {
    aten.nan_to_num.default: None, aten.isnan.default: aten.eq.Scalar, aten.isfinite.default: aten.ne.Scalar,
}  # fmt: skip


def _divisor(node: fx.Node) -> fx.Node | None:
    """What a quotient, or a cast of one, is divided by; None where it is none or that is a number."""
    while node.target == aten.to.dtype:
        node = arguments(node)[0]
    divisor = node.args[1] if node.target == aten.div.Tensor else None
    return divisor if isinstance(divisor, fx.Node) else None


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads a test, or its opposite."""
    opposite = [u for u in node.users if u.target in (aten.logical_not.default, aten.bitwise_not.default)]
    return [u for n in (node, *opposite) for u in n.users if u not in opposite]


def _takes(node: fx.Node, source: fx.Node) -> bool:
    """Whether an op puts something in the place of ``source`` where a test says so."""
    return node.target in _CHOOSES and source in operands(node)


_CHOOSES = (*_CHOOSING, aten.where.ScalarOther, aten.where.ScalarSelf, aten.masked_fill.Scalar)
