"""Every way to cut a step that search may propose, each with a bound on its time and its exact memory.

for each tp, cp, micro-batch           resize, enumerate
for each pp, dp                        solve for the micro-batches that a step then has      (the layouts)
for each order, schedule               cut stages
for each ZeRO stage                    as few recomputed blocks as fit in memory, of each stage its own number; or all
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from partitioner.cluster import Cluster
from partitioner.cost.op_work import Setting
from partitioner.cost.unit_cost import Priced, price_each
from partitioner.graph.graph import Graph, Unit
from partitioner.graph.resize_batch import at_batch, resize
from partitioner.graph.tied_blocks import Folded, fold
from partitioner.layouts.strategies import space
from partitioner.plan.executed import EXECUTED, is_searched
from partitioner.plan.parallelism import NO_RECOMPUTE, Parallelism, mesh_of
from partitioner.schedule.tables import PLAIN, SCHEDULES
from partitioner.searching.pins import Pins
from partitioner.sharding.mesh_axes import CP, DP, PP, TP
from partitioner.solve.choices import NoLayout, Prices
from partitioner.solve.solve import solve_each
from partitioner.step.cut_stages import StageCuts
from partitioner.step.least_recompute import least_recomputed
from partitioner.step.rank_memory import RankMemory
from partitioner.step.split import Split, StageSums, stage_sums
from partitioner.step.step_seconds import bound

MOST_MICRO_BATCH = 16
MOST_VIRTUAL = 4
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate: no schedule of its stages takes less than ``least_seconds``."""

    priced: Priced
    split: Split
    least_seconds: float
    peak_bytes: float

    @property
    def plainness(self) -> tuple[object, ...]:
        """Among equal times: fewest bytes, then the plainest mesh."""
        own = self.split.parallelism
        degrees = (own.degree(axis) for axis in (PP, CP, TP, DP))
        ways = (own.virtual, own.zero, sum(self.split.recomputed), own.recompute)
        return (self.peak_bytes, *degrees, *ways, own.schedule, own.micro_batch, own.order)


def candidates(
    graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins, plan_only: bool, progress: Progress,
    scarcity: float = 1.0,
) -> Iterator[Tried]:  # fmt: skip
    """All of them that the pins admit; with ``plan_only`` also what the runtime can't execute yet.

    ``scarcity``: passes of memory that a byte costs where layouts are chosen.
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
                for tried in _Splits(alike, cp, micro_batch, global_batch, fixed, plan_only).all_of(pps):
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


class _Splits:
    """The stages of one priced graph, and every split of a step into them."""

    def __init__(
        self, priced: Priced, cp: int, micro_batch: int, global_batch: int, fixed: Pins, plan_only: bool
    ) -> None:
        self.priced, self.cp, self.micro_batch, self.global_batch = priced, cp, micro_batch, global_batch
        self.fixed, self.plan_only = fixed, plan_only
        self.cluster, self.cuts = priced.cluster, StageCuts(priced)
        self.blocks = sum(u.is_block for u in priced.folded.graph.units)
        self.sums: dict[tuple[float, ...], StageSums] = {}
        self.ways = tuple(way for way in EXECUTED["recompute"].searched(plan_only) if way != NO_RECOMPUTE)
        self.stages: dict[int, tuple[tuple[Unit, ...], ...]] = {}

    def all_of(self, depths: Iterable[int]) -> Iterator[Tried]:
        for pp in depths:
            dp = self.cluster.devices // (self.priced.ranks * self.cp * pp)
            many = self.global_batch // (dp * self.micro_batch)
            for kind, virtual in schedules(pp, self.blocks, many, self.plan_only):
                if self.fixed.admits("schedule", kind) and self.fixed.admits("virtual", virtual):
                    mesh = mesh_of(pp=pp, dp=dp, cp=self.cp, tp=self.priced.ranks)
                    yield from self.sharded_and_recomputed(
                        Parallelism(
                            mesh=mesh, order=tuple(mesh), micro_batch=self.micro_batch, micro_batches=many,
                            schedule=kind, virtual=virtual, recompute=NO_RECOMPUTE,
                        )
                    )  # fmt: skip

    def sharded_and_recomputed(self, parallelism: Parallelism) -> Iterator[Tried]:
        units = self.stage_units(parallelism.stage_count)
        if not units:
            return
        stages, orders = tuple(self.sums_of(u) for u in units), self.orders(parallelism.mesh)
        for zero in self.zeros(parallelism.replicas):
            sharded = replace(parallelism, zero=zero)
            plain = Split(parallelism=sharded, stages=stages, units=units, recomputed=(0,) * len(stages))
            for split, peak_bytes in self.recomputed(plain):
                for order in orders:
                    ordered = replace(split, parallelism=replace(split.parallelism, order=order))
                    least = bound(self.priced, ordered)
                    yield Tried(priced=self.priced, split=ordered, least_seconds=least, peak_bytes=peak_bytes)

    def recomputed(self, plain: Split) -> Iterator[tuple[Split, float]]:
        """Nothing; of each way that is admitted the least that fits, and all blocks; with peak bytes."""
        ways, room = self.ways, self.cluster.device.room
        if self.fixed.admits("recompute", NO_RECOMPUTE):
            peak_bytes = RankMemory(self.priced, plain).peak_bytes(plain.recomputed)
            yield plain, peak_bytes
            if peak_bytes <= room and "recompute" not in self.fixed.decided:
                ways = ()
        everything = tuple(s.blocks for s in plain.stages)
        for way in (w for w in ways if self.fixed.admits("recompute", w)):
            split = plain.recomputing(way, everything)
            memory = RankMemory(self.priced, split)
            least = least_recomputed(memory, room)
            if least is not None and least != everything and "recompute" not in self.fixed.decided:
                yield plain.recomputing(way, least), memory.peak_bytes(least)
            yield split, memory.peak_bytes(everything)

    def stage_units(self, stages: int) -> tuple[tuple[Unit, ...], ...]:
        if stages not in self.stages:
            pinned = self.fixed.stages
            self.stages[stages] = self.cuts.evenest(stages) if pinned is None else self.cuts.of_counts(pinned, stages)
        return self.stages[stages]

    def sums_of(self, units: tuple[Unit, ...]) -> StageSums:
        """Stages of units that cost the same, and that receive and send the same, cost the same."""
        start, end = self.priced.place[units[0]], self.priced.place[units[-1]] + 1
        ends = [row[cut] for row in (self.priced.crossing, self.priced.returned) for cut in (start, end)]
        key = (*ends, *(id(self.priced.unit(u)) for u in units))
        if key not in self.sums:
            self.sums[key] = stage_sums(self.priced, units, self.ways)
        return self.sums[key]

    def orders(self, mesh: dict[str, int]) -> list[tuple[str, ...]]:
        """Stages outermost; or where both span nodes, data parallel outermost, so that neighbouring stages are near."""
        usual = tuple(mesh)
        if self.cluster.nodes == 1 or mesh[PP] == 1 or mesh[DP] == 1:
            return [usual]
        return [usual, (DP, PP, *(axis for axis in usual if axis not in (DP, PP)))]

    def zeros(self, replicas: int) -> list[int]:
        found = EXECUTED["zero"].searched(self.plan_only) if replicas > 1 else (0,)
        return [n for n in found if self.fixed.admits("zero", n)]


def schedules(pp: int, blocks: int, micro_batches: int, plan_only: bool) -> Iterator[tuple[str, int]]:
    """Kinds and virtual stages that fit."""
    for row in SCHEDULES.values():
        fits = (row.name == PLAIN or pp > 1) and not (row.in_rounds and micro_batches % pp)
        if fits and is_searched("schedule", row.name, plan_only):
            for virtual in range(row.fewest_stages, (row.most_stages or MOST_VIRTUAL) + 1):
                if virtual == 1 or pp * virtual <= blocks:
                    yield row.name, virtual
