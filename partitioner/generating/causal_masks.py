"""Does a mask hide what comes later? Told from its values, where they are constant, through the ops that make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from partitioner.graph.dependence import constants, evaluate
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import operands
from partitioner.sharding.op_rules import rule_of

aten = torch.ops.aten
MOST_ELEMENTS = 1 << 26  # of a constant that is looked at
LOW = -1e4  # what is added to hide is no more


@dataclass(frozen=True)
class Mask:
    """What a mask lets be seen: of positions before at the most ``reach`` of the last, itself counted; ``exact``: all
    of those, for every sample and head, and nothing else."""

    reach: int
    exact: bool = False


class Masks:
    """Of a Graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._fixed = graph, constants(graph.module.graph)
        self._known: dict[tuple[fx.Node, bool], Mask | None] = {}
        self._uniform: dict[fx.Node, bool] = {}

    def hides(self, node: fx.Node, hidden: bool | None = None) -> Mask | None:
        """What a mask, or scores that one was put on, let be seen, if that is sure to be nothing later; else None.

        ``hidden``: the truth value that hides, of a boolean; None: false hides, or of numbers a low one.
        """
        key = node, bool(hidden)
        if key not in self._known:
            self._known[key] = self._constant(node, hidden) if node in self._fixed else self._made(node, hidden)
        return self._known[key]

    def _constant(self, node: fx.Node, hidden: bool | None) -> Mask | None:
        value = self.value(node)
        if value.dim() < 2 or value.shape[-1] != value.shape[-2]:
            return None
        seen = value != bool(hidden) if value.dtype == torch.bool else value > LOW
        rows, columns = seen.shape[-2:]
        later = torch.ones(rows, columns, dtype=torch.bool).triu(1)
        if bool((seen & later).any()):
            return None
        some = seen.flatten(0, -3).any(0) if seen.dim() > 2 else seen
        back = torch.arange(rows)[:, None] - torch.arange(columns)
        reach = int(back[some].max()) + 1 if bool(some.any()) else 1
        band = (back >= 0) & (back < reach)
        plain = value.dtype == torch.bool or bool(((value == 0) | (value <= LOW)).all())
        return Mask(reach, plain and bool((seen == band).all()))

    def value(self, node: fx.Node) -> torch.Tensor:
        """Of a constant."""
        return evaluate(self._graph.module.graph, self._fixed, {node}, self._graph.buffers)[node]

    def is_uniform(self, node: fx.Node) -> bool:
        """Whether a node is a constant of one number throughout."""
        if node not in self._uniform:
            few = node in self._fixed and node.meta["val"].numel() <= MOST_ELEMENTS
            value = self.value(node).flatten() if few and node.op == "call_function" else None
            self._uniform[node] = value is not None and len(value) > 0 and bool((value == value[0]).all())
        return self._uniform[node]

    def _made(self, node: fx.Node, hidden: bool | None) -> Mask | None:
        if node.op != "call_function":
            return None
        row = _MADE.get(node.target)
        if row is not None:
            return row(self, node, hidden)
        rule = rule_of(str(node.target))
        return self.hides(operands(node)[0], hidden) if rule and rule.view and not rule.reorders else None

    def _any(self, node: fx.Node, hidden: bool | None) -> Mask | None:
        found = [m for n in operands(node) if (m := self.hides(n, hidden))]
        return Mask(min(m.reach for m in found), False) if found else None

    def _filled(self, node: fx.Node, mask: fx.Node, hidden: bool, low: Any, kept: Any) -> Mask | None:
        own = self.hides(mask, hidden) if self._is_low(low) else None
        rest = self.hides(kept) if isinstance(kept, fx.Node) else None
        found = [m.reach for m in (own, rest) if m]
        return Mask(min(found)) if found else None

    def _is_low(self, value: Any) -> bool:
        if isinstance(value, fx.Node):
            return value in self._fixed and bool((self.value(value) <= LOW).all())
        return isinstance(value, int | float) and value <= LOW


def _scaled(masks: Masks, node: fx.Node, hidden: bool | None) -> Mask | None:
    """By a positive number."""
    by = node.args[1]
    return masks.hides(operands(node)[0], hidden) if isinstance(by, int | float) and by > 0 else None


def _masked_fill(masks: Masks, node: fx.Node, hidden: bool | None) -> Mask | None:
    source, mask, value = node.args
    return masks._filled(node, mask, True, value, source)  # pyright: ignore


def _where(masks: Masks, node: fx.Node, hidden: bool | None) -> Mask | None:
    """What is low where the condition does not hold, or where it does."""
    condition, yes, no = node.args
    first = masks._filled(node, condition, False, no, yes)  # pyright: ignore
    return first or masks._filled(node, condition, True, yes, no)  # pyright: ignore


def _not(masks: Masks, node: fx.Node, hidden: bool | None) -> Mask | None:
    return masks.hides(operands(node)[0], not hidden)


def _and(masks: Masks, node: fx.Node, hidden: bool | None) -> Mask | None:
    return None if hidden else masks._any(node, hidden)  # pyright: ignore[reportPrivateUsage]


def _or(masks: Masks, node: fx.Node, hidden: bool | None) -> Mask | None:
    return masks._any(node, hidden) if hidden else None  # pyright: ignore[reportPrivateUsage]


def _added(masks: Masks, node: fx.Node, hidden: bool | None) -> Mask | None:
    return masks._any(node, hidden)  # pyright: ignore[reportPrivateUsage]


def _same(masks: Masks, node: fx.Node, hidden: bool | None) -> Mask | None:
    return masks.hides(operands(node)[0], hidden)


_MADE: dict[object, Callable[[Masks, fx.Node, bool | None], Mask | None]] = {
    aten.add.Tensor: _added, aten.to.dtype: _same, aten.clone.default: _same, aten.mul.Tensor: _scaled,
    aten.div.Tensor: _scaled, aten.masked_fill.Scalar: _masked_fill, aten.masked_fill.Tensor: _masked_fill,
    aten.where.self: _where, aten.where.ScalarOther: _where, aten.where.ScalarSelf: _where,
    aten.where.Scalar: _where, aten.logical_not.default: _not, aten.bitwise_not.default: _not,
    aten.logical_and.default: _and, aten.bitwise_and.Tensor: _and, aten.__and__.Tensor: _and,
    aten.logical_or.default: _or, aten.__or__.Tensor: _or, aten.bitwise_or.Tensor: _or,
}  # fmt: skip
