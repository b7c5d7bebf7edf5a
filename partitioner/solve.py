"""Per-op layouts of the folded graph on one axis, optimal: a 0/1 program for HiGHS (scipy.optimize.milp).

    x[op, strategy]              1 for the chosen strategy; a port and a parameter choose a placement
    c[value, from, to]           1 where the value is converted; one conversion serves all that need ``to``
    sum_s x[op, s] = 1           c[v, p, d] <= x[v makes p]           x[op needs d of v] <= sum_p c[v, p, d]

Dynamic programming would need a tree; residual streams and shared operands make the folded block a general DAG, so the
program is integer. Its LP relaxation is not integral, so optimality is the MIP's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from torch import fx

from partitioner.cluster import Cluster
from partitioner.equations import Strategy
from partitioner.errors import InputError
from partitioner.fold import Folded, Port, is_parameter
from partitioner.layout import PARTIAL, REPLICATE, WHOLE, Placement, Shard
from partitioner.price import (
    collective_seconds,
    convert_seconds,
    node_bytes,
    op_seconds,
    share,
    state_bytes,
)  # fmt: skip
from partitioner.shapes import operands
from partitioner.strategies import Space, is_tensor

Value = fx.Node | Port
LIMIT_SECONDS = 600.0
TIE_BYTES = 1e-4  # of a byte's price: among equal times, hold fewer bytes
TIE_COLLECTIVE = 1e-9  # seconds: among equal bytes, fewer collectives


@dataclass(frozen=True)
class Solution:
    """The chosen strategy of every representative op, the placement of every port and representative parameter.

    ``seconds`` is the objective: one micro-batch of all blocks, a step's gradient sync and the price of bytes held.
    """

    strategies: dict[fx.Node, Strategy]
    ports: dict[Port, Placement]
    parameters: dict[fx.Node, Placement]
    seconds: float

    def made(self, value: Value) -> Placement:
        """Where a value lies when it is made."""
        if isinstance(value, Port):
            return self.ports[value]
        if value in self.parameters:
            return self.parameters[value]
        result = self.strategies[value].result
        assert not isinstance(result, tuple)
        return result


@dataclass(frozen=True)
class Prices:
    """What the objective adds up: the cluster, the micro-batches that share a step, seconds for a byte held."""

    cluster: Cluster
    ranks: int
    micro_batches: int
    byte_seconds: float

    @staticmethod
    def of(cluster: Cluster, ranks: int, micro_batches: int, scarcity: float = 1.0) -> Prices:
        """A byte held costs one pass of memory a step, times ``scarcity``."""
        return Prices(cluster, ranks, micro_batches, scarcity / cluster.device.memory_bytes_per_second)


Allowed = Callable[[Value, Placement], bool]


def solve(folded: Folded, options: Space, prices: Prices, allowed: Allowed = lambda value, placement: True) -> Solution:
    """The cheapest layouts. ``allowed(value, placement)`` restricts a parameter or a port (a pin).

    Raises InputError when the pins leave no legal layout.
    """
    problem = _Problem(folded, options, prices, allowed)
    problem.build()
    return problem.run()


@dataclass
class _Rows:
    """A sparse constraint matrix in the making: low <= row x <= high."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, terms: Mapping[int, float], low: float, high: float) -> None:
        self.entries += [(len(self.low), column, weight) for column, weight in terms.items()]
        self.low.append(low)
        self.high.append(high)


class _Problem:
    def __init__(self, folded: Folded, options: Space, prices: Prices, allowed: Allowed) -> None:
        self.folded, self.options, self.prices, self.allowed = folded, options, prices, allowed
        self.costs: list[float] = []
        self.integral: list[bool] = []
        self.rows = _Rows()
        self.choices: dict[Value, list[tuple[int, Placement, Strategy | None]]] = {}
        self.makes: dict[Value, dict[Placement, list[int]]] = {}
        self.conversions: dict[tuple[Value, Value | None], dict[tuple[Placement, Placement], int]] = {}

    def column(self, cost: float, integral: bool) -> int:
        self.costs.append(cost)
        self.integral.append(integral)
        return len(self.costs) - 1

    def build(self) -> None:
        counts = {n: len(units) for g, units in enumerate(self.folded.groups) for n in self.folded.body(g)}
        for node in dict.fromkeys(self.folded.parameter.values()):
            self.choose(node, [(self.parameter_cost(node, p), p, None) for p in self.parameter_placements(node)])
        for port in self.folded.sources:
            self.choose(port, [(0.0, p, None) for p in self.port_placements(port)])
        for node, count in counts.items():
            rows = self.options.strategies[node]
            self.choose(node, [(self.op_cost(node, s, count), self.result(s), s) for s in rows])
        needs = self.needs()
        for (value, reader), by_placement in needs.items():
            self.link(value, reader, by_placement, counts)
        loss = next(n for n in self.folded.graph.module.graph.nodes if n.op == "output").all_input_nodes[0]
        self.rows.add({c: 1.0 for c, p, _ in self.choices[self.folded.node[loss]] if p == WHOLE}, 1, 1)

    @staticmethod
    def result(strategy: Strategy) -> Placement:
        assert not isinstance(strategy.result, tuple)
        return strategy.result

    def choose(self, value: Value, rows: list[tuple[float, Placement, Strategy | None]]) -> None:
        columns = [(self.column(cost, True), placement, strategy) for cost, placement, strategy in rows]
        self.choices[value] = columns
        self.rows.add({c: 1.0 for c, _, _ in columns}, 1, 1)
        made: dict[Placement, list[int]] = defaultdict(list)
        for column, placement, _ in columns:
            made[placement].append(column)
        self.makes[value] = dict(made)

    def parameter_placements(self, node: fx.Node) -> list[Placement]:
        found = [WHOLE, REPLICATE, *self.options.shards.get(node, ())] if self.prices.ranks > 1 else [WHOLE]
        kept = [p for p in found if self.allowed(node, p)]
        if not kept:
            raise InputError(f"no layout of {node.meta['source']} satisfies the pins: relax one")
        return kept

    def port_placements(self, port: Port) -> list[Placement]:
        if self.prices.ranks == 1:
            return [WHOLE]
        first = next(iter(self.folded.sources[port]))
        shards = set(self.options.shards.get(first, ()))
        for other in self.folded.sources[port]:
            shards &= set(self.options.shards.get(other, ()))
        found = [WHOLE, REPLICATE, *sorted(s for s in shards if s.is_even(self.prices.ranks))]
        kept = [p for p in found if self.allowed(port, p)]
        return kept or found

    def parameter_cost(self, node: fx.Node, placement: Placement) -> float:
        """State bytes at their price; a replicated gradient is summed once a step, shared by the micro-batches."""
        value, prices = node.meta["val"], self.prices
        part = share(node, placement, prices.ranks)
        held = state_bytes(value.numel() * part, value.element_size()) * prices.byte_seconds
        link = prices.cluster.link(prices.ranks)
        sync = collective_seconds("all_reduce", node_bytes(node), prices.ranks, link) if placement == REPLICATE else 0.0
        return (held + sync / prices.micro_batches) * self.folded.members(node)

    def op_cost(self, node: fx.Node, strategy: Strategy, count: int) -> float:
        prices = self.prices
        seconds = op_seconds(node, strategy, prices.ranks, prices.cluster).total
        held = node_bytes(node) * share(node, self.result(strategy), prices.ranks) * prices.byte_seconds * TIE_BYTES
        return (seconds + held) * count

    def needs(self) -> dict[tuple[Value, Value | None], dict[tuple[Value, Placement, int], list[int]]]:
        """Columns by (value, reading port or None inside) and by (reader, placement, slot)."""
        found: dict[tuple[Value, Value | None], dict[tuple[Value, Placement, int], list[int]]] = {}
        for g in range(len(self.folded.groups)):
            for node in self.folded.body(g):
                for slot, operand in enumerate(operands(node)):
                    value = self.operand_value(g, operand)
                    if value is not None:
                        rows = found.setdefault((value, None), {})
                        for column, _, strategy in self.choices[node]:
                            assert strategy is not None
                            rows.setdefault((node, strategy.operands[slot], slot), []).append(column)
        for port, sources in self.folded.sources.items():
            for source in sources:
                rows = found.setdefault((source, port), {})
                for column, placement, _ in self.choices[port]:
                    rows.setdefault((port, placement, 0), []).append(column)
        return found

    def operand_value(self, group: int, operand: fx.Node) -> Value | None:
        """What an operand of a representative stands for; None for what needs no gradient and every rank can make."""
        if is_parameter(operand):
            return self.folded.parameter[operand]
        if (group, operand) in self.folded.port_of:
            return self.folded.port_of[group, operand]
        return self.folded.node.get(operand)

    def link(
        self, value: Value, reader: Value | None, needs: dict[tuple[Value, Placement, int], list[int]],
        counts: Mapping[fx.Node, int],
    ) -> None:  # fmt: skip
        count = self.count(value, reader, counts)
        arriving: dict[Placement, dict[int, float]] = {}
        for target in dict.fromkeys(placement for _, placement, _ in needs):
            arriving[target] = {}
            for source, makers in self.makes[value].items():
                cost = self.conversion_cost(value, source, target)
                if cost is None:
                    continue
                column = self.column(cost * count, False)
                arriving[target][column] = -1.0
                self.rows.add({column: 1.0, **dict.fromkeys(makers, -1.0)}, -np.inf, 0)
        for (_, target, _), columns in needs.items():
            self.rows.add({**dict.fromkeys(columns, 1.0), **arriving[target]}, -np.inf, 0)

    def count(self, value: Value, reader: Value | None, counts: Mapping[fx.Node, int]) -> float:
        if isinstance(reader, Port):
            assert isinstance(value, fx.Node)
            return float(self.folded.sources[reader][value])
        if isinstance(value, Port):
            return float(len(self.folded.groups[value.group]))
        return float(counts.get(value, 1))

    def conversion_cost(self, value: Value, source: Placement, target: Placement) -> float | None:
        node = next(iter(self.folded.sources[value])) if isinstance(value, Port) else value
        ranks = self.prices.ranks
        if source == target:
            return 0.0
        if node in self.makes and is_parameter(node):
            cut = source == REPLICATE and isinstance(target, Shard) and target.is_even(ranks)
            return TIE_COLLECTIVE if cut or target == PARTIAL and source in (WHOLE, REPLICATE) else None
        if not is_tensor(node):
            return None
        link = self.prices.cluster.link(ranks)
        seconds = convert_seconds(node, source, target, ranks, link, node in self.folded.differentiable)
        return None if seconds is None else seconds.total + TIE_COLLECTIVE

    def run(self) -> Solution:
        rows, columns, weights = zip(*self.rows.entries, strict=True)
        matrix = coo_array((weights, (rows, columns)), shape=(len(self.rows.low), len(self.costs))).tocsr()
        scale = 1e6  # microseconds: HiGHS's tolerances are absolute
        low, high = np.array(self.rows.low), np.array(self.rows.high)
        found = milp(
            np.array(self.costs) * scale,
            integrality=np.array(self.integral, dtype=int),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, low, high),  # pyright: ignore[reportArgumentType]
            options={"mip_rel_gap": 0.0, "time_limit": LIMIT_SECONDS},
        )
        if found.status == 2:
            raise InputError("no layout satisfies the pins: relax one")
        if found.status != 0:
            raise InputError(f"the layouts were not proved optimal in {LIMIT_SECONDS:g} s: pin more ({found.message})")
        return self.read(found.x, float(found.fun) / scale)

    def read(self, x: np.ndarray, seconds: float) -> Solution:
        chosen = {v: next(row for row in rows if x[row[0]] > 0.5) for v, rows in self.choices.items()}
        strategies = {v: s for v, (_, _, s) in chosen.items() if isinstance(v, fx.Node) and s is not None}
        ports = {v: p for v, (_, p, _) in chosen.items() if isinstance(v, Port)}
        parameters = {v: p for v, (_, p, s) in chosen.items() if isinstance(v, fx.Node) and s is None}
        return Solution(strategies, ports, parameters, seconds)
