"""What each unit hands to later units: values in the placements that their readers' ports want."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from partitioner.graph.graph import Unit
from partitioner.graph.tied_blocks import Folded, live_in
from partitioner.layouts.solution import Solution
from partitioner.sharding.layout import Placement


@dataclass(frozen=True)
class Export:
    """A value of a unit in one placement; ``native`` when it is made so."""

    node: fx.Node
    placement: Placement
    native: bool

    @property
    def name(self) -> str:
        """The value's name in a Program."""
        return self.node.name if self.native else f"{self.node.name}:{self.placement}"


def exports(folded: Folded, solution: Solution) -> dict[Unit, tuple[Export, ...]]:
    """By unit; the unit that makes the loss exports it."""
    graph = folded.graph
    home = {graph.nodes[name]: unit for unit in graph.units for name in unit.nodes}
    found: dict[Unit, dict[Export, None]] = {unit: {} for unit in graph.units}
    for group, units in enumerate(folded.groups):
        ports = {p.index: p for p in folded.sources if p.group == group}
        for unit in units:
            for index, value in enumerate(live_in(graph, unit, folded.node)):
                wanted = solution.ports[ports[index]]
                found[home[value]][_export(folded, solution, value, wanted)] = None
    loss = next(n for n in graph.module.graph.nodes if n.op == "output").all_input_nodes[0]
    found[home[loss]][_export(folded, solution, loss, solution.made(folded.node[loss]))] = None
    order = {name: n for n, name in enumerate(graph.nodes)}
    return {u: tuple(sorted(rows, key=lambda e: (order[e.node.name], e.name))) for u, rows in found.items()}


def _export(folded: Folded, solution: Solution, value: fx.Node, wanted: Placement) -> Export:
    return Export(value, wanted, solution.made(folded.node[value]) == wanted)
