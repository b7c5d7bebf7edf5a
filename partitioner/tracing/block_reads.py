"""Blocks that do the same read as many values: what one reads twice, where a sibling reads two, an alias parts.

    block 0    f(h0, h0)    -->    alias = h0;  f(h0, alias)
    block 1    f(h1, h0)           f(h1, h0)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import count

import torch
from torch import fx

from partitioner.graph.nodes import emit, operands, shape_of

Place = tuple[int, int]  # of an op in its block, of an operand among the op's


def part_reads(graph: fx.Graph, blocks: Sequence[list[fx.Node]], body: set[fx.Node]) -> None:
    """Give each of ``blocks`` (nodes in order) an alias of what it alone reads at several places, in ``graph``.

    Only values of ``body`` are parted, and only between blocks that are alike but for what they read.
    """
    groups: dict[Hashable, list[list[fx.Node]]] = {}
    for nodes in blocks:
        groups.setdefault(_alike(nodes), []).append(nodes)
    for group in groups.values():
        read = [_read(nodes, body) for nodes in group]
        if all(found.keys() == read[0].keys() for found in read):
            _part(graph, group, read)


def _alike(nodes: list[fx.Node]) -> Hashable:
    return tuple((str(n.target), str(n.meta["val"]), tuple(map(shape_of, operands(n)))) for n in nodes)


def _read(nodes: list[fx.Node], body: set[fx.Node]) -> dict[Place, fx.Node]:
    """What a block reads from outside, of all places."""
    own = set(nodes)
    places = (((i, slot), n) for i, node in enumerate(nodes) for slot, n in enumerate(operands(node)))
    return {place: n for place, n in places if n in body and n not in own}


def _part(graph: fx.Graph, group: list[list[fx.Node]], read: list[dict[Place, fx.Node]]) -> None:
    together = {place: tuple(found[place] for found in read) for place in read[0]}
    for number, nodes in enumerate(group):
        for source in dict.fromkeys(read[number].values()):
            ports = dict.fromkeys(together[p] for p, n in read[number].items() if n is source)
            for port in list(ports)[1:]:
                with graph.inserting_before(nodes[0]):
                    alias = emit(graph, source, torch.ops.aten.alias.default, source)
                if "samples" in source.meta:
                    alias.meta["samples"] = source.meta["samples"]
                for index, slot in (p for p in read[number] if together[p] == port):
                    _replace(nodes[index], slot, alias)


def _replace(node: fx.Node, slot: int, new: fx.Node) -> None:
    numbers = count()
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: new if next(numbers) == slot else n)
    node.args, node.kwargs = args, kwargs
