"""How the sizes of a graph grow with the batch: two traces say by how much each does, a third whether it is evenly.

                      at 4     at 5     at 8      evenly?
    x.shape[0]        4        5        8         yes: 1 a sample
    x.shape[0] // 2   2        2        4         no: by 0 a sample between the first two
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import fx
from torch.utils import _pytree as pytree

from partitioner.batch_numbers import module_name, pairs
from partitioner.errors import InputError

Ints = list[list[int]]  # of each op


def sizes_in(graph: fx.Graph) -> Ints:
    """Every integer among an op's arguments and every size of its result."""
    return [_of(node) for node in graph.nodes if node.op != "output"]


def grow_evenly(first: Ints, second: Ints, third: Ints, samples: tuple[int, int, int]) -> bool:
    """Whether what grows from the first trace to the second goes on to do so up to the third, if that is the same ops.

    It may be others there, where a slice takes all that there is.
    """
    rows = [[len(row) for row in sizes] for sizes in (first, second, third)]
    if rows[0] != rows[1] or rows[0] != rows[2]:
        return True
    n, m, p = samples
    flat = ([x for row in sizes for x in row] for sizes in (first, second, third))
    return all((b - a) * (p - n) == (c - a) * (m - n) for a, b, c in zip(*flat, strict=True))


def _of(node: fx.Node) -> list[int]:
    leaves = [x for x in pytree.tree_leaves((node.args, node.kwargs)) if type(x) is int]
    value = node.meta.get("val")
    return [*leaves, *(value.shape if isinstance(value, torch.Tensor) else ())]


def note_sizes(first: fx.Graph, second: fx.Graph, sizes: tuple[int, int]) -> None:
    """Note in ``meta["slopes"]`` of the first trace by how much each of its sizes grows with each further sample.

    Of an op by the number of the argument among all (nested ones flattened), of a placeholder by its dimension.
    """
    more = sizes[1] - sizes[0]
    for a, b in pairs(first, second, sizes):
        if a.op == "output":
            continue
        if a.op == "placeholder":
            here, there = list(a.meta["val"].shape), list(b.meta["val"].shape)
        else:
            here, there = (pytree.tree_leaves((n.args, n.kwargs)) for n in (a, b))
        rows = list(enumerate(zip(here, there, strict=True)))
        different = {i: (x, y) for i, (x, y) in rows if isinstance(x, int) and type(x) is type(y) and x != y}
        a.meta["slopes"] = {i: Fraction(y - x, more) for i, (x, y) in different.items()}


def resize_node(node: fx.Node, more: int) -> None:
    """Change the sizes of a node, whose slopes are noted, for ``more`` samples than it has."""
    slopes: dict[int, Fraction] = node.meta.get("slopes", {})
    if not slopes:
        return
    if any(more * slope % 1 for slope in slopes.values()):
        unit = math.lcm(*(slope.denominator for slope in slopes.values()))
        raise InputError(
            f"{node.target} in {module_name(node)} takes samples by {unit}: give a batch of a multiple of {unit}"
        )
    if node.op == "placeholder":
        value = node.meta["val"]
        shape = [n + int(more * slopes.get(d, 0)) for d, n in enumerate(value.shape)]
        node.meta["val"] = torch.empty(shape, dtype=value.dtype, device="meta")
        return
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    for place, slope in slopes.items():
        leaves[place] += int(more * slope)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    node.args, node.kwargs = tuple(args), dict(kwargs)
