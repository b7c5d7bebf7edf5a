"""Every way to cut a step that search may propose, each with a bound on its time and its exact memory.

for each setup                         resize, enumerate     (inner axes' degrees, how they are refined, micro-batch)
for each pp, dp                        solve for the micro-batches that a step then has      (the layouts)
for each order, schedule               cut stages
for each ZeRO stage                    as few recomputed blocks as fit in memory, of each stage its own number; or all
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator

from partitioner.cluster import Cluster
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_each
from partitioner.cost.unit_cost import Priced
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.resize_batch import at_batch, resize
from partitioner.graph.tied_blocks import Folded, fold
from partitioner.plan.executed import Space
from partitioner.searching.pins import Pins
from partitioner.searching.refinements import refinements
from partitioner.searching.splits import Setup, Splits, Tried
from partitioner.sharding.mesh_axes import AXES, DP, PP, Axes, inner
from partitioner.solve.axis_by_axis import solve_axes
from partitioner.solve.choices import NoLayout

MOST_MICRO_BATCH = 16
Progress = Callable[[str], None]


def candidates(
    graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins, space: Space, progress: Progress,
    scarcity: float = 1.0, wanted: Container[Setup] | None = None,
) -> Iterator[Tried]:  # fmt: skip
    """All of them that the pins and the ``space`` admit.

    ``scarcity``: passes of memory that a byte costs where layouts are chosen. ``wanted``: the setups asked for, where
    not all are.
    A setup whose layouts the pins exclude has none; raises InputError where that leaves nothing at all.
    """
    refused, found = list[InputError](), False
    folded = fold(graph)
    meshes = [
        (degrees, refined) for degrees in inner_degrees(cluster, fixed, space)
        for refined in refinements(folded, degrees, fixed)
    ]  # fmt: skip
    for micro_batch in divisors(global_batch):
        setups = [
            setup for setup in (Setup(degrees, micro_batch, refined) for degrees, refined in meshes)
            if admits_micro_batch(micro_batch, global_batch, cluster.devices // setup.ranks, fixed)
            and (wanted is None or setup in wanted)
        ]  # fmt: skip
        sized = (at_batch(folded, micro_batch) or fold(resize(graph, micro_batch))) if setups else None
        for setup in setups:
            progress(f"layouts at {setup}")
            assert sized is not None
            counts = micro_batches(sized, cluster.devices // setup.ranks, micro_batch, global_batch, fixed, space)
            depths: dict[Priced, list[int]] = {}
            try:
                priced = layouts(sized, cluster, setup, set(counts.values()), fixed, scarcity)
            except NoLayout as error:
                refused.append(error)
                continue
            for pp, many in counts.items():
                depths.setdefault(priced[many], []).append(pp)
            for alike, pps in depths.items():
                splits = Splits(alike, setup, global_batch, fixed, space)
                for tried in splits.all_of(pps):
                    found = True
                    yield tried
                refused += [InputError(splits.refused)] if splits.refused else []
    if refused and not found:
        raise refused[-1]


def layouts(
    sized: Folded, cluster: Cluster, setup: Setup, counts: Iterable[int], fixed: Pins, scarcity: float = 1.0
) -> dict[int, Priced]:
    """The best layouts of one setup, priced, for each of ``counts`` micro-batches a step."""
    setting = Setting.of(sized, cluster, dict(setup.degrees), dict(setup.refined))
    allowed = fixed.allows(sized)
    found = solve_axes(setting, cluster, counts, lambda axis: allowed, scarcity)
    distinct = {id(solution): solution for solution in found.values()}
    priced = dict(zip(distinct, price_each(setting, distinct.values(), cluster), strict=True))
    return {many: priced[id(solution)] for many, solution in found.items()}


def micro_batches(
    sized: Folded, ranks: int, micro_batch: int, global_batch: int, fixed: Pins, space: Space
) -> dict[int, int]:
    """By each pp that ``ranks``, the pins and the ``space`` admit, how many micro-batches a step has."""
    blocks = sum(u.is_block for u in sized.graph.units)
    pairs = [(pp, ranks // pp) for pp in divisors(ranks) if pp <= space.most_stages(max(1, blocks))]
    admitted = [(pp, dp) for pp, dp in pairs if _both(PP, pp, fixed, space) and _both(DP, dp, fixed, space)]
    return {pp: global_batch // (dp * micro_batch) for pp, dp in admitted if global_batch % (dp * micro_batch) == 0}


def _both(axis: str, degree: int, fixed: Pins, space: Space) -> bool:
    return fixed.admits(axis, degree) and space.admits(axis, degree)


def divisors(n: int) -> list[int]:
    """Of a positive number, rising."""
    lower = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return lower + [n // d for d in reversed(lower) if d * d != n]


def inner_degrees(cluster: Cluster, fixed: Pins, space: Space) -> Iterator[Axes]:
    """The degrees of the axes that divide the work of a micro-batch, that the devices and the pins admit."""
    axes, devices = inner(), cluster.devices
    rows = ([n for n in divisors(devices) if _admits(axis, n, cluster, fixed, space)] for axis in reversed(axes))
    for degrees in itertools.product(*rows):
        if devices % math.prod(degrees) == 0:
            yield tuple(zip(axes, reversed(degrees), strict=True))


def _admits(axis: str, degree: int, cluster: Cluster, fixed: Pins, space: Space) -> bool:
    """One that is to stay inside a node does unless it is pinned."""
    inside = not AXES[axis].in_node or degree <= cluster.node_devices or fixed.number(axis) is not None
    return inside and _both(axis, degree, fixed, space)


def admits_micro_batch(size: int, global_batch: int, ranks: int, fixed: Pins) -> bool:
    """Whether some dp of ``ranks`` divides the batch into micro-batches of this size."""
    small = size <= MOST_MICRO_BATCH or fixed.number("micro_batch") is not None
    return small and fixed.admits("micro_batch", size) and any(global_batch % (d * size) == 0 for d in divisors(ranks))
