"""How the sizes of a graph grow with the batch: two captures say by how much each does with every further sample."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import fx
from torch.utils import _pytree as pytree

from partitioner.errors import InputError
from partitioner.paired_captures import Sizes, module_of, pairs


def note_sizes(first: fx.Graph, second: fx.Graph, sizes: Sizes) -> None:
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
            f"{node.target} in {module_of(node)} takes samples by {unit}: give a batch of a multiple of {unit}"
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
