"""Units priced under the layouts that were chosen: ops and the conversions between them, and what is kept.

Of one micro-batch, on the fullest rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TypeVar

from torch import fx

from partitioner.cluster import Cluster
from partitioner.cost.backward_peak import Peaks, peaks
from partitioner.cost.communication import Moved, exposed, least_exposed, moved
from partitioner.cost.forward_peak import Kept, Liveness
from partitioner.cost.kept_activations import Keeping, Placed
from partitioner.cost.measured_gemms import measured
from partitioner.cost.op_seconds import ZERO, Seconds, work_seconds
from partitioner.cost.op_work import Setting, op_flops, op_work, weight_work
from partitioner.cost.unit_cost import Entering, Priced, Stash, UnitCost
from partitioner.graph.graph import Unit
from partitioner.kernel_seconds.work import Work, weight_once
from partitioner.layouts.conversions import Handed, conversions, handed_on
from partitioner.layouts.run_again import RunAgain, run_again
from partitioner.layouts.solution import Solution, group_layouts
from partitioner.plan.recompute_ways import NO_RECOMPUTE, WAYS
from partitioner.precision import RECIPES
from partitioner.sharding.mesh_axes import whole


def price_units(setting: Setting, solution: Solution, cluster: Cluster) -> Priced:
    """Price every group of units once, and once more where its units hand on other layouts of what they make."""
    return price_each(setting, [solution], cluster)[0]


def price_each(setting: Setting, solutions: Iterable[Solution], cluster: Cluster) -> list[Priced]:
    """Price several layouts; a group of units that lies alike in two of them is priced once."""
    known: dict[tuple[object, ...], _Pricing] = {}
    return [Priced(setting, solution, cluster, _units(setting, solution, cluster, known)) for solution in solutions]


def _units(
    setting: Setting, solution: Solution, cluster: Cluster, known: dict[tuple[object, ...], _Pricing]
) -> dict[Unit, UnitCost]:
    wanted, found = handed_on(setting.folded, solution), dict[Unit, UnitCost]()
    for g, units in enumerate(setting.folded.groups):
        key = g, *group_layouts(setting.folded, solution, g)
        pricing = known.get(key) or known.setdefault(key, _Pricing(setting, solution, cluster, g))
        found |= {unit: pricing.cost(wanted[unit]) for unit in units}
    return found


_V = TypeVar("_V")


class _Asked(dict[str, _V]):
    """By way of recomputing, made when it is asked for."""

    def __init__(self, make: Callable[[str], _V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, way: str) -> _V:
        self[way] = found = self._make(way)
        return found


class _Pricing:
    """One group's unit, its ops walked once."""

    def __init__(self, setting: Setting, solution: Solution, cluster: Cluster, group: int) -> None:
        self.setting, self.solution, self.cluster, self.group = setting, solution, cluster, group
        self.folded = setting.folded
        self.costs: dict[Handed, UnitCost] = {}
        self.body = self.folded.body(group)
        self.work = {n: op_work(setting, n, solution.strategies[n]) for n in self.body}
        self.seconds = {n: Seconds(*(self.seconds_of(work) for work in pair)) for n, pair in self.work.items()}
        self.modelled = sum(seconds.total for seconds in self.seconds.values())
        if cluster.kernels:
            self.seconds |= measured(setting, solution, cluster, group, self.seconds)

    def seconds_of(self, work: Work) -> float:
        return work_seconds(work, self.cluster, self.folded.graph.precision)

    def cost(self, handed: Handed) -> UnitCost:
        """Of a unit that hands on these layouts of what it makes."""
        if handed not in self.costs:
            self.costs[handed] = self.summed(handed)
        return self.costs[handed]

    def summed(self, handed: Handed) -> UnitCost:
        compute, sent, over, count = ZERO, ZERO, dict[str, float](), [0, 0]
        for reader in (*self.body, None):
            for move in self.moves.get(reader, ()):
                if reader is None and (move.value, move.target) not in handed:
                    continue
                seconds = move.seconds
                count[0] += len(move.forward)
                count[1] += len(move.backward)
                sent += seconds
                over[whole(move.axis)] = over.get(whole(move.axis), 0.0) + seconds.total
            if reader is not None:
                compute += self.seconds[reader]
        software = self.cluster.software
        return UnitCost(
            compute=compute,
            weight_gradient_seconds=self.weight,
            communication=exposed(sent, compute, software),
            axis_shares={axis: own / sent.total for axis, own in over.items() if own},
            collectives=(count[0], count[1]),
            kernels=self.kernels(),
            stash=self.stash,
            last=self.last,
            ports=self.ports,
            flops=sum(op_flops(n) for n in self.body),
            once_seconds=sum(self.seconds_of(work) for work in self.weights_once),
            copied_bytes=self.copied(),
            surrogate=self.modelled + sent.total * least_exposed(software),
        )

    @cached_property
    def moves(self) -> dict[fx.Node | None, list[Moved]]:
        return moved(self.setting, self.solution, self.cluster, self.group)

    @cached_property
    def weight(self) -> float:
        return self.weight_of(self.body)

    def weight_of(self, nodes: Iterable[fx.Node]) -> float:
        """Seconds of the gradients of parameters."""
        rows = (weight_work(self.setting, n, self.solution.strategies[n]) for n in nodes)
        return sum(self.seconds_of(row) for row in rows)

    @cached_property
    def weights_once(self) -> list[Work]:
        """What becomes of weights in few bits once a step."""
        software, rows = self.cluster.software, (forward for forward, _ in self.work.values() if forward.recipe)
        if not software.weights_once:
            return []
        return [weight_once(row, RECIPES[row.recipe].is_scanned(software.delayed_scales)) for row in rows]

    def copied(self) -> float:
        """Bytes of what comes of them, in either order; less those of what they came of where that is not held."""
        device, found = self.cluster.device, 0.0
        for work in self.weights_once:
            each = RECIPES[work.recipe].bytes * device.products_of(work.recipe).copies
            each -= work.dtype.itemsize if self.cluster.software.few_bit_weights else 0.0
            found += each * sum(row.elements for row in work.quantized)
        return found

    @cached_property
    def keeping(self) -> Keeping:
        return Keeping(self.setting, self.solution, self.group)

    def kernels(self) -> tuple[int, int]:
        pairs = list(self.work.values())
        return sum(forward.kernels for forward, _ in pairs), sum(backward.kernels for _, backward in pairs)

    @cached_property
    def live(self) -> Liveness:
        return Liveness(self.keeping, conversions(self.folded, self.solution, self.group))

    @cached_property
    def plain(self) -> Peaks:
        return peaks(self.live)

    @cached_property
    def stash(self) -> Mapping[str, Stash]:
        """By way of recomputing."""
        return _Asked(self.recomputed)

    @cached_property
    def last(self) -> Mapping[str, Peaks]:
        """By way of recomputing; what runs again does so before backward, beside what was sent in any case."""
        own = peaks(self.live, sent_back=True)

        def of_way(way: str) -> Peaks:
            forward, *backwards = self.stash[way].peaks
            return Peaks(forward, *map(max, own[1:], backwards))

        return _Asked(of_way)

    def recomputed(self, way: str) -> Stash:
        if way == NO_RECOMPUTE:
            return Stash(self.keeping.bytes, self.plain)
        row = run_again(self.folded, self.solution, self.group, way, self.cluster.software.fused)
        skipped = row.begun if self.cluster.software.early_stop else frozenset[fx.Node]()
        runs = (node for node in row.again if node not in skipped)
        seconds = sum(self.seconds[node].forward for node in runs) + self.dropped(row), self.sent_again(row)
        if not WAYS[way].whole:
            dropped = frozenset(node for region in row.regions for node in region)
            keeping = Keeping(self.setting, self.solution, self.group, dropped)
            return Stash(keeping.bytes, self.plain, *seconds, self.weight_of(n for n in self.body if n in dropped))
        kept = self.kept(row)
        size = sum(port.bytes for port in self.ports) + sum(kept.results.values()) + sum(kept.hidden.values())
        again = self.output() + self.live.again(kept, row.passed, row.ends, skipped)  # beside the gradient that enters
        peaks = Peaks(self.live.forward(kept), *(max(peak, again) for peak in self.plain[1:]))
        return Stash(size, peaks, *seconds, self.weight)

    def kept(self, row: RunAgain) -> Kept:
        """Bytes of the results that are kept, by the memory in which they lie, and of what is hidden in their ops;
        attention that writes its scores keeps nothing."""
        found, hidden = dict[Placed, float](), dict[fx.Node, float]()
        for (node, layout), kind in row.kept.items():
            if kind == "attention" and self.setting.writes_scores(node):
                continue
            lies = self.live.lies((node, layout))
            share = self.cluster.software.kept_products if kind == "product" else 1.0
            found[lies] = share * self.live.bytes(lies)
            if kind == "attention" and node in self.keeping.hidden:
                hidden[node] = self.keeping.hidden[node]
        return Kept(found, hidden)

    def dropped(self, row: RunAgain) -> float:
        """Seconds of the products whose results a program does not keep, though a recompute in this way may."""
        of_weights = {node for (node, _), kind in row.kept.items() if kind == "product"} | {n for n, _ in row.passed}
        share = 1.0 - self.cluster.software.kept_products
        return share * sum(self.seconds[node].forward for node in of_weights) if share else 0.0

    def sent_again(self, row: RunAgain) -> float:
        """Seconds of the collectives that run again."""
        moves = ((node, move) for node in self.body for move in self.moves.get(node, ()))
        return sum(move.seconds.forward for node, move in moves if row.sends(move.conversion, move.number, node))

    def made_bytes(self, node: fx.Node) -> float:
        return self.setting.bytes(node, self.solution.made(node))

    @cached_property
    def ports(self) -> tuple[Entering, ...]:
        kept = self.keeping.storages
        keys = [(value, self.solution.ports[port]) for value, port in self.folded.inputs(self.group)]
        return tuple(Entering(key[1], self.setting.bytes(*key), kept.get(key, 0.0)) for key in keys)

    def output(self) -> float:
        return sum(self.made_bytes(n) for n in {node for node, _ in self.folded.handed_on(self.group)})
