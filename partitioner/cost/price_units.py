"""Units priced under the layouts that were chosen: ops and the conversions between them, and what is kept.

Of one micro-batch, on the fullest rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import fx

from partitioner.cluster import Cluster
from partitioner.cost.backward_peak import Peaks, peaks
from partitioner.cost.communication import Moved, exposed, least_exposed, moved
from partitioner.cost.forward_peak import Liveness
from partitioner.cost.kept_activations import Keeping
from partitioner.cost.materialized import is_attention, is_product
from partitioner.cost.measured_gemms import measured
from partitioner.cost.op_seconds import ZERO, Seconds, work_seconds
from partitioner.cost.op_work import Setting, Work, op_flops, op_work, weight_work
from partitioner.cost.unit_cost import Entering, Priced, Stash, UnitCost
from partitioner.graph.graph import Unit
from partitioner.graph.saved_by_autograd import saved
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.conversions import Handed, conversions, handed_on
from partitioner.layouts.solution import Solution, group_layouts
from partitioner.sharding.mesh_axes import CP
from partitioner.sharding.op_rules import rule_of


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
        compute, sent, over_cp, again, count = ZERO, ZERO, 0.0, (0.0, 0.0), [0, 0]
        last = last_kept(self.folded, self.group)
        for reader in (*self.body, None):
            for move in self.moves.get(reader, ()):
                if reader is None and (move.value, move.target) not in handed:
                    continue
                seconds = move.seconds
                count[0] += len(move.forward)
                count[1] += len(move.backward)
                sent += seconds
                over_cp += seconds.total if move.axis == CP else 0.0
            if reader is not None:
                compute += self.seconds[reader]
            if reader is last:
                again = compute.forward, sent.forward
        software = self.cluster.software
        return UnitCost(
            compute=compute,
            weight_gradient_seconds=self.weight,
            communication=exposed(sent, compute, software),
            cp_share=over_cp / sent.total if over_cp else 0.0,
            collectives=(count[0], count[1]),
            kernels=self.kernels(),
            stash=self.stash(again),
            ports=self.ports,
            flops=sum(op_flops(n) for n in self.body),
            surrogate=self.modelled + sent.total * least_exposed(software),
        )

    @cached_property
    def moves(self) -> dict[fx.Node | None, list[Moved]]:
        return moved(self.setting, self.solution, self.cluster, self.group)

    @cached_property
    def weight(self) -> float:
        rows = (weight_work(self.setting, n, self.solution.strategies[n]) for n in self.body)
        return sum(self.seconds_of(row) for row in rows)

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

    def stash(self, again: tuple[float, float]) -> dict[str, Stash]:
        everything = self.keeping
        core = self.setting.core(self.group)
        outside = Keeping(self.setting, self.solution, self.group, frozenset(core)).bytes
        entering = sum(port.bytes for port in self.ports)
        products, attention = [n for n in self.body if is_product(n)], self.attention()
        outputs = sum(self.made_bytes(n) for n in products) / 2 + sum(self.made_bytes(n) for n in attention)
        cheap = sum(self.seconds[n].forward for n in self.body if n not in {*products, *attention})
        half = sum(self.seconds[n].forward for n in products) / 2
        live, plain = self.live, self.plain
        again_bytes = self.output() + plain.forward  # beside the gradient that enters
        full = Peaks(live.forward(keeps=False), *(max(peak, again_bytes) for peak in plain[1:]))
        return {
            "none": Stash(everything.bytes, plain),
            "selective": Stash(outside, plain, sum(self.seconds[n].forward for n in core)),
            "operators": Stash(
                min(everything.bytes, entering + outputs), full, min(cheap + half, again[0]), again[1], self.weight
            ),
            "full": Stash(entering, full, *again, self.weight),
        }  # fmt: skip

    def attention(self) -> list[fx.Node]:
        return [n for n in self.body if is_attention(n)]

    def made_bytes(self, node: fx.Node) -> float:
        return self.setting.bytes(node, self.solution.made(node))

    @cached_property
    def ports(self) -> tuple[Entering, ...]:
        kept = self.keeping.storages
        keys = [(value, self.solution.ports[port]) for value, port in self.folded.inputs(self.group)]
        return tuple(Entering(key[1], self.setting.bytes(*key), kept.get(key, 0.0)) for key in keys)

    def output(self) -> float:
        return sum(self.made_bytes(n) for n in {node for node, _ in self.folded.handed_on(self.group)})


def last_kept(folded: Folded, group: int) -> fx.Node | None:
    """The last op of which backward needs something: where a unit is recomputed, its forward runs again up to here."""
    found = None
    for node in folded.body(group):
        rule, differentiable = rule_of(str(node.target)), folded.differentiable
        if node in differentiable and ((rule and rule.hidden) or saved(node, differentiable)):
            found = node
    return found
