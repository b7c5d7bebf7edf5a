"""Do the sizes of a graph grow evenly with the batch? Two traces say by how much each grows, a third whether it does.

                      at 4     at 5     at 8      evenly?
    x.shape[0]        4        5        8         yes: 1 a sample
    x.shape[0] // 2   2        2        4         no: by 0 a sample between the first two
"""

from __future__ import annotations

import torch
from torch import fx
from torch.utils import _pytree as pytree

Sizes = list[list[int]]  # of each op


def sizes_in(graph: fx.Graph) -> Sizes:
    """Every integer among an op's arguments and every size of its result."""
    return [_of(node) for node in graph.nodes if node.op != "output"]


def grow_evenly(first: Sizes, second: Sizes, third: Sizes, samples: tuple[int, int, int]) -> bool:
    """Whether what grows from the first trace to the second goes on to do so up to the third."""
    rows = [[len(row) for row in sizes] for sizes in (first, second, third)]
    if rows[0] != rows[1] or rows[0] != rows[2]:
        return False
    n, m, p = samples
    flat = ([x for row in sizes for x in row] for sizes in (first, second, third))
    return all((b - a) * (p - n) == (c - a) * (m - n) for a, b, c in zip(*flat, strict=True))


def _of(node: fx.Node) -> list[int]:
    leaves = [x for x in pytree.tree_leaves((node.args, node.kwargs)) if type(x) is int]
    value = node.meta.get("val")
    return [*leaves, *(value.shape if isinstance(value, torch.Tensor) else ())]
