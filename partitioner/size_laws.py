"""How the sizes of a graph grow with the batch: two traces say by how much each does, a third whether it goes on so.

                      at 4     at 5     at 8      evenly?
    x.shape[0]        4        5        8         yes: 1 a sample
    x.shape[0] // 2   2        2        4         no: by 0 a sample between the first two
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import fx
from torch.utils import _pytree as pytree

from partitioner.batch_laws import expected, module_name
from partitioner.batch_numbers import is_size, pairs
from partitioner.errors import InputError


@dataclass(frozen=True)
class Numbers:
    """Of one op: ``sizes`` of its result and among its arguments, and the other numbers among these."""

    name: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]


def numbers_in(graph: fx.Graph) -> list[Numbers]:
    """Of every op and placeholder, in order."""
    return [_of(node) for node in graph.nodes if node.op != "output"]


def uneven(first: list[Numbers], second: list[Numbers], third: list[Numbers], samples: tuple[int, int, int]) -> str:
    """The first op whose numbers do not grow from the second trace to the third as they did before; "" for none.

    The third may be other ops, where a slice takes all that there is: then it does not tell.
    """
    n, m, p = samples
    rows = list(zip(first, second, third, strict=False))
    if any(len({len(x.sizes) for x in row}) > 1 or len({len(x.values) for x in row}) > 1 for row in rows):
        return ""
    for a, b, c in rows:
        sizes = zip(a.sizes, b.sizes, c.sizes, strict=True)
        values = zip(a.values, b.values, c.values, strict=True)
        even = all((y - x) * (p - n) == (z - x) * (m - n) for x, y, z in sizes)
        if not even or not all(_is(expected(x, y, (n, m), p), z) for x, y, z in values):
            return a.name
    return ""


def _is(wanted: float | None, found: float) -> bool:
    return wanted is None or wanted == found or math.isclose(wanted, found, rel_tol=1e-12) or found != found


def _of(node: fx.Node) -> Numbers:
    leaves = pytree.tree_leaves_with_path((node.args, node.kwargs))
    found = [(x, is_size(node, path)) for path, x in leaves if type(x) in (int, float)]
    value = node.meta.get("val")
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    sizes, values = ([x for x, size in found if size is kind] for kind in (True, False))
    words = f"{node.target} in {module_name(node)}"
    return Numbers(words, (*(int(x) for x in sizes), *shape), tuple(values))


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
