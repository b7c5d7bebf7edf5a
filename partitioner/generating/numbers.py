"""The numbers of two graphs of unequal length, as laws of the length: so much, and so much more for each position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from partitioner.generating.refusal import NotDerived
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import propagate, shape_of
from partitioner.samples.paired_captures import words_of
from partitioner.sharding.op_rules import rule_of

_SLICE_END = 3  # the argument


class UnlikeLengths(NotDerived):
    """The model does not run the same ops at both lengths."""


class Numbers:
    """Of a graph at two lengths; ``length``: the positions of the first."""

    def __init__(self, first: fx.Graph, second: fx.Graph, lengths: tuple[int, int]) -> None:
        self.length, self.more = lengths[0], lengths[1] - lengths[0]
        self.twin = _pairs(first, second, lengths)

    def grown(self, node: fx.Node) -> tuple[int, ...]:
        """The dimensions that are not equal at both lengths."""
        shapes = shape_of(node), shape_of(self.twin[node])
        return tuple(d for d, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b)

    def differing(self, node: fx.Node) -> dict[int, tuple[int, Fraction]]:
        """By place among a call's arguments, nested ones flattened: its number here, and what a position adds."""
        here, there = (pytree.tree_leaves((n.args, n.kwargs)) for n in (node, self.twin[node]))
        rows = enumerate(zip(here, there, strict=True))
        found = {i: (x, y) for i, (x, y) in rows if not isinstance(x, fx.Node) and x != y}
        if any(not isinstance(x, int) or not isinstance(y, int) for x, y in found.values()):
            raise NotDerived(f"{words_of(node)} has a number that hangs on the whole length: generate with --no-cache")
        return {i: (x, Fraction(y - x, self.more)) for i, (x, y) in found.items()}

    def size(self, node: fx.Node, dim: int, positions: int) -> int:
        """Of a dimension, where it is of so many positions."""
        here, there = (shape_of(n)[dim] for n in (node, self.twin[node]))
        return self.at((here, Fraction(there - here, self.more)), positions)

    def at(self, number: tuple[int, Fraction], positions: int) -> int:
        """A number for so many positions."""
        value = number[0] + number[1] * (positions - self.length)
        assert value.denominator == 1
        return int(value)


def _pairs(first: fx.Graph, second: fx.Graph, lengths: tuple[int, int]) -> dict[fx.Node, fx.Node]:
    twin: dict[fx.Node, fx.Node] = {}
    for a, b in zip(first.nodes, second.nodes, strict=False):
        if (a.op, str(a.target)) != (b.op, str(b.target)) and a.op != "placeholder" or [
            twin.get(n) for n in a.all_input_nodes
        ] != b.all_input_nodes:
            raise UnlikeLengths(
                f"the model is not the same for every length: first {words_of(a)} with {lengths[0]} positions, "
                f"{words_of(b)} with {lengths[1]}: no cache can be derived; generate without one (--no-cache)"
            )
        twin[a] = b
    return twin


def sized_dimension(node: fx.Node, place: int) -> int | None:
    """The dimension of a call's result whose size the number at a place of its arguments is; None where it is none."""
    rule, before = rule_of(str(node.target)), 0
    for n, argument in enumerate(node.args):
        inside, many = place - before, len(pytree.tree_leaves(argument))
        if 0 <= inside < many:
            if node.target == torch.ops.aten.slice.Tensor and n == _SLICE_END:
                return int(node.args[1])  # type: ignore[arg-type]
            sizes = rule is not None and rule.literals is not None and rule.literals.kind in ("shape", "grown")
            return inside if sizes and isinstance(argument, list | tuple) else None
        before += many
    return None


def flat_arguments(node: fx.Node) -> tuple[list[Any], Any]:
    """A call's arguments, nested ones flattened, and how they lie."""
    return pytree.tree_flatten((node.args, node.kwargs))


def at_length(graph: Graph, numbers: Numbers, positions: int) -> Graph:
    """``graph``, one of those that ``numbers`` are of, for sources of so many positions."""
    if positions == numbers.length:
        return graph
    new, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    new.output(new.graph_copy(graph.module.graph, copies))
    for old, node in copies.items():
        node.name, node.meta = old.name, dict(old.meta)
        node.meta["slopes"] = _slopes(old, numbers, positions)
        if old.op == "placeholder":
            shape = [numbers.size(old, d, positions) for d in range(len(shape_of(old)))]
            node.meta["val"] = torch.empty(shape, dtype=old.meta["val"].dtype, device="meta")
        elif differing := numbers.differing(old):
            leaves, spec = flat_arguments(node)
            for place, number in differing.items():
                leaves[place] = numbers.at(number, positions)
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            node.args, node.kwargs = tuple(args), dict(kwargs)
    module = fx.GraphModule(graph.module, new)
    propagate(module)
    return replace(graph, module=module, counts=())


def _slopes(node: fx.Node, numbers: Numbers, positions: int) -> Mapping[int, Fraction]:
    """What a further sample adds to each number, which may be so much for each position."""
    here: dict[int, Any] = node.meta.get("slopes", {})
    there: dict[int, Any] = numbers.twin[node].meta.get("slopes", {})
    share = Fraction(positions - numbers.length, numbers.more)
    return {place: slope + (there.get(place, slope) - slope) * share for place, slope in here.items()}
