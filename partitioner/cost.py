"""The price of a unit under the layouts that were chosen: ops and the conversions between them, and what is kept.

Of one micro-batch, on the fullest rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import fx

from partitioner.backward import Peaks, peaks
from partitioner.cluster import Cluster, Route
from partitioner.fold import Folded, is_parameter
from partitioner.fusion import ATTENTION
from partitioner.graph import Unit
from partitioner.kept import Keeping
from partitioner.layout import REPLICATE, Placement, Shard
from partitioner.liveness import Liveness
from partitioner.measured import measured
from partitioner.price import ZERO, Seconds, collective_seconds, convert_seconds, work_seconds
from partitioner.rules import rule_of
from partitioner.saved import saved
from partitioner.shapes import operands
from partitioner.solve import Solution
from partitioner.strategies import is_tensor
from partitioner.work import Setting, op_flops, op_work, weight_work

HIDDEN = 0.25  # share of a tensor-parallel collective that hides where it runs in pieces beside its product


@dataclass(frozen=True)
class Kept:
    """What a way of recomputing keeps of a unit until backward, holds at its fullest, and runs again (seconds).

    ``weight``: seconds of weights' gradients that can't be put off then, for what was rebuilt is let go after backward.
    """

    bytes: float
    peaks: Peaks
    compute: float = 0.0
    communication: float = 0.0
    weight: float = 0.0


class Entering(NamedTuple):
    """A value that a unit reads of earlier ones; ``kept``: its bytes where the unit's backward keeps it."""

    placement: Placement
    bytes: float
    kept: float


@dataclass(frozen=True)
class UnitCost:
    """One unit, one micro-batch, one tp rank: compute, exposed communication, and what is kept for backward.

    ``weight``: seconds of compute's backward that make gradients of weights. ``kept``: by way of recomputing, "none",
    "selective" (attention's scores), "operators" (every second product) and "full". ``ports``: what enters.
    ``collectives`` and ``kernels``: how many there are in forward and backward.
    """

    compute: Seconds
    weight: float
    communication: Seconds
    collectives: tuple[int, int]
    kernels: tuple[int, int]
    kept: Mapping[str, Kept]
    ports: tuple[Entering, ...]
    flops: float

    @property
    def seconds(self) -> Seconds:
        """Compute and communication."""
        return self.compute + self.communication


@dataclass(frozen=True)
class Priced:
    """A folded graph whose layouts are chosen, with the price of each group's unit."""

    setting: Setting
    solution: Solution
    cluster: Cluster
    groups: tuple[UnitCost, ...]

    @property
    def folded(self) -> Folded:
        """What was priced."""
        return self.setting.folded

    @property
    def ranks(self) -> int:
        """Of the tp axis."""
        return self.setting.ranks

    @cached_property
    def input_bytes(self) -> float:
        """Of the samples of one micro-batch."""
        graph = self.folded.graph
        found = [n.meta["val"] for n in graph.module.graph.nodes if n.op == "placeholder" and n.meta["kind"] == "input"]
        return sum(v.numel() * v.element_size() for v in found) * self.folded.sized.batch / graph.batch

    @cached_property
    def held(self) -> dict[Unit, dict[fx.Node, tuple[float, int, bool]]]:
        """By unit and trained parameter: elements a rank holds, bytes an element, whether its gradient is Partial."""
        folded, known = self.folded, dict[fx.Node, tuple[float, int, bool]]()

        def held(node: fx.Node) -> tuple[float, int, bool]:
            alike = folded.parameter[folded.own(node)]
            if alike not in known:
                placement, value = self.solution.parameters[alike], node.meta["val"]
                elements = value.numel() * self.setting.share(node, placement)
                known[alike] = elements, value.element_size(), placement == REPLICATE
            return known[alike]

        return {unit: {n: held(n) for n in found} for unit, found in folded.graph.trained.items()}

    @cached_property
    def place(self) -> dict[Unit, int]:
        """Of each unit, how many come before it."""
        return {unit: n for n, unit in enumerate(self.folded.graph.units)}

    @cached_property
    def crossing(self) -> list[float]:
        """Bytes that a micro-batch hands on at a cut before a unit: what earlier ones have made and later ones read."""
        return self._crossing(scattered=False)

    @cached_property
    def sent(self) -> list[float]:
        """``crossing``, as a rank sends it."""
        return self._crossing(self.cluster.software.scatter_sends)

    @cached_property
    def spans(self) -> dict[tuple[fx.Node, Placement], tuple[int, int, float]]:
        """Of each value that units hand on: the places of its maker and of its last reader, and bytes."""
        units = self.folded.graph.units
        made = {self.folded.graph.nodes[name]: n for n, unit in enumerate(units) for name in unit.nodes}
        found = {}
        for n, unit in enumerate(units):
            for node, port in zip(self.folded.entering[unit], self.unit(unit).ports, strict=True):
                found[node, port.placement] = made[node], n, port.bytes
        return found

    def _crossing(self, scattered: bool) -> list[float]:
        found = [0.0] * (len(self.folded.graph.units) + 1)
        for (_, placement), (made, last, size) in self.spans.items():
            part = size / self.ranks if scattered and not isinstance(placement, Shard) else size
            for cut in range(made + 1, last + 1):
                found[cut] += part
        return found

    def unit(self, unit: Unit) -> UnitCost:
        """The price of one unit."""
        return self.groups[self.folded.group_of[unit.name + "/" + unit.nodes[0]]]


def price_units(setting: Setting, solution: Solution, cluster: Cluster) -> Priced:
    """Price every group of units once."""
    rows = tuple(_Pricing(setting, solution, cluster, g).cost() for g in range(len(setting.folded.groups)))
    return Priced(setting, solution, cluster, rows)


class _Pricing:
    """One group's unit, its ops walked once."""

    def __init__(self, setting: Setting, solution: Solution, cluster: Cluster, group: int) -> None:
        self.setting, self.solution, self.cluster, self.group = setting, solution, cluster, group
        self.folded = setting.folded
        self.body = self.folded.body(group)
        self.work = {n: op_work(setting, n, solution.strategies[n]) for n in self.body}
        self.seconds = {n: Seconds(*(work_seconds(w, cluster) for w in pair)) for n, pair in self.work.items()}
        if cluster.kernels:
            self.seconds |= measured(setting, solution, cluster, group, self.seconds)

    def cost(self) -> UnitCost:
        compute, moved, again, count = ZERO, ZERO, (0.0, 0.0), [0, 0]
        moves = conversions(self.folded, self.solution, self.group)
        for reader in (*self.body, None):
            for node, source, target in moves.get(reader, ()):
                seconds = convert_seconds(self.setting, node, source, target, self.route()) or ZERO
                count[0] += seconds.forward > 0
                count[1] += seconds.backward > 0
                moved += seconds
            if reader is not None:
                compute += self.seconds[reader]
                moved += self.context(reader)
                if self.keeps(reader):
                    again = compute.forward, moved.forward
        return UnitCost(
            compute, self.weight, self.exposed(moved, compute), (count[0], count[1]), self.kernels(), self.kept(again),
            self.ports(), sum(op_flops(n) for n in self.body),
        )  # fmt: skip

    @cached_property
    def weight(self) -> float:
        rows = (weight_work(self.setting, n, self.solution.strategies[n]) for n in self.body)
        return sum(work_seconds(row, self.cluster) for row in rows)

    @cached_property
    def keeping(self) -> Keeping:
        return Keeping(self.setting, self.solution, self.group)

    def route(self) -> Route:
        return self.cluster.route(self.setting.ranks)

    def kernels(self) -> tuple[int, int]:
        pairs = list(self.work.values())
        return sum(forward.kernels for forward, _ in pairs), sum(backward.kernels for _, backward in pairs)

    def exposed(self, moved: Seconds, compute: Seconds) -> Seconds:
        """What running in pieces beside the products leaves, or what compute is too short to hide."""
        if not self.cluster.software.overlap_tensor:
            return moved
        pairs = ((moved.forward, compute.forward), (moved.backward, compute.backward))
        return Seconds(*(max(m * (1 - HIDDEN), m - c) for m, c in pairs))

    def context(self, node: fx.Node) -> Seconds:
        """Keys and values gathered over cp, again for backward, and their gradients scattered."""
        cp, strategy = self.setting.cp, self.solution.strategies[node]
        if cp == 1 or str(node.target) != ATTENTION:
            return ZERO
        route = self.cluster.route(cp, self.setting.ranks)
        pairs = list(zip(operands(node)[1:3], strategy.operands[1:3], strict=True))
        sizes = [self.setting.bytes(n, p) * cp for n, p in pairs]
        gathered = sum(collective_seconds("all_gather", size, route) for size in sizes)
        scattered = sum(collective_seconds("reduce_scatter", size, route) for size in sizes)
        return Seconds(gathered, gathered + scattered)

    def keeps(self, node: fx.Node) -> bool:
        """Whether backward needs something of an op."""
        rule, differentiable = rule_of(str(node.target)), self.folded.differentiable
        return node in differentiable and bool((rule and rule.hidden) or saved(node, differentiable))

    def kept(self, again: tuple[float, float]) -> dict[str, Kept]:
        everything = self.keeping
        live = Liveness(everything, conversions(self.folded, self.solution, self.group))
        core = self.setting.core(self.group)
        outside = Keeping(self.setting, self.solution, self.group, frozenset(core)).bytes
        entering = sum(port.bytes for port in self.ports())
        products, attention = [n for n in self.body if _is_product(n)], self.attention()
        outputs = sum(self.made_bytes(n) for n in products) / 2 + sum(self.made_bytes(n) for n in attention)
        cheap = sum(self.seconds[n].forward for n in self.body if n not in {*products, *attention})
        half = sum(self.seconds[n].forward for n in products) / 2
        plain = peaks(live)
        again_bytes = self.output() + plain.forward  # beside the gradient that enters
        full = Peaks(live.forward(keeps=False), *(max(peak, again_bytes) for peak in plain[1:]))
        return {
            "none": Kept(everything.bytes, plain),
            "selective": Kept(outside, plain, sum(self.seconds[n].forward for n in core)),
            "operators": Kept(
                min(everything.bytes, entering + outputs), full, min(cheap + half, again[0]), again[1], self.weight
            ),
            "full": Kept(entering, full, *again, self.weight),
        }  # fmt: skip

    def attention(self) -> list[fx.Node]:
        return [n for n in self.body if str(n.target) == ATTENTION]

    def made_bytes(self, node: fx.Node) -> float:
        return self.setting.bytes(node, self.solution.made(node))

    def ports(self) -> tuple[Entering, ...]:
        kept = self.keeping.storages
        rows = {p: n for (g, n), p in self.folded.port_of.items() if g == self.group}
        keys = [(rows[p], self.solution.ports[p]) for p in sorted(rows, key=lambda p: p.index)]
        return tuple(Entering(key[1], self.setting.bytes(*key), kept.get(key, 0.0)) for key in keys)

    def output(self) -> float:
        made = [n for n in self.body if any(n in sources for sources in self.folded.sources.values())]
        return sum(self.made_bytes(n) for n in made)


def _is_product(node: fx.Node) -> bool:
    rule = rule_of(str(node.target))
    return rule is not None and rule.flops is not None and str(node.target) != ATTENTION


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
