"""Where to cut a pipeline: contiguous runs of units, the slowest as fast as can be, each with at least one block."""

from __future__ import annotations

from functools import cache

from partitioner.cost import Priced
from partitioner.graph import Unit


def cut(priced: Priced, stages: int) -> tuple[tuple[Unit, ...], ...]:
    """``stages`` runs of units in order, by dynamic programming over (units taken, stages left); () if too few blocks.

    Minimizes the slowest stage, then the sum of squares, so that what can be even is even.
    """
    units = priced.folded.graph.units
    weights = [priced.unit(u).seconds.total for u in units]
    blocks = [u.is_block for u in units]
    if sum(blocks) < stages:
        return () if stages > 1 else (units,)

    @cache
    def best(start: int, left: int) -> tuple[float, float, tuple[int, ...]] | None:
        if left == 1:
            if not any(blocks[start:]) and stages > 1:
                return None
            total = sum(weights[start:])
            return total, total * total, ()
        found: tuple[float, float, tuple[int, ...]] | None = None
        total = 0.0
        for end in range(start + 1, len(units) - left + 2):
            total += weights[end - 1]
            if found is not None and total > found[0]:
                break
            rest = best(end, left - 1) if any(blocks[start:end]) else None
            if rest is not None:
                row = (max(total, rest[0]), total * total + rest[1], (end, *rest[2]))
                found = row if found is None or row < found else found
        return found

    answer = best(0, stages)
    if answer is None:
        return ()
    bounds = [0, *answer[2], len(units)]
    return tuple(units[a:b] for a, b in zip(bounds, bounds[1:], strict=False))
