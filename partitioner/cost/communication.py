"""What a unit communicates for the sake of its layouts, in one micro-batch, as one rank sends it.

conversion    of a value that lies otherwise than an op, or a later unit, needs it      over tp
inside        an op of ours: cross entropy over a divided vocabulary                    over tp
context       attention's keys and values, where ranks share a sample's tokens          over cp
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import fx

from partitioner.cluster import Cluster, Route
from partitioner.cost.collective_seconds import collective_seconds, reductions
from partitioner.cost.materialized import is_attention
from partitioner.cost.op_seconds import Seconds
from partitioner.cost.op_work import Setting
from partitioner.graph.graph import Unit
from partitioner.graph.nodes import is_parameter, is_tensor, operands
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.solution import Solution
from partitioner.ops.collective_kinds import ALL_GATHER, REDUCE_SCATTER
from partitioner.ops.collectives import conversion, payloads
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import REPLICATE, WHOLE, Placement

Move = tuple[fx.Node, Placement, Placement]
Handed = frozenset[tuple[fx.Node, Placement]]


class Sent(NamedTuple):
    """One collective: its kind, its payload, and what it takes where nothing hides it."""

    kind: str
    bytes: float
    seconds: float


class Moved(NamedTuple):
    """What becomes of a value, and what is sent for it each way."""

    value: fx.Node
    source: Placement
    target: Placement
    axis: str
    forward: tuple[Sent, ...]
    backward: tuple[Sent, ...]

    @property
    def seconds(self) -> Seconds:
        """Of all that is sent."""
        return Seconds(sum(s.seconds for s in self.forward), sum(s.seconds for s in self.backward))


def moved(setting: Setting, solution: Solution, cluster: Cluster, group: int) -> dict[fx.Node | None, list[Moved]]:
    """By the op that first needs it; None stands for what later units need."""
    route, found = cluster.route(setting.ranks), dict[fx.Node | None, list[Moved]]()
    for reader, rows in conversions(setting.folded, solution, group).items():
        found[reader] = [_converted(setting, move, route) for move in rows]
    for node in setting.folded.body(group):
        strategy = solution.strategies[node]
        inside = _inside(setting, node, strategy, route)
        if inside:
            found.setdefault(node, []).extend(inside)
        if setting.cp > 1 and is_attention(node):
            across = cluster.route(setting.cp, setting.ranks)
            found.setdefault(node, []).extend(_context(setting, node, strategy, across))
    return found


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


def handed_on(folded: Folded, solution: Solution) -> dict[Unit, Handed]:
    """Of each unit, what later units want of it in other layouts than it makes."""
    graph = folded.graph
    home = {graph.nodes[name]: unit for unit in graph.units for name in unit.nodes}
    found: dict[Unit, set[tuple[fx.Node, Placement]]] = {unit: set() for unit in graph.units}
    for group, units in enumerate(folded.groups):
        ports = sorted((p for p in folded.sources if p.group == group), key=lambda p: p.index)
        for unit in units:
            for value, port in zip(folded.entering[unit], ports, strict=True):
                made = folded.node[value]
                if solution.made(made) != solution.ports[port]:
                    found[home[value]].add((made, solution.ports[port]))
    return {unit: frozenset(rows) for unit, rows in found.items()}


def _converted(setting: Setting, move: Move, route: Route) -> Moved:
    value, source, target = move
    differentiable = value in setting.folded.differentiable
    rows, size = conversion(source, target, setting.ranks, differentiable) or (), setting.bytes(value, REPLICATE)
    forward = _sent(payloads(size, rows, setting.ranks, "forward"), route)
    backward = _sent(payloads(size, rows, setting.ranks, "backward"), route) if differentiable else ()
    return Moved(value, source, target, "tp", forward, backward)


def _inside(setting: Setting, node: fx.Node, strategy: Strategy, route: Route) -> list[Moved]:
    rows = _sent(reductions(setting, node, strategy), route)
    return [Moved(operands(node)[0], strategy.operands[0], WHOLE, "tp", rows, ())] if rows else []


def _context(setting: Setting, node: fx.Node, strategy: Strategy, route: Route) -> list[Moved]:
    """Keys and values gathered over cp, again for backward, and their gradients scattered."""
    found = list[Moved]()
    for value, placement in list(zip(operands(node), strategy.operands, strict=True))[1:3]:
        size = setting.bytes(value, placement) * setting.cp
        gathered, scattered = _sent([(ALL_GATHER, size)], route), _sent([(REDUCE_SCATTER, size)], route)
        found.append(Moved(value, placement, placement, "cp", gathered, (*gathered, *scattered)))
    return found


def _sent(rows: Iterable[tuple[str, float]], route: Route) -> tuple[Sent, ...]:
    return tuple(Sent(kind, size, collective_seconds(kind, size, route)) for kind, size in rows)
