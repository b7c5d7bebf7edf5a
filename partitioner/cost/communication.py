"""What a unit communicates for the sake of its layouts, in one micro-batch, as one rank sends it.

conversion    of a value that lies otherwise than an op, or a later unit, needs it
inside        an op of ours: cross entropy over a divided vocabulary
context       attention's keys and values, where ranks share a sample's tokens: gathered, or passed on from rank to rank
              while attention runs on those that are there (Liu et al., Ring Attention, 2023)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import fx

from partitioner.cluster import Cluster
from partitioner.cost.conversion_seconds import WAYS, sent_bytes, sent_inside
from partitioner.cost.materialized import distinct
from partitioner.cost.op_seconds import ZERO, Seconds, op_seconds
from partitioner.cost.op_work import Setting
from partitioner.graph.nodes import operands
from partitioner.hardware.link import Route
from partitioner.kernel_seconds.collective import collective_seconds
from partitioner.layouts.conversions import Conversion, conversions, hops_of
from partitioner.layouts.op_kinds import is_attention
from partitioner.layouts.solution import Solution
from partitioner.ops.collective_kinds import ALL_GATHER, REDUCE_SCATTER
from partitioner.sharding.equations import Strategies
from partitioner.sharding.layout import Layout
from partitioner.software import Software

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
    """What becomes of a value, and what is sent for it each way; ``number``: of a conversion by several collectives,
    the one's place. ``beside``: seconds of compute that run meanwhile, in forward and in backward."""

    value: fx.Node
    source: Layout
    target: Layout
    axis: str
    forward: tuple[Sent, ...]
    backward: tuple[Sent, ...]
    number: int = 0
    beside: Seconds = ZERO

    @property
    def conversion(self) -> Conversion:
        """What becomes of it in the end."""
        return Conversion(self.value, self.source, self.target)

    @property
    def seconds(self) -> Seconds:
        """Of all that is sent, where nothing runs meanwhile."""
        sent, beside = (sum(s.seconds for s in way) for way in (self.forward, self.backward)), self.beside
        return Seconds(*(max(0.0, s - c) for s, c in zip(sent, (beside.forward, beside.backward), strict=True)))


def moved(setting: Setting, solution: Solution, cluster: Cluster, group: int) -> dict[fx.Node | None, list[Moved]]:
    """By the op that first needs it; None stands for what later units need."""
    routes, found = setting.routes(cluster), dict[fx.Node | None, list[Moved]]()
    for reader, rows in conversions(setting.folded, solution, group).items():
        found[reader] = [row for move in rows for row in _converted(setting, move, routes)]
    for node in setting.folded.body(group):
        inside = sent_by_op(setting, node, solution.strategies[node], routes, cluster)
        if inside:
            found.setdefault(node, []).extend(inside)
    return found


Routes = Mapping[str, Route]


def sent_by_op(
    setting: Setting, node: fx.Node, strategies: Strategies, routes: Routes, cluster: Cluster
) -> list[Moved]:
    """What an op sends by itself where it runs by these strategies."""
    found = [*_inside(setting, node, strategies, routes)]
    if setting.sharers > 1 and is_attention(node):
        hides = cluster.software.overlap_context
        attention = op_seconds(setting, node, strategies, cluster) if hides else ZERO
        found += _context(setting, node, strategies, routes, attention)
    return found


def _converted(setting: Setting, move: Conversion, routes: Routes) -> Iterator[Moved]:
    """Each collective of a conversion; of one that has none, that nothing is sent."""
    value, source, target = move
    differentiable = value in setting.folded.differentiable
    hops = hops_of(move, setting.axes, differentiable)
    if not hops:
        yield Moved(value, source, target, setting.axes[0][0], (), ())
    for number, hop in enumerate(hops):
        route = routes[hop.axis]
        rows = ([(hop.sent(way), sent_bytes(setting, value, hop, way))] if hop.sent(way) else () for way in WAYS)
        forward, backward = (_sent(row, route) for row in rows)
        yield Moved(value, source, target, hop.axis, forward, backward if differentiable else (), number)


def _inside(setting: Setting, node: fx.Node, strategies: Strategies, routes: Routes) -> Iterator[Moved]:
    for axis, *ways in sent_inside(setting, node, strategies):
        forward, backward = (_sent(way, routes[axis]) for way in ways)
        if forward or backward:
            yield Moved(operands(node)[0], strategies.operands[0], strategies.result, axis, forward, backward)


def _context(
    setting: Setting, node: fx.Node, strategies: Strategies, routes: Routes, attention: Seconds
) -> Iterator[Moved]:
    """Keys and values gathered over each axis that shares tokens, again for backward, and their gradients scattered.

    Heads that several of queries share are sent once. The last of a ring's parts is computed on when all are there:
    keys and values, and each of the axes, hide behind their part of the rest of ``attention``.
    """
    values = list(zip(operands(node), strategies.operands, strict=True))[1:3]
    for value, layout in values:
        size = setting.bytes(value, layout) * distinct(value, setting.local(value, layout))
        for axis, ranks in reversed(setting.sharing):
            size *= ranks
            gathered, scattered = ([*_sent([(kind, size)], routes[axis])] for kind in (ALL_GATHER, REDUCE_SCATTER))
            share = (1 - 1 / ranks) / (len(values) * len(setting.sharing))
            beside = Seconds(attention.forward * share, attention.backward * share)
            yield Moved(value, layout, layout, axis, tuple(gathered), (*gathered, *scattered), 0, beside)


def _sent(rows: Iterable[tuple[str, float]], route: Route) -> tuple[Sent, ...]:
    return tuple(Sent(kind, size, collective_seconds(kind, size, route)) for kind, size in rows)
