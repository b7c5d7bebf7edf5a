"""What axes that are laid out already leave of a folded graph for another: sizes on a first rank, and ops of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import fx

from partitioner.graph.nodes import is_tensor, op_of, operands, shape_of
from partitioner.graph.tied_blocks import Folded, Port, Value
from partitioner.layouts.local_sizes import localize
from partitioner.layouts.solution import Solution
from partitioner.sharding.equations import Strategies, Strategy
from partitioner.sharding.layout import WHOLE, Layout, Shard, everywhere, largest_shape
from partitioner.sharding.mesh_axes import Axes
from partitioner.sharding.op_equations import Op

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Left:
    """``fixed``: the layouts on the axes that are laid out; None where there are none yet."""

    folded: Folded
    fixed: Solution | None = None

    @property
    def axes(self) -> Axes:
        """Those that are laid out."""
        return self.fixed.axes if self.fixed else ()

    def made(self, value: Value) -> Layout:
        """How a value lies on them when it is made."""
        if self.fixed is None:
            return ()
        is_laid = isinstance(value, Port) or value in self.fixed.strategies or value in self.fixed.parameters
        return self.fixed.made(value) if is_laid else everywhere(WHOLE, self.axes)

    def operand(self, node: fx.Node, slot: int) -> Layout:
        """How an op has an operand."""
        return self.fixed.strategies[node].operands[slot] if self.fixed else ()

    def together(self, node: fx.Node, strategy: Strategy) -> Strategies:
        """An op's strategies with that on one more axis."""
        return Strategies((*(self.fixed.strategies[node].each if self.fixed else ()), strategy))

    def shape(self, node: fx.Node, lies: Value | None = None) -> Shape:
        """Of a value as it is made, or as it ``lies`` in a port."""
        return largest_shape(shape_of(node), self.made(lies or node), self.axes) if self.fixed else shape_of(node)

    def is_even(self, value: Value, dim: int) -> bool:
        """Whether all ranks have as many elements of a dimension of a value as it is made."""
        rows = zip(self.made(value), self.axes, strict=True)
        return all(p.is_even(ranks) for p, (_, ranks) in rows if isinstance(p, Shard) and p.dim == dim)

    def op(self, node: fx.Node) -> Op:
        """What rules look at of an op on the first rank."""
        if node not in self._ops:
            self._ops[node] = self._op(node)
        return self._ops[node]

    def _op(self, node: fx.Node) -> Op:
        if self.fixed is None or not is_tensor(node):
            return op_of(node)
        lies = self.fixed.strategies[node]
        rows = zip(operands(node), lies.operands, strict=True)
        sides = tuple(largest_shape(shape_of(n), p, self.axes) if is_tensor(n) else () for n, p in rows)
        return op_of(node, *localize(node, lies.result, self.axes)).sized(sides, self.shape(node))

    @cached_property
    def _ops(self) -> dict[fx.Node, Op]:
        return {}


