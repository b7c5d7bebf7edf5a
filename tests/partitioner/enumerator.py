"""The exhaustive optimum of a folded graph's layouts, through the same prices as the solver's but not its program."""

from __future__ import annotations

import itertools
import math

from torch import fx

from partitioner.cost.conversion_seconds import convert_seconds
from partitioner.graph.nodes import is_parameter, operands
from partitioner.graph.tied_blocks import Folded, Port
from partitioner.layouts.strategies import Space
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import PARTIAL, WHOLE, Placement
from partitioner.solve.choices import TIE_COLLECTIVE, Choices, Prices

Partial = tuple[float, dict[object, Placement], frozenset[tuple[object, Placement]]]


class Enumerator:
    """The optimum by trying every placement of every port, then every op's every strategy, through the same prices."""

    def __init__(self, folded: Folded, options: Space, prices: Prices) -> None:
        self.folded, self.options, self.prices = folded, options, prices
        self.pricing = Choices(folded, options, prices, lambda value, placement: True)
        self.nodes = [n for g in range(len(folded.groups)) for n in folded.body(g)]
        self.counts = {n: len(u) for g, u in enumerate(folded.groups) for n in folded.body(g)}

    def best(self) -> float:
        ports = list(self.folded.sources)
        found = math.inf
        for chosen in itertools.product(*(self.pricing.port_placements(p) for p in ports)):
            found = min(found, self.under(dict(zip(ports, chosen, strict=True))))
        return found

    def under(self, ports: dict[Port, Placement]) -> float:
        rows: list[Partial] = [(0.0, {}, frozenset())]
        for group in range(len(self.folded.groups)):
            for node in self.folded.body(group):
                tried = [self.step(group, node, s, row, ports) for row in rows for s in self.options.strategies[node]]
                rows = _undominated(self.folded, [row for row in tried if row is not None], self.nodes, node)
        return min((cost for cost, made, _ in rows if made[self.nodes[-1]] == WHOLE), default=math.inf)

    def step(
        self, group: int, node: fx.Node, strategy: Strategy, row: Partial, ports: dict[Port, Placement]
    ) -> Partial | None:
        cost, made, paid = row[0], dict(row[1]), set(row[2])
        for operand, wanted in zip(operands(node), strategy.operands, strict=True):
            if is_parameter(operand):
                key = self.folded.parameter[operand]
                held = WHOLE if wanted == PARTIAL else wanted  # the cheaper of the two that become Partial
                if made.setdefault(key, held) != held:
                    return None
                if key not in row[1]:
                    cost += self.pricing.parameter_cost(key, held)
                continue
            port = self.folded.port_of.get((group, operand))
            if port is None and operand not in self.folded.node:
                continue
            value = port or operand
            if (value, wanted) not in paid:
                many = len(self.folded.groups[group]) if port else self.counts[operand]
                seconds = self.convert(operand, ports[port] if port else made[operand], wanted)
                if seconds is None:
                    return None
                cost += seconds * many
                paid.add((value, wanted))
        made[node] = strategy.result
        cost += self.pricing.op_cost(node, strategy, self.counts[node])
        for port, sources in self.folded.sources.items():
            if node in sources:
                seconds = self.convert(node, strategy.result, ports[port])
                if seconds is None:
                    return None
                cost += seconds * sources[node]
        return cost, made, frozenset(paid)

    def convert(self, node: fx.Node, source: Placement, target: Placement) -> float | None:
        if source == target:
            return 0.0
        found = convert_seconds(self.prices.setting, node, (source,), (target,), self.prices.routes)
        return None if found is None else found.total + TIE_COLLECTIVE


def _undominated(folded: Folded, rows: list[Partial], nodes: list[fx.Node], node: fx.Node) -> list[Partial]:
    """Of partial solutions that agree on everything that later ops can see, the cheapest."""
    later = set(nodes[nodes.index(node) + 1 :])
    live = [n for n in nodes if n is node or any(u in later for u in n.users)]
    read = dict.fromkeys(folded.parameter[o] for n in later for o in operands(n) if is_parameter(o))
    kept: dict[object, Partial] = {}
    for cost, made, paid in rows:
        visible = frozenset((v, p) for v, p in paid if isinstance(v, Port) or v in live)
        seen = (tuple(made.get(n) for n in (*live, *read)), visible)
        if seen not in kept or kept[seen][0] > cost:
            kept[seen] = (cost, made, paid)
    return list(kept.values())
