"""What each unit hands to later units: values in the layouts that their readers' ports want."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from partitioner.graph.graph import Unit, loss_node
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.solution import Solution
from partitioner.sharding.layout import Layout, layout_word


@dataclass(frozen=True)
class Export:
    """A value of a unit in one layout; ``native`` when it is made so."""

    node: fx.Node
    layout: Layout
    native: bool

    @property
    def name(self) -> str:
        """The value's name in a Program."""
        return self.node.name if self.native else f"{self.node.name}:{layout_word(self.layout)}"


def exports(folded: Folded, solution: Solution) -> dict[Unit, tuple[Export, ...]]:
    """By unit; the unit that makes the loss exports it."""
    graph, home = folded.graph, folded.home
    found: dict[Unit, dict[Export, None]] = {unit: {} for unit in graph.units}
    for group, units in enumerate(folded.groups):
        ports = folded.ports(group)
        for unit in units:
            for value, port in zip(folded.entering[unit], ports, strict=True):
                found[home[value]][_export(folded, solution, value, solution.ports[port])] = None
    loss = loss_node(graph.module.graph)
    found[home[loss]][_export(folded, solution, loss, solution.made(folded.node[loss]))] = None
    order = {name: n for n, name in enumerate(graph.nodes)}
    return {u: tuple(sorted(rows, key=lambda e: (order[e.node.name], e.name))) for u, rows in found.items()}


def _export(folded: Folded, solution: Solution, value: fx.Node, wanted: Layout) -> Export:
    return Export(value, wanted, solution.made(folded.node[value]) == wanted)
