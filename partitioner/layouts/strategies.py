"""All legal ways to run each folded op on one axis: shards spread from every dimension to a fixpoint.

Axes that are laid out already have left an op smaller. Where they divide a dimension of a value otherwise as it is made
and as an op has it, a shard of that dimension is one of what is left there.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from partitioner.graph.nodes import is_parameter, is_tensor, operands
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.left_sizes import Left
from partitioner.layouts.solution import Solution
from partitioner.ops.autograd_functions import AutogradCall
from partitioner.ops.rank_form import rank_forms
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import Shard, resized, shard_whole
from partitioner.sharding.mesh_axes import AXES, whole
from partitioner.sharding.op_rules import complete, partial, replicated, rule_of


@dataclass(frozen=True)
class Space:
    """On an ``axis`` of ``ranks``: strategies by representative op, and the shards seen of every representative value
    and parameter, as they are made of what other axes ``left``."""

    axis: str
    ranks: int
    left: Left
    strategies: dict[fx.Node, tuple[Strategy, ...]]
    shards: dict[fx.Node, tuple[Shard, ...]]


def space(folded: Folded, axis: str, ranks: int, fixed: Solution | None = None) -> Space:
    """Enumerate; with one rank every op has the one strategy WHOLE. ``fixed``: the layouts on outer axes."""
    nodes, left = [n for g in range(len(folded.groups)) for n in folded.body(g)], Left(folded, fixed)
    if ranks == 1:
        return Space(axis, 1, left, {n: replicated(len(operands(n)))[:1] for n in nodes}, {})
    builder = _Builder(left, axis, ranks)
    for node in nodes:
        builder.seed(node)
        for operand in operands(node):
            if is_parameter(operand):
                builder.seed(folded.parameter[operand])
    builder.spread(nodes)
    shards = {n: tuple(sorted(found)) for n, found in builder.shards.items()}
    return Space(axis, ranks, left, {n: builder.all_of(n) for n in nodes}, shards)


class _Builder:
    """Spreads shards: ``shards`` by value, ``found`` strategies by op."""

    def __init__(self, left: Left, axis: str, ranks: int) -> None:
        self.folded, self.left, self.axis, self.ranks = left.folded, left, axis, ranks
        self.divides_parameters = "parameters" in AXES[whole(axis)].divides
        self.shards: dict[fx.Node, dict[Shard, None]] = {}
        self.found: dict[fx.Node, dict[Strategy, None]] = {}
        self.work: list[tuple[fx.Node, Shard]] = []

    def all_of(self, node: fx.Node) -> tuple[Strategy, ...]:
        """An op's strategies, those first that divide nothing."""
        many = len(operands(node))
        if isinstance(node.target, AutogradCall):  # its backward need not be linear in a gradient that is Partial
            return replicated(many)[:1]
        if not is_tensor(node):
            return replicated(many)
        return (*replicated(many), *partial(self.left.op(node)), *self.found.get(node, {}))

    def seed(self, node: fx.Node) -> None:
        if not is_tensor(node):
            return
        for dim, size in enumerate(self.left.shape(node)):
            if size >= self.ranks:
                self.add(node, shard_whole(dim, size, self.ranks))

    def value(self, node: fx.Node) -> fx.Node:
        """The representative of a value or parameter; others stand for themselves."""
        return self.folded.node.get(node) or self.folded.parameter.get(node) or node

    def add(self, node: fx.Node, shard: Shard) -> bool:
        """Note a shard of a value unless it is illegal there; whether it is legal."""
        if not self.legal(node, shard):
            return False
        known = self.shards.setdefault(node, {})
        if shard not in known:
            known[shard] = None
            self.work.append((node, shard))
        return True

    def legal(self, node: fx.Node, shard: Shard) -> bool:
        """The batch is dp's to divide; every rank holds something; what divides unevenly does so once."""
        if any(s.units < self.ranks for s in shard.segments) or not self.left.is_even(node, shard.dim):
            return False
        if is_parameter(node) and not self.divides_parameters:
            return False
        batch = self.folded.sized.batch_layout.get(node.name)
        if batch is None or batch.dim != shard.dim:
            return True
        rows = batch.segments[0].repeat * batch.segments[0].units
        return all(s.repeat % rows == 0 for s in shard.segments)

    def expressible(self, op: fx.Node, strategy: Strategy) -> bool:
        """Uneven results need a size inferred from the operand, which neither a grown dimension nor a part has. What
        communicates inside does so on one axis."""
        result = strategy.result
        if self.left.axes and len(self.forms(op, strategy)) > 1:
            return False
        if not isinstance(result, Shard) or result.is_even(self.ranks):
            return True
        if not all(self.left.is_even(op, dim) for dim in range(len(self.left.shape(op)))):
            return False  # no more than one size can be inferred
        rule = rule_of(str(op.target))
        kind = rule.literals.kind if rule and rule.literals else ""
        if kind == "parts":
            return self.left.op(op).literal("dim") != result.dim
        return kind != "grown" or isinstance(strategy.operands[0], Shard)

    def forms(self, op: fx.Node, strategy: Strategy) -> list[object]:
        axes = (*self.left.axes, (self.axis, self.ranks))
        return list(rank_forms(self.left.op(op), op.args, self.left.together(op, strategy), axes))

    def spread(self, nodes: list[fx.Node]) -> None:
        users: dict[fx.Node, list[tuple[fx.Node, int]]] = {}
        for node in nodes:
            users.setdefault(node, []).append((node, -1))
            for slot, operand in enumerate(operands(node)):
                users.setdefault(self.value(operand), []).append((node, slot))
        while self.work:
            value, shard = self.work.pop(0)
            for op, slot in users.get(value, ()):
                if is_tensor(op) and all(is_tensor(n) for n in operands(op)):
                    shape = self.left.op(op).operands[slot] if slot >= 0 else self.left.shape(op)
                    self.apply(op, slot, resized(shard, shape[shard.dim], self.ranks))

    def apply(self, op: fx.Node, slot: int, shard: Shard | None) -> None:
        strategy = complete(self.left.op(op), slot, shard, self.ranks) if shard else None
        if strategy is None or strategy in self.found.get(op, {}):
            return
        shards = list[tuple[fx.Node, Shard | None]]()
        for operand, placement in zip(operands(op), strategy.operands, strict=True):
            if isinstance(placement, Shard):
                value = self.value(operand)
                shards.append((value, resized(placement, self.left.shape(value)[placement.dim], self.ranks)))
        if isinstance(strategy.result, Shard):
            shards.append((op, strategy.result))
        if all(p is not None and self.legal(n, p) for n, p in shards) and self.expressible(op, strategy):
            self.found.setdefault(op, {})[strategy] = None
            for node, shard in shards:
                assert shard is not None
                self.add(node, shard)
