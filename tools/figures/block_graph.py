"""A block as a networkx graph of what a reader wants to see: ops that weigh, what is sent between them, layouts."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import networkx as nx

from partitioner import Plan
from partitioner.plan.derived_rows import BlockRow, CollectiveRow, OpRow
from tools.figures.outline import is_weighty, word

ENTERING, LEAVING = "entering", "leaving"
_JOINS = ("add", "mul")


@dataclass(frozen=True)
class Moving:
    """What is sent to bring a value into a layout: one collective, or several one after the other."""

    rows: tuple[CollectiveRow, ...]

    @property
    def value(self) -> str:
        """The op that made it, or the value of an earlier unit."""
        return self.rows[0].value

    @property
    def name(self) -> str:
        """Of its node."""
        return f"{self.value}>{self.target}"

    @property
    def target(self) -> str:
        """The layout it ends in."""
        return self.rows[0].target


def block_graph(plan: Plan, row: BlockRow, every: bool = False) -> nx.DiGraph[str]:
    """Nodes: an op's name (``op``: its OpRow), ``value>layout`` (``moving``) and the names of what enters.

    Edges have the ``layout`` in which the value arrives. ``every``: all ops; else those that multiply, read weights,
    move or join two ways.
    """
    graph, entering = nx.DiGraph(), [value for _, value in plan.reads[row.units[0]]]
    made = {op.name: word(op.result) for op in row.ops} | dict(zip(entering, map(word, row.ports), strict=True))
    for name in entering:
        graph.add_node(name, kind=ENTERING)
    for op in row.ops:
        graph.add_node(op.name, op=op)
        for moving in movings(op.collectives):
            _add_move(graph, moving, made)
            if moving.target not in {word(p) for p in op.operands}:  # sent inside the op
                graph.add_edge(moving.name, op.name, layout=moving.target)
        for name, layout in zip(op.inputs, op.operands, strict=True):
            if name in made:
                arrives, converted = word(layout), f"{name}>{word(layout)}"
                source = converted if converted in graph and arrives != made[name] else name
                graph.add_edge(source, op.name, layout=arrives)
    for moving in movings(row.leaving):
        _add_move(graph, moving, made)
        graph.nodes[moving.name]["kind"] = LEAVING
    return graph if every else _folded(graph, row, plan.parameters)


def movings(rows: tuple[CollectiveRow, ...]) -> Iterator[Moving]:
    """The collectives of one conversion together."""
    found: dict[tuple[str, str, str, str], list[CollectiveRow]] = {}
    for row in rows:
        found.setdefault((row.value, row.source, row.target, row.axis), []).append(row)
    return (Moving(tuple(same)) for same in found.values())


def _add_move(graph: nx.DiGraph[str], moving: Moving, made: dict[str, str]) -> None:
    graph.add_node(moving.name, moving=moving)
    if moving.value in made:
        graph.add_edge(moving.value, moving.name, layout=moving.rows[0].source)


def _folded(graph: nx.DiGraph[str], row: BlockRow, parameters: Container[str]) -> nx.DiGraph[str]:
    """Without the ops that only pass on what a shown one made."""
    ways: dict[str, frozenset[str]] = {}
    hidden: list[str] = []
    for name in nx.topological_sort(graph):
        sources = [ways[p] for p in graph.predecessors(name)]
        op = graph.nodes[name].get("op")
        if op is None or _is_shown(op, sources, parameters) or op is row.ops[-1]:
            ways[name] = frozenset({name})
        else:
            ways[name] = frozenset().union(*sources)
            hidden.append(name)
    for name in hidden:
        for before in list(graph.predecessors(name)):
            for after in list(graph.successors(name)):
                graph.add_edge(before, after, layout=graph.edges[name, after]["layout"])
        graph.remove_node(name)
    return graph


def _is_shown(op: OpRow, sources: list[frozenset[str]], parameters: Container[str]) -> bool:
    kind = op.op.split(".")[1].rstrip("_")
    if is_weighty(op) or "norm" in kind:
        return True
    if kind not in _JOINS:
        return False
    reads_weights = any(name in parameters for name in op.inputs)
    joins = len(sources) > 1 and sources[0] != sources[1] and all(sources)
    return joins or (kind == "mul" and reads_weights)
