"""Units that stand in one pipeline stage each, where the parameters that they read are of several.

A graph that is made of another one's ops (what answers, of what trains) has fewer of them: a unit may hold ops that
stood in units, and in stages, of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from partitioner.graph.graph import Graph, Unit
from partitioner.graph.nodes import is_parameter, operands


def divided(graph: Graph, stages: Mapping[str, Sequence[int]]) -> Graph:
    """The graph, whose units are cut where no stage of those that read a parameter, by its name, reads the next too."""
    kinds = itertools.count(max((unit.kind for unit in graph.units), default=0) + 1)
    units = list[Unit]()
    for unit in graph.units:
        pieces = _pieces(graph, unit, stages)
        if len(pieces) == 1:
            units.append(unit)
        else:
            units += [Unit(unit.name, nodes, next(kinds), False) for nodes in pieces]
    return replace(graph, units=tuple(units))


def _pieces(graph: Graph, unit: Unit, stages: Mapping[str, Sequence[int]]) -> list[tuple[str, ...]]:
    nodes, pieces, common = graph.nodes, [list[str]()], None
    for name in unit.nodes:
        read = (graph.parameters[o.meta["source"]].names[0] for o in operands(nodes[name]) if is_parameter(o))
        owners = [set(stages[parameter]) for parameter in read if parameter in stages]
        own = set.intersection(*owners) if owners else None
        if own and common is not None and not own & common:
            pieces.append([])
            common = own
        elif own:
            common = own if common is None else own & common
        pieces[-1].append(name)
    return [tuple(piece) for piece in pieces]
