"""All legal ways to run each folded op on one axis: shards spread from every dimension to a fixpoint."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from partitioner.graph.graph import op_of
from partitioner.graph.nodes import is_parameter, is_tensor, operands, shape_of
from partitioner.graph.tied_blocks import Folded
from partitioner.ops.autograd_functions import AutogradCall
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import Placement, Shard, shard_whole
from partitioner.sharding.op_rules import complete, partial, replicated, rule_of


@dataclass(frozen=True)
class Space:
    """Strategies by representative op, and the shards seen of every representative value and parameter."""

    ranks: int
    strategies: dict[fx.Node, tuple[Strategy, ...]]
    shards: dict[fx.Node, tuple[Shard, ...]]


def space(folded: Folded, ranks: int) -> Space:
    """Enumerate; with one rank every op has the one strategy WHOLE."""
    nodes = [n for g in range(len(folded.groups)) for n in folded.body(g)]
    if ranks == 1:
        return Space(1, {n: replicated(len(operands(n)))[:1] for n in nodes}, {})
    builder = _Builder(folded, ranks)
    for node in nodes:
        builder.seed(node)
        for operand in operands(node):
            if is_parameter(operand):
                builder.seed(folded.parameter[operand])
    builder.spread(nodes)
    shards = {n: tuple(sorted(found)) for n, found in builder.shards.items()}
    return Space(ranks, {n: _all(n, builder.found.get(n, {})) for n in nodes}, shards)


def _all(node: fx.Node, found: dict[Strategy, None]) -> tuple[Strategy, ...]:
    if isinstance(node.target, AutogradCall):  # its backward need not be linear in a gradient that is Partial
        return replicated(len(operands(node)))[:1]
    if not is_tensor(node):
        return replicated(len(operands(node)))
    return (*replicated(len(operands(node))), *partial(op_of(node)), *found)


class _Builder:
    """Spreads shards: ``shards`` by value, ``found`` strategies by op."""

    def __init__(self, folded: Folded, ranks: int) -> None:
        self.folded, self.ranks = folded, ranks
        self.shards: dict[fx.Node, dict[Shard, None]] = {}
        self.found: dict[fx.Node, dict[Strategy, None]] = {}
        self.work: list[tuple[fx.Node, Shard]] = []

    def seed(self, node: fx.Node) -> None:
        if not is_tensor(node):
            return
        for dim, size in enumerate(shape_of(node)):
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
        """The batch is dp's to divide; every rank holds something; only parameters' dimensions divide unevenly."""
        if any(s.units < self.ranks for s in shard.segments):
            return False
        batch = self.folded.sized.batch_layout.get(node.name)
        if batch is None or batch.dim != shard.dim:
            return True
        rows = batch.segments[0].repeat * batch.segments[0].units
        return all(s.repeat % rows == 0 for s in shard.segments)

    def expressible(self, op: fx.Node, strategy: Strategy) -> bool:
        """Uneven results need a size inferred from the operand, which neither a grown dimension nor a part has."""
        result = strategy.result
        if not isinstance(result, Shard) or result.is_even(self.ranks):
            return True
        rule = rule_of(str(op.target))
        kind = rule.literals.kind if rule and rule.literals else ""
        if kind == "parts":
            return op_of(op).literal("dim") != result.dim
        return kind != "grown" or isinstance(strategy.operands[0], Shard)

    def spread(self, nodes: list[fx.Node]) -> None:
        users: dict[fx.Node, list[tuple[fx.Node, int]]] = {}
        for node in nodes:
            users.setdefault(node, []).append((node, -1))
            for slot, operand in enumerate(operands(node)):
                users.setdefault(self.value(operand), []).append((node, slot))
        while self.work:
            value, shard = self.work.pop(0)
            for op, slot in users.get(value, ()):
                self.apply(op, slot, shard)

    def apply(self, op: fx.Node, slot: int, shard: Shard) -> None:
        if not is_tensor(op) or not all(is_tensor(n) for n in operands(op)):
            return
        strategy = complete(op_of(op), slot, shard, self.ranks)
        if strategy is None or strategy in self.found.get(op, {}):
            return
        sides: list[tuple[fx.Node, Placement]] = list(zip(operands(op), strategy.operands, strict=True))
        assert not isinstance(strategy.result, tuple)
        sides.append((op, strategy.result))
        shards = [(self.value(n), p) for n, p in sides if isinstance(p, Shard)]
        if all(self.legal(n, p) for n, p in shards) and self.expressible(op, strategy):
            self.found.setdefault(op, {})[strategy] = None
            for node, placement in shards:
                self.add(node, placement)
