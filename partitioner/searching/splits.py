"""The stages of one priced graph, and every split of a step into them: schedule, ZeRO, recomputed blocks, order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from partitioner.cost.unit_cost import Priced
from partitioner.graph.graph import Unit
from partitioner.plan.executed import Space
from partitioner.plan.parallelism import Parallelism, mesh_of
from partitioner.plan.recompute_ways import NO_RECOMPUTE, WAYS
from partitioner.schedule.tables import PLAIN, SCHEDULES
from partitioner.searching.pins import Pins
from partitioner.sharding.mesh_axes import DP, PP, Axes, inner
from partitioner.step.cut_stages import StageCuts
from partitioner.step.fitting_cuts import FittingCuts
from partitioner.step.least_recompute import least_alike, least_recomputed
from partitioner.step.rank_memory import RankMemory
from partitioner.step.split import Split, StageSums, stage_sums
from partitioner.step.stage_peaks import StageWalk
from partitioner.step.step_seconds import bound, floor

MOST_CUTS = 4  # of one step and way of recomputing, each made with what the last was found to hold


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate."""

    priced: Priced
    split: Split
    peak_bytes: float

    @cached_property
    def floor_seconds(self) -> float:
        """No more than ``least_seconds``."""
        return floor(self.priced, self.split)

    @cached_property
    def least_seconds(self) -> float:
        """No schedule of its stages takes less; of most candidates nobody asks, as their floor is too high."""
        return bound(self.priced, self.split)

    def may_take_less(self, seconds: float) -> bool:
        """Whether some schedule of its stages may."""
        return self.floor_seconds < seconds and self.least_seconds < seconds

    @property
    def identity(self) -> tuple[object, ...]:
        """What no two candidates share, unless they are the same step: layouts are known by their bytes and seconds."""
        own, units = self.split.parallelism, tuple(map(len, self.split.units))
        mesh = (*own.mesh.items(), *own.refined.items())
        ways = (own.order, own.micro_batch, own.schedule, own.virtual, own.recompute, own.zero, own.zero_group)
        return (*mesh, *ways, self.split.recomputed, units, self.priced.seconds, self.peak_bytes)

    @property
    def plainness(self) -> tuple[object, ...]:
        """Among equal times: fewest bytes, then the plainest mesh."""
        own = self.split.parallelism
        degrees = (own.degree(axis) for axis in (PP, *inner(), DP))
        ways = (own.virtual, own.zero, own.zero_group, sum(self.split.recomputed), own.recompute)
        return (self.peak_bytes, *degrees, len(own.refined), *ways, own.schedule, own.micro_batch, own.order)


class Setup(NamedTuple):
    """What a graph is priced for: the degrees of the axes that divide the work of a micro-batch, its samples, and how
    axes are refined."""

    degrees: Axes
    micro_batch: int
    refined: Axes = ()

    @property
    def ranks(self) -> int:
        """That share a micro-batch's work in a stage."""
        return math.prod(ranks for _, ranks in self.degrees)

    def __str__(self) -> str:
        words = [f"{axis} {n}" for axis, n in (*reversed(self.degrees), *self.refined)]
        return f"{', '.join(words)}, micro-batch {self.micro_batch}"


class Splits:
    """The stages of one priced graph, and every split of a step into them."""

    def __init__(self, priced: Priced, setup: Setup, global_batch: int, fixed: Pins, space: Space) -> None:
        self.priced, self.setup, self.micro_batch, self.global_batch = priced, setup, setup.micro_batch, global_batch
        self.fixed, self.space = fixed, space
        self.cluster, self.cuts, self.fitting_cuts = priced.cluster, StageCuts(priced), FittingCuts(priced)
        self.most_stages = space.most_stages(sum(u.is_block for u in priced.folded.graph.units))
        self.walks: dict[tuple[float, ...], tuple[StageWalk, dict[int, StageSums]]] = {}  # and sums by shards
        ways = [way for way in space.values["recompute"] if way != NO_RECOMPUTE]
        asked = [way for way in ways if fixed.decided.get("recompute") == way]
        self.ways = tuple(asked or _freeing(priced, ways))
        self.refused = ""  # why splits that the pins admit can't run
        self.stages: dict[int, tuple[tuple[Unit, ...], ...]] = {}
        self.sums: dict[tuple[int, int], tuple[StageSums, ...]] = {}  # of ``stages``, by ranks that divide state

    def all_of(self, depths: Iterable[int]) -> Iterator[Tried]:
        for pp in depths:
            dp = self.cluster.devices // (self.setup.ranks * pp)
            many = self.global_batch // (dp * self.micro_batch)
            for kind, virtual in schedules(pp, self.most_stages, many, self.space):
                if self.fixed.admits("schedule", kind) and self.fixed.admits("virtual", virtual):
                    mesh = mesh_of(**{PP: pp, DP: dp}, **dict(self.setup.degrees))
                    yield from self.sharded_and_recomputed(
                        Parallelism(
                            mesh=mesh, order=tuple(mesh), micro_batch=self.micro_batch, micro_batches=many,
                            schedule=kind, virtual=virtual, recompute=NO_RECOMPUTE, refined=dict(self.setup.refined),
                        )
                    )  # fmt: skip

    def sharded_and_recomputed(self, parallelism: Parallelism) -> Iterator[Tried]:
        units = self.stage_units(parallelism.stage_count)
        if not units:
            return
        whole = self.read_twice(parallelism, units)
        for group, stages in self.zeros(parallelism).items():
            if whole and any(stages):
                self.refused = f"ZeRO can't divide {whole}, which two stages of a rank read: pin zero=0, or virtual=1"
            for zero in (n for n in stages if not (whole and n)):
                divided = replace(parallelism, zero=zero, zero_group=group)
                rows = list(self.recomputed_and_ordered(self.whole(divided, units)))
                yield from rows
                if zero and any(self.fits_plainly(row) for row in rows):
                    return  # what divides more moves more bytes, for memory that nothing needs

    def read_twice(self, parallelism: Parallelism, units: tuple[tuple[Unit, ...], ...]) -> str:
        """A parameter, no scalar, that two stages of one pipeline rank read; "" where there is none."""
        graph = self.priced.folded.graph
        stage_of = {unit: n for n, stage in enumerate(units) for unit in stage} if parallelism.virtual > 1 else {}
        for node, readers in graph.shared_parameters.items() if stage_of else ():
            stages = {stage_of[unit] for unit in readers}
            if node.meta["val"].dim() and len({parallelism.pipeline_rank(n) for n in stages}) < len(stages):
                return graph.parameters[node.meta["source"]].names[0]
        return ""

    def recut(self, plain: Split, seconds: float) -> Iterator[Tried]:
        """Of a split, nothing recomputed, that does not fit: its stages cut so that they do, where a step may then take
        less than ``seconds``."""
        own = plain.parallelism
        ways = tuple(way for way in self.ways if self.fixed.admits("recompute", way)) or (NO_RECOMPUTE,)
        for way in ways if self.fixed.stages is None and own.mesh[PP] > 1 and own.virtual == 1 else ():
            yield from self.recut_so(plain, way, seconds / own.micro_batches)

    def recut_so(self, plain: Split, way: str, slowest: float) -> Iterator[Tried]:
        """What a cut holds beside state and stashes is known once it is made: from there the next is looked for."""
        seen = [plain.units]
        for _ in range(MOST_CUTS):
            units = self.fitting_cuts.cut(plain, way, slowest)
            if not units or units in seen:
                return
            seen.append(units)
            plain = self.whole(plain.parallelism, units)
            rows = list(self.recomputed_and_ordered(plain))
            yield from rows
            if any(row.peak_bytes <= self.cluster.device.room for row in rows):
                return

    def whole(self, parallelism: Parallelism, units: tuple[tuple[Unit, ...], ...]) -> Split:
        """Nothing of it recomputed."""
        shards = min(parallelism.zero_group or parallelism.replicas, parallelism.replicas)
        if units is self.stages.get(len(units)):
            key = len(units), shards
            stages = self.sums[key] if key in self.sums else tuple(self.sums_of(u, shards) for u in units)
            self.sums[key] = stages
        else:
            stages = tuple(self.sums_of(u, shards) for u in units)
        return Split(parallelism=parallelism, stages=stages, units=units, recomputed=(0,) * len(stages))

    def recomputed_and_ordered(self, plain: Split) -> Iterator[Tried]:
        parallelism = plain.parallelism
        orders, room = self.orders(parallelism.mesh), self.cluster.device.room
        for split, peak_bytes in self.recomputed(plain):
            for order in orders if peak_bytes <= room else orders[:1]:  # what does not fit is only looked at for others
                ordered = replace(split, parallelism=replace(split.parallelism, order=order))
                yield Tried(priced=self.priced, split=ordered, peak_bytes=peak_bytes)

    def recomputed(self, plain: Split) -> Iterator[tuple[Split, float]]:
        """Nothing; of each way that is admitted the least that fits, and all blocks; with peak bytes. Never nothing,
        and as many as that, where a number of them is pinned."""
        ways, room, most = self.ways, self.cluster.device.room, self.fixed.number("recomputed")
        whole = RankMemory(self.priced, plain)
        if most is None and self.fixed.admits("recompute", NO_RECOMPUTE):
            peak_bytes = whole.peak_bytes(plain.recomputed)
            yield plain, peak_bytes
            if peak_bytes <= room and "recompute" not in self.fixed.decided:
                ways = ()
        everything = tuple(s.blocks if most is None else min(most, s.blocks) for s in plain.stages)
        if most is not None and most > sum(s.blocks for s in plain.stages):
            return
        some = self.space.same_recompute and everything != tuple(s.blocks for s in plain.stages)
        for way in (w for w in ways if self.fixed.admits("recompute", w) and not (some and WAYS[w].modules)):
            memory = whole.recomputing(way)
            peak_bytes = memory.peak_bytes(everything)
            if peak_bytes <= room and most is None and "recompute" not in self.fixed.decided:
                least = self.least(way)(memory, room)
                if least is not None and least != everything:
                    yield plain.recomputing(way, least), memory.peak_bytes(least)
            yield plain.recomputing(way, everything), peak_bytes

    def least(self, way: str) -> Callable[[RankMemory, float], tuple[int, ...] | None]:
        """How the fewest blocks to recompute are found, as the framework can be told of them."""
        if not self.space.same_recompute:
            return least_recomputed
        return (lambda *_: None) if WAYS[way].modules else least_alike

    def stage_units(self, stages: int) -> tuple[tuple[Unit, ...], ...]:
        if stages not in self.stages:
            pinned, cuts, software = self.fixed.stages, self.cuts, self.cluster.software
            if pinned is not None:
                self.stages[stages] = cuts.of_counts(pinned, stages, self.space.end_slots)
            elif software.balanced:
                self.stages[stages] = cuts.evenest(stages)
            else:
                self.stages[stages] = cuts.as_many_blocks(stages, self.space.end_slots)
        return self.stages[stages]

    def sums_of(self, units: tuple[Unit, ...], shards: int) -> StageSums:
        """Stages of units that cost the same, and that receive and send the same, cost the same."""
        start, end = self.priced.place[units[0]], self.priced.place[units[-1]] + 1
        ends = [row[cut] for row in (self.priced.crossing, self.priced.returned) for cut in (start, end)]
        alike = (*ends, *(id(self.priced.unit(u)) for u in units))
        if alike not in self.walks:
            walk = StageWalk(self.priced, units)
            self.walks[alike] = walk, {shards: stage_sums(self.priced, units, self.ways, shards, walk)}
        walk, sums = self.walks[alike]
        if shards not in sums:
            sums[shards] = replace(next(iter(sums.values())), stash=walk.stash(self.ways, shards))
        return sums[shards]

    def orders(self, mesh: dict[str, int]) -> list[tuple[str, ...]]:
        """Stages outermost; or where both span nodes, data parallel outermost, so that neighbouring stages are near."""
        usual = tuple(mesh)
        if self.cluster.nodes == 1 or mesh[PP] == 1 or mesh[DP] == 1:
            return [usual]
        return [usual, (DP, PP, *(axis for axis in usual if axis not in (DP, PP)))]

    def fits_plainly(self, tried: Tried) -> bool:
        """Whether it fits with nothing recomputed."""
        return tried.split.parallelism.recompute == NO_RECOMPUTE and tried.peak_bytes <= self.cluster.device.room

    def zeros(self, parallelism: Parallelism) -> dict[int, list[int]]:
        """ZeRO's stages, rising, over all replicas (0); and the one that moves most over those of a node, held again on
        each node."""
        replicas = parallelism.replicas
        inside = self.cluster.inside(parallelism.mesh[DP], parallelism.stride(DP))
        groups = (0, inside) if 1 < inside < replicas and replicas % inside == 0 else (0,)
        if (pinned := self.fixed.number("zero_group")) is not None:
            groups = (pinned % replicas,) if replicas % pinned == 0 else ()  # 0, as all of them are written
        groups = tuple(group for group in groups if self.space.admits("zero_group", group))
        stages = self.space.values["zero"] if replicas > 1 else (0,)
        admitted = [n for n in stages if self.fixed.admits("zero", n)]
        return {group: [n for n in admitted if not group or pinned or n == max(stages)] for group in groups}


def _freeing(priced: Priced, ways: Iterable[str]) -> list[str]:
    """Those by which less is kept of some block; of ways that keep as much of each, the one that runs least again."""
    stashes = [priced.unit(units[0]).stash for units in priced.folded.groups if units[0].is_block]
    found = dict[tuple[float, ...], tuple[float, str]]()
    for way in ways:
        rows = [(stash[way], stash[NO_RECOMPUTE]) for stash in stashes]
        if any(own.bytes < plain.bytes for own, plain in rows):
            row = sum(own.compute + own.communication for own, _ in rows), way
            kept = tuple(own.bytes for own, _ in rows)
            found[kept] = min(found.get(kept, row), row, key=lambda pair: pair[0])
    return [way for _, way in found.values()]


def schedules(pp: int, most_stages: int, micro_batches: int, space: Space) -> Iterator[tuple[str, int]]:
    """Kinds and virtual stages that fit."""
    for row in SCHEDULES.values():
        fits = (row.name == PLAIN or pp > 1) and not (row.in_rounds and micro_batches % pp)
        if fits and space.admits("schedule", row.name):
            for virtual in range(row.fewest_stages, (row.most_stages or space.virtual) + 1):
                if virtual == 1 or pp * virtual <= most_stages:
                    yield row.name, virtual
