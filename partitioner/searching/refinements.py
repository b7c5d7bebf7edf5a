"""How an axis along which ops lie may be refined, so that heads of which there are fewer than ranks are divided too.

    2 heads of keys, each for 4 of queries, on tp 8      tp_kv 2 x tp_repeat 4

Along the outer part ranks divide the keys' heads, along the inner one the queries that share one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from partitioner.graph.nodes import is_tensor, operands, shape_of
from partitioner.graph.tied_blocks import Folded
from partitioner.searching.pins import Pins
from partitioner.sharding.mesh_axes import AXES, Axes, refining
from partitioner.sharding.op_rules import rule_of

Refined = tuple[tuple[str, int], ...]  # parts and their ranks


def refinements(folded: Folded, degrees: Axes, fixed: Pins) -> list[Refined]:
    """Of a mesh with these degrees: none, and each that divides more, one axis at a time; where the ranks of a part
    are pinned, those alone."""
    found = [refined for axis, ranks in degrees for refined in _of_axis(folded, axis, ranks, fixed)]
    return found if any(fixed.number(part) is not None for part in refining()) else [(), *found]


def _of_axis(folded: Folded, axis: str, ranks: int, fixed: Pins) -> Iterator[Refined]:
    if not AXES[axis].lays or len(AXES[axis].parts) != 2:
        return
    outer, inner = AXES[axis].parts
    if fixed.number(outer) is None and fixed.number(inner) is None:
        rows = {(math.gcd(ranks, heads), repeats) for heads, repeats in repeated(folded)}
        sizes = {size for size, repeats in rows if repeats % (ranks // size) == 0}
    else:
        sizes = {size for size in range(1, ranks + 1) if ranks % size == 0}
    for size in sorted(size for size in sizes if 1 < size < ranks):
        if fixed.admits(outer, size) and fixed.admits(inner, ranks // size):
            yield (outer, size), (inner, ranks // size)


def repeated(folded: Folded) -> set[tuple[int, int]]:
    """(heads, repeats) of values that ops repeat, each for several of another value: keys that queries share."""
    return {row for group in range(len(folded.groups)) for row in _of_group(folded, group)}


def _of_group(folded: Folded, group: int) -> Iterator[tuple[int, int]]:
    """A dimension of 1 grows behind one of heads, and both are read as one."""
    for node in folded.body(group):
        rule = rule_of(str(node.target))
        if not is_tensor(node) or rule is None or rule.literals is None or rule.literals.kind != "grown":
            continue
        before, after = shape_of(operands(node)[0]), shape_of(node)
        if len(before) != len(after):
            continue
        for dim in (n for n in range(1, len(after)) if before[n] == 1 < after[n] and after[n - 1] > 1):
            both = after[dim - 1] * after[dim]
            if any(is_tensor(user) and both in shape_of(user)[dim - 1 : dim] for user in node.users):
                yield after[dim - 1], after[dim]
