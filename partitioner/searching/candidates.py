"""Every way to cut a step that search may propose, each with a bound on its time and its exact memory.

for each tp, cp, micro-batch           resize, enumerate
for each pp, dp                        solve for the micro-batches that a step then has      (the layouts)
for each order, schedule               cut stages
for each ZeRO stage                    as few recomputed blocks as fit in memory, of each stage its own number; or all
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator

from partitioner.cluster import Cluster
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_each
from partitioner.cost.unit_cost import Priced
from partitioner.graph.graph import Graph
from partitioner.graph.resize_batch import at_batch, resize
from partitioner.graph.tied_blocks import Folded, fold
from partitioner.layouts.strategies import space
from partitioner.plan.executed import is_searched
from partitioner.searching.pins import Pins
from partitioner.searching.splits import Splits, Tried
from partitioner.sharding.mesh_axes import CP, DP, PP, TP
from partitioner.solve.choices import NoLayout, Prices
from partitioner.solve.solve import solve_each

MOST_MICRO_BATCH = 16
Progress = Callable[[str], None]


def candidates(
    graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins, plan_only: bool, progress: Progress,
    scarcity: float = 1.0, setups: Container[tuple[int, int, int]] | None = None,
) -> Iterator[Tried]:  # fmt: skip
    """All of them that the pins admit; with ``plan_only`` also what the runtime can't execute yet.

    ``scarcity``: passes of memory that a byte costs where layouts are chosen. ``setups``: the tp, cp and micro-batches
    asked for, where not all are.
    A tp whose layouts the pins exclude has none; raises NoLayout where that leaves nothing at all.
    """
    refused, found = list[NoLayout](), False
    folded = fold(graph)
    degrees = [n for n in divisors(cluster.devices) if stays_inside(TP, n, cluster, fixed)]
    contexts = [n for n in divisors(cluster.devices) if is_searched(CP, n, plan_only)]
    for micro_batch in divisors(global_batch):
        pairs = [
            (tp, cp) for tp in degrees for cp in contexts
            if cluster.devices % (tp * cp) == 0 and fixed.admits(CP, cp)
            and admits_micro_batch(micro_batch, global_batch, cluster.devices // (tp * cp), fixed)
            and (setups is None or (tp, cp, micro_batch) in setups)
        ]  # fmt: skip
        sized = (at_batch(folded, micro_batch) or fold(resize(graph, micro_batch))) if pairs else None
        for tp, cp in pairs:
            progress(f"layouts at tp {tp}, cp {cp}, micro-batch {micro_batch}")
            assert sized is not None
            counts = micro_batches(sized, cluster.devices // (tp * cp), micro_batch, global_batch, fixed)
            depths: dict[Priced, list[int]] = {}
            try:
                priced = layouts(sized, cluster, tp, cp, set(counts.values()), fixed, scarcity)
            except NoLayout as error:
                refused.append(error)
                continue
            for pp, many in counts.items():
                depths.setdefault(priced[many], []).append(pp)
            for alike, pps in depths.items():
                for tried in Splits(alike, cp, micro_batch, global_batch, fixed, plan_only).all_of(pps):
                    found = True
                    yield tried
    if refused and not found:
        raise refused[-1]


def layouts(
    sized: Folded, cluster: Cluster, tp: int, cp: int, counts: Iterable[int], fixed: Pins, scarcity: float = 1.0
) -> dict[int, Priced]:
    """The best layouts of one tp, cp and micro-batch, priced, for each of ``counts`` micro-batches a step."""
    setting = Setting.of(sized, cluster, tp, cp)
    found = solve_each(sized, space(sized, tp), Prices(cluster, setting, 1, scarcity), counts, fixed.allows(sized))
    distinct = {id(solution): solution for solution in found.values()}
    priced = dict(zip(distinct, price_each(setting, distinct.values(), cluster), strict=True))
    return {many: priced[id(solution)] for many, solution in found.items()}


def micro_batches(sized: Folded, ranks: int, micro_batch: int, global_batch: int, fixed: Pins) -> dict[int, int]:
    """By each pp that ``ranks`` and the pins admit, how many micro-batches a step has."""
    blocks = sum(u.is_block for u in sized.graph.units)
    pairs = [(pp, ranks // pp) for pp in divisors(ranks) if pp <= max(1, blocks)]
    admitted = [(pp, dp) for pp, dp in pairs if fixed.admits(PP, pp) and fixed.admits(DP, dp)]
    return {pp: global_batch // (dp * micro_batch) for pp, dp in admitted if global_batch % (dp * micro_batch) == 0}


def divisors(n: int) -> list[int]:
    """Of a positive number, rising."""
    return [d for d in range(1, n + 1) if n % d == 0]


def stays_inside(axis: str, degree: int, cluster: Cluster, fixed: Pins) -> bool:
    """An axis stays inside a node unless it is pinned."""
    return fixed.admits(axis, degree) and (degree <= cluster.node_devices or fixed.number(axis) is not None)


def admits_micro_batch(size: int, global_batch: int, ranks: int, fixed: Pins) -> bool:
    """Whether some dp of ``ranks`` divides the batch into micro-batches of this size."""
    small = size <= MOST_MICRO_BATCH or fixed.number("micro_batch") is not None
    return small and fixed.admits("micro_batch", size) and any(global_batch % (d * size) == 0 for d in divisors(ranks))
