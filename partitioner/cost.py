"""The price of a unit under the layouts that were chosen: ops and the conversions between them, and what is kept.

Of one micro-batch, on the fullest rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import fx

from partitioner.cluster import Cluster
from partitioner.equations import Strategy
from partitioner.fold import Folded, is_parameter, trains
from partitioner.graph import Unit
from partitioner.layout import REPLICATE, Placement
from partitioner.price import (
    ZERO,
    Seconds,
    convert_seconds,
    node_bytes,
    op_flops,
    op_seconds,
    op_share,
    share,
)  # fmt: skip
from partitioner.rules import rule_of
from partitioner.saved import saved
from partitioner.shapes import op_of, operands
from partitioner.solve import Solution
from partitioner.strategies import is_tensor


@dataclass(frozen=True)
class UnitCost:
    """One unit, one micro-batch, one tp rank: compute, communication, and what is kept for backward.

    ``again``: seconds of compute and of communication that recompute runs, which ends with the last value kept.
    """

    compute: Seconds
    communication: Seconds
    again: tuple[float, float]
    saved_bytes: float
    input_bytes: float
    output_bytes: float
    flops: float

    @property
    def seconds(self) -> Seconds:
        """Compute and communication."""
        return self.compute + self.communication


@dataclass(frozen=True)
class Priced:
    """A folded graph whose layouts are chosen, with the price of each group's unit."""

    folded: Folded
    solution: Solution
    ranks: int
    cluster: Cluster
    groups: tuple[UnitCost, ...]

    @cached_property
    def held(self) -> dict[Unit, dict[fx.Node, tuple[float, int, bool]]]:
        """By unit and trained parameter: elements a rank holds, bytes an element, whether its gradient is Partial."""
        nodes = self.folded.graph.nodes
        graph = self.folded.graph
        read = {u: [n for name in u.nodes for n in operands(nodes[name]) if is_parameter(n)] for u in graph.units}
        return {unit: {n: self._held(n) for n in found if trains(graph, n)} for unit, found in read.items()}

    def _held(self, node: fx.Node) -> tuple[float, int, bool]:
        placement, value = self.solution.parameters[self.folded.parameter[self.folded.own(node)]], node.meta["val"]
        return value.numel() * share(node, placement, self.ranks), value.element_size(), placement == REPLICATE

    def unit(self, unit: Unit) -> UnitCost:
        """The price of one unit."""
        return self.groups[self.folded.group_of[unit.name + "/" + unit.nodes[0]]]


def price_units(folded: Folded, solution: Solution, ranks: int, cluster: Cluster) -> Priced:
    """Price every group of units once."""
    rows = tuple(_unit_cost(folded, solution, ranks, cluster, g) for g in range(len(folded.groups)))
    return Priced(folded, solution, ranks, cluster, rows)


def _unit_cost(folded: Folded, solution: Solution, ranks: int, cluster: Cluster, group: int) -> UnitCost:
    compute, communication, again, flops = ZERO, ZERO, (0.0, 0.0), 0.0
    moves = conversions(folded, solution, group)
    for reader in (*folded.body(group), None):
        for node, source, target in moves.get(reader, ()):
            link = cluster.link(ranks)
            seconds = convert_seconds(node, source, target, ranks, link, node in folded.differentiable)
            communication += seconds or ZERO
        if reader is not None:
            compute += op_seconds(reader, solution.strategies[reader], ranks, cluster)
            flops += op_flops(reader)
            if _keeps(reader, folded):
                again = compute.forward, communication.forward
    ports = {p: n for (g, n), p in folded.port_of.items() if g == group}
    held = sum(node_bytes(n) * share(n, solution.ports[p], ranks) for p, n in ports.items())
    made = [n for n in folded.body(group) if any(n in sources for sources in folded.sources.values())]
    output = sum(node_bytes(n) * share(n, solution.made(n), ranks) for n in made)
    kept = saved_bytes(folded, solution, ranks, group)
    return UnitCost(compute, communication, again, kept, held, output, flops)


def _keeps(node: fx.Node, folded: Folded) -> bool:
    """Whether backward needs something of an op."""
    rule = rule_of(str(node.target))
    return node in folded.differentiable and bool((rule and rule.hidden) or saved(node, folded.differentiable))


Move = tuple[fx.Node, Placement, Placement]


def conversions(folded: Folded, solution: Solution, group: int) -> dict[fx.Node | None, list[Move]]:
    """(value, from, to) of each conversion that a unit of the group makes, each once, by the op that first needs it.

    None stands for what later units need.
    """
    found: dict[Move, fx.Node | None] = {}
    for node in folded.body(group):
        for operand, target in zip(operands(node), solution.strategies[node].operands, strict=True):
            port = folded.port_of.get((group, operand))
            if port is None and (is_parameter(operand) or operand not in folded.node):
                continue
            source = solution.made(port if port is not None else folded.node[operand])
            if source != target and is_tensor(operand):
                found.setdefault((operand, source, target), node)
    for node in folded.body(group):
        for port, sources in folded.sources.items():
            if node in sources and solution.made(node) != solution.ports[port]:
                found.setdefault((node, solution.made(node), solution.ports[port]), None)
    rows: dict[fx.Node | None, list[Move]] = {}
    for move, reader in found.items():
        rows.setdefault(reader, []).append(move)
    return rows


def saved_bytes(folded: Folded, solution: Solution, ranks: int, group: int) -> float:
    """Bytes that backward keeps of one unit, by the rules; a view counts as what it views, a parameter not at all."""
    kept: dict[tuple[fx.Node, Placement | None], float] = {}
    hidden = 0.0
    for node in folded.body(group):
        rule, strategy = rule_of(str(node.target)), solution.strategies[node]
        if node not in folded.differentiable or not is_tensor(node):
            continue
        if rule and rule.hidden:
            hidden += rule.hidden(op_of(node), node.meta["val"].element_size()) * op_share(node, strategy, ranks)
        for value in saved(node, folded.differentiable):
            base, placement = _base(value), _placement(node, strategy, value)
            if base in folded.node or (group, base) in folded.port_of:
                kept[base, placement if base is value else None] = node_bytes(value) * share(value, placement, ranks)
    return hidden + sum(kept.values())


def _placement(node: fx.Node, strategy: Strategy, value: fx.Node) -> Placement:
    """How ``node`` has the value that it keeps: as its result, or as an operand."""
    found = strategy.result if value is node else strategy.operands[operands(node).index(value)]
    assert not isinstance(found, tuple)
    return found


def _base(node: fx.Node) -> fx.Node:
    while node.op == "call_function":
        rule = rule_of(str(node.target))
        if rule is None or not rule.view:
            break
        node = operands(node)[0]
    return node
