"""What a unit communicates for the sake of its layouts, in one micro-batch, as one rank sends it.

conversion    of a value that lies otherwise than an op, or a later unit, needs it      over tp
inside        an op of ours: cross entropy over a divided vocabulary                    over tp
context       attention's keys and values, where ranks share a sample's tokens          over cp
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import fx

from partitioner.cluster import Cluster, Route, Software
from partitioner.cost.collective_seconds import collective_seconds, rank_payloads
from partitioner.cost.op_seconds import Seconds
from partitioner.cost.op_work import Setting
from partitioner.graph.nodes import operands
from partitioner.layouts.conversions import Conversion, conversions
from partitioner.layouts.op_kinds import is_attention
from partitioner.layouts.solution import Solution
from partitioner.ops.collective_kinds import ALL_GATHER, REDUCE_SCATTER
from partitioner.ops.collectives import conversion, payloads
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import REPLICATE, Placement
from partitioner.sharding.mesh_axes import CP, TP

_HIDDEN = 0.25  # share of a tensor-parallel collective that hides where it runs in pieces beside its product


def least_exposed(software: Software) -> float:
    """The share of a collective's seconds that is left where there is compute enough to hide the rest."""
    return 1 - _HIDDEN if software.overlap_tensor else 1.0


def exposed(sent: Seconds, compute: Seconds, software: Software) -> Seconds:
    """What running in pieces beside the products leaves, or what compute is too short to hide."""
    if not software.overlap_tensor:
        return sent
    least = least_exposed(software)
    pairs = (sent.forward, compute.forward), (sent.backward, compute.backward)
    return Seconds(*(max(s * least, s - c) for s, c in pairs))


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
    def conversion(self) -> Conversion:
        """What becomes of it."""
        return Conversion(self.value, self.source, self.target)

    @property
    def seconds(self) -> Seconds:
        """Of all that is sent."""
        return Seconds(sum(s.seconds for s in self.forward), sum(s.seconds for s in self.backward))


def moved(setting: Setting, solution: Solution, cluster: Cluster, group: int) -> dict[fx.Node | None, list[Moved]]:
    """By the op that first needs it; None stands for what later units need."""
    route, found = cluster.route(setting.ranks), dict[fx.Node | None, list[Moved]]()
    for reader, rows in conversions(setting.folded, solution, group).items():
        found[reader] = [_converted(setting, move, route) for move in rows]
    routes = routes_of(setting, cluster)
    for node in setting.folded.body(group):
        inside = sent_by_op(setting, node, solution.strategies[node], routes)
        if inside:
            found.setdefault(node, []).extend(inside)
    return found


class Routes(NamedTuple):
    """Between the ranks of tp and those of cp."""

    tp: Route
    cp: Route


def routes_of(setting: Setting, cluster: Cluster) -> Routes:
    """Of a cluster whose neighbours are tp's."""
    return Routes(cluster.route(setting.ranks), cluster.route(setting.cp, setting.ranks))


def sent_by_op(setting: Setting, node: fx.Node, strategy: Strategy, routes: Routes) -> list[Moved]:
    """What an op sends by itself where it runs by a strategy."""
    context = _context(setting, node, strategy, routes.cp) if setting.cp > 1 and is_attention(node) else []
    return _inside(setting, node, strategy, routes.tp) + context


def _converted(setting: Setting, move: Conversion, route: Route) -> Moved:
    value, source, target = move
    differentiable = value in setting.folded.differentiable
    rows, size = conversion(source, target, setting.ranks, differentiable) or (), setting.bytes(value, REPLICATE)
    forward = _sent(payloads(size, rows, setting.ranks, "forward"), route)
    backward = _sent(payloads(size, rows, setting.ranks, "backward"), route) if differentiable else ()
    return Moved(value, source, target, TP, forward, backward)


def _inside(setting: Setting, node: fx.Node, strategy: Strategy, route: Route) -> list[Moved]:
    forward, backward = (_sent(way, route) for way in rank_payloads(setting, node, strategy))
    if not forward and not backward:
        return []
    assert not isinstance(strategy.result, tuple)
    return [Moved(operands(node)[0], strategy.operands[0], strategy.result, TP, forward, backward)]


def _context(setting: Setting, node: fx.Node, strategy: Strategy, route: Route) -> list[Moved]:
    """Keys and values gathered over cp, again for backward, and their gradients scattered."""
    found = list[Moved]()
    for value, placement in list(zip(operands(node), strategy.operands, strict=True))[1:3]:
        size = setting.bytes(value, placement) * setting.cp
        gathered, scattered = _sent([(ALL_GATHER, size)], route), _sent([(REDUCE_SCATTER, size)], route)
        found.append(Moved(value, placement, placement, CP, gathered, (*gathered, *scattered)))
    return found


def _sent(rows: Iterable[tuple[str, float]], route: Route) -> tuple[Sent, ...]:
    return tuple(Sent(kind, size, collective_seconds(kind, size, route)) for kind, size in rows)
