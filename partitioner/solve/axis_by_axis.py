"""Layouts on all axes of a mesh: outermost first, each optimal on what those before it leave, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from partitioner.cluster import Cluster
from partitioner.cost.op_work import Setting
from partitioner.layouts.solution import Solution
from partitioner.layouts.strategies import space
from partitioner.solve.choices import Allowed, Prices
from partitioner.solve.solve import solve_each


def solve_axes(
    setting: Setting, cluster: Cluster, counts: Iterable[int], allowed: Callable[[str], Allowed], scarcity: float = 1.0
) -> dict[int, Solution]:
    """The layouts for each of ``counts`` micro-batches that may share a step, one object where one is enough.

    ``allowed(axis)(value, placement)`` restricts a parameter or a port along an axis (a pin). Raises NoLayout when the
    pins leave none.
    """
    found: dict[int, Solution | None] = dict.fromkeys(counts)
    for n, (axis, ranks) in enumerate(setting.axes):
        nearer = math.prod(size for _, size in setting.axes[n + 1 :])
        here = replace(setting, axes=setting.axes[: n + 1], nearer=nearer) if setting.axes[n + 1 :] else setting
        for fixed in {id(row): row for row in found.values()}.values():
            own = [many for many, row in found.items() if row is fixed]
            options = space(setting.folded, axis, ranks, fixed)
            found |= solve_each(setting.folded, options, Prices(cluster, here, 1, scarcity), own, allowed(axis))
    return {many: row for many, row in found.items() if row is not None}
