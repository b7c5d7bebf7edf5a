"""Which values a unit turns from one layout into another: each once, for all that need it so."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

from partitioner.graph.graph import Unit
from partitioner.graph.nodes import is_parameter, is_tensor, operands
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.exports import exports
from partitioner.layouts.solution import Solution
from partitioner.ops.conversions import Hop, conversion
from partitioner.sharding.layout import Layout, layout_word
from partitioner.sharding.mesh_axes import Axes

Handed = frozenset[tuple[fx.Node, Layout]]


class Conversion(NamedTuple):
    """Of a value, as the unit's ops name it."""

    value: fx.Node
    source: Layout
    target: Layout


def conversions(folded: Folded, solution: Solution, group: int) -> dict[fx.Node | None, list[Conversion]]:
    """What a unit of the group converts, by the op that first needs it; None stands for what later units need.

    A parameter, and what every rank makes by itself, is cut where it lies, which is no conversion.
    """
    found: dict[Conversion, fx.Node | None] = {}
    for node in folded.body(group):
        for operand, target in zip(operands(node), solution.strategies[node].operands, strict=True):
            if not is_tensor(operand) or is_parameter(operand) or folded.value_of(group, operand) is None:
                continue
            move = Conversion(operand, solution.arrives(folded, group, operand), target)
            if move.source != target:
                found.setdefault(move, node)
    for node, port in folded.handed_on(group):
        if solution.made(node) != solution.ports[port]:
            found.setdefault(Conversion(node, solution.made(node), solution.ports[port]), None)
    rows: dict[fx.Node | None, list[Conversion]] = {}
    for move, reader in found.items():
        rows.setdefault(reader, []).append(move)
    return rows


def hops_of(move: Conversion, axes: Axes, differentiable: bool) -> tuple[Hop, ...]:
    """The collectives of a conversion, in order. Raises ValueError where there are none that do it."""
    hops = conversion(move.source, move.target, axes, differentiable)
    if hops is None:
        raise ValueError(f"{move.value.name} cannot go from {layout_word(move.source)} to {layout_word(move.target)}")
    return hops


def handed_on(folded: Folded, solution: Solution) -> dict[Unit, Handed]:
    """Of each unit, what later units want of it in other layouts than it makes."""
    return {
        unit: frozenset((folded.node[e.node], e.layout) for e in rows if not e.native)
        for unit, rows in exports(folded, solution).items()
    }
