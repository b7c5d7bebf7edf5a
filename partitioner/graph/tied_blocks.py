"""Identical blocks tied: one representative node stands for the same node of every block of its kind.

Blocks are tied where the same of their values have a gradient: one whose input has none is of another kind.

units       embed   block 0   block 1   block 2   head
folded      embed   block x 3                     head
ports               what a block reads of earlier units, by position; each has one placement for all blocks
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from partitioner.graph.graph import Graph, Unit, has_gradient
from partitioner.graph.nodes import is_parameter, operands


@dataclass(frozen=True)
class Port:
    """The ``index``-th value that units of group ``group`` read from earlier units."""

    group: int
    index: int


Value = fx.Node | Port  # an op's result or a parameter, by its representative; what enters a block


@dataclass(frozen=True)
class Folded:
    """``groups``: units that share everything, in order of first appearance. ``node``: each body node's representative.

    ``parameter`` maps each parameter placeholder to the one whose layout it shares; ``members`` counts them.
    ``sources`` counts, for each port, the representatives of the values that enter it. ``sized`` holds the
    representatives: ``graph`` itself, or a copy of them alone at another batch size (resize_batch.py).
    """

    graph: Graph
    groups: tuple[tuple[Unit, ...], ...]
    node: dict[fx.Node, fx.Node]
    parameter: dict[fx.Node, fx.Node]
    sources: dict[Port, Counter[fx.Node]]
    port_of: dict[tuple[int, fx.Node], Port]
    sized: Graph

    @cached_property
    def differentiable(self) -> set[fx.Node]:
        """Representative nodes that have a gradient."""
        return {n for n in has_gradient(self.sized.module.graph) if n.op != "placeholder" or trains(self.graph, n)}

    @cached_property
    def home(self) -> dict[fx.Node, Unit]:
        """The unit that makes each value of ``graph``."""
        return {self.graph.nodes[name]: unit for unit in self.graph.units for name in unit.nodes}

    def ports(self, group: int) -> tuple[Port, ...]:
        """What units of a group read of earlier ones, in order."""
        return tuple(sorted((p for p in self.sources if p.group == group), key=lambda p: p.index))

    def inputs(self, group: int) -> list[tuple[fx.Node, Port]]:
        """What the ops of a group's first unit read of earlier units, by the port through which it enters."""
        found = [(node, port) for (g, node), port in self.port_of.items() if g == group]
        return sorted(found, key=lambda row: row[1].index)

    def handed_on(self, group: int) -> list[tuple[fx.Node, Port]]:
        """The representatives of a group that later units read, each with each port that it enters."""
        entered = [(node, port) for port, sources in self.sources.items() for node in sources]
        order = {node: n for n, node in enumerate(self.body(group))}
        return sorted((row for row in entered if row[0] in order), key=lambda row: order[row[0]])

    def value_of(self, group: int, operand: fx.Node) -> Value | None:
        """What an operand of a representative stands for; None for what needs no gradient and every rank can make."""
        if is_parameter(operand):
            return self.parameter[operand]
        return self.port_of.get((group, operand)) or self.node.get(operand)

    @cached_property
    def entering(self) -> dict[Unit, tuple[fx.Node, ...]]:
        """What each unit reads of earlier units, in the order of its group's ports."""
        return {unit: tuple(live_in(self.graph, unit, self.node)) for unit in self.graph.units}

    def body(self, group: int) -> list[fx.Node]:
        """The representative nodes of one group, in order."""
        return [self.sized.nodes[name] for name in self.groups[group][0].nodes]

    @cached_property
    def in_blocks(self) -> frozenset[fx.Node]:
        """Representative nodes of the groups of blocks."""
        groups = enumerate(self.groups)
        return frozenset(node for n, units in groups if units[0].is_block for node in self.body(n))

    def own(self, parameter: fx.Node) -> fx.Node:
        """The node that stands for a placeholder of ``graph``: its copy in ``sized`` where there is one."""
        return self.sized.nodes.get(parameter.name, parameter)

    @cached_property
    def members(self) -> Counter[fx.Node]:
        """How many parameters share each representative's layout."""
        return Counter(self.parameter.values())


def trains(graph: Graph, node: fx.Node) -> bool:
    """Whether a placeholder is a parameter that is updated."""
    return node.meta["kind"] == "parameter" and graph.parameters[node.meta["source"]].requires_grad


def fold(graph: Graph) -> Folded:
    """Tie the units of one kind, node by node, and the parameters that they read at the same place."""
    inside = {name: unit for unit in graph.units for name in unit.nodes}
    differentiable = has_gradient(graph.module.graph)
    keys: dict[object, list[Unit]] = {}
    for unit in graph.units:
        key = unit.kind, _kinds_of_operands(graph, unit, inside), _gradients(graph, unit, differentiable)
        keys.setdefault(key, []).append(unit)
    groups = tuple(tuple(units) for units in keys.values())
    node: dict[fx.Node, fx.Node] = {}
    tied: dict[fx.Node, fx.Node] = {}
    for units in groups:
        for unit in units:
            for own, first in zip(unit.nodes, units[0].nodes, strict=True):
                node[graph.nodes[own]] = graph.nodes[first]
    for own, first in node.items():
        for a, b in zip(operands(own), operands(first), strict=True):
            if is_parameter(a):
                _tie(tied, a, b)
    parameter = {n: _root(tied, n) for n in tied}
    sources, port_of = _ports(graph, groups, node)
    return Folded(graph, groups, node, parameter, sources, port_of, graph)


def _kinds_of_operands(graph: Graph, unit: Unit, inside: dict[str, Unit]) -> tuple[str, ...]:
    """What each operand is (own, earlier unit's, free, parameter): identical blocks may differ in what feeds them."""
    own = set(unit.nodes)
    words: list[str] = []
    for name in unit.nodes:
        for operand in operands(graph.nodes[name]):
            placed = "own" if operand.name in own else "unit" if operand.name in inside else "free"
            words.append("parameter" if is_parameter(operand) else placed)
    return tuple(words)


def _gradients(graph: Graph, unit: Unit, differentiable: set[fx.Node]) -> tuple[bool, ...]:
    """Of each op and each of its operands, whether it has a gradient."""
    nodes = (graph.nodes[name] for name in unit.nodes)
    return tuple(n in differentiable for node in nodes for n in (node, *operands(node)))


def _root(tied: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    while tied.setdefault(node, node) is not node:
        node = tied[node]
    return node


def _tie(tied: dict[fx.Node, fx.Node], a: fx.Node, b: fx.Node) -> None:
    first, second = _root(tied, b), _root(tied, a)
    tied[second] = first


def _ports(
    graph: Graph, groups: tuple[tuple[Unit, ...], ...], node: dict[fx.Node, fx.Node]
) -> tuple[dict[Port, Counter[fx.Node]], dict[tuple[int, fx.Node], Port]]:
    sources: dict[Port, Counter[fx.Node]] = {}
    port_of: dict[tuple[int, fx.Node], Port] = {}
    for g, units in enumerate(groups):
        for unit in units:
            for index, source in enumerate(live_in(graph, unit, node)):
                sources.setdefault(Port(g, index), Counter())[node[source]] += 1
                if unit is units[0]:
                    port_of[g, source] = Port(g, index)
    return sources, port_of


def live_in(graph: Graph, unit: Unit, body: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """Values that a unit reads from earlier units, by first use."""
    own = set(unit.nodes)
    found: dict[fx.Node, None] = {}
    for name in unit.nodes:
        for operand in operands(graph.nodes[name]):
            if operand in body and operand.name not in own:
                found[operand] = None
    return list(found)
