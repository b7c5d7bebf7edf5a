"""The price of a step: the Action table walked with the stages' seconds, gradient sync, the update, and its memory.

step    makespan of the table, then the gradient sync that backward can't hide, then the update
bound   the same with a makespan that no table can beat: cheap, and exact where stages are even
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from partitioner.cost.op_seconds import ZERO, Seconds
from partitioner.cost.state_bytes import optimizer_seconds
from partitioner.cost.unit_cost import Priced
from partitioner.hardware.link import Route
from partitioner.kernel_seconds.collective import collective_seconds
from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from partitioner.plan.derived_rows import Cost, StageCost
from partitioner.schedule.simulate import most_in_flight, simulate
from partitioner.schedule.tables import SCHEDULES
from partitioner.sharding.mesh_axes import DP, PP, inner, replicating, whole
from partitioner.step.rank_memory import RankMemory
from partitioner.step.split import Split, StageSums

Parts = Sequence[tuple[float, Route]]  # seconds of collectives, each with the links that it takes


class SplitSeconds:
    """One split's prices, each found once."""

    def __init__(self, priced: Priced, split: Split) -> None:
        self.priced, self.split, self.parallelism = priced, split, split.parallelism
        self.cluster, self.software = priced.cluster, priced.cluster.software

    def route(self, axes: tuple[str, ...], ranks: int) -> Route:
        """Of a group along some axes of the mesh, or of its first ``ranks`` ranks."""
        own, inside = self.parallelism, 1
        for axis in (a for a in axes if a in own.mesh):
            inside *= self.cluster.inside(own.mesh[axis], own.stride(axis))
        return self.cluster.route(ranks, inside=min(inside, ranks))

    @cached_property
    def shard_route(self) -> Route:
        """The ranks over which ZeRO divides."""
        return self.route(replicating(), self.parallelism.shards)

    @cached_property
    def slowest_factor(self) -> float:
        """How much longer than the mean the slowest of all devices takes: the largest of n normal numbers."""
        return 1 + self.cluster.device.spread * math.sqrt(2 * math.log(self.parallelism.world))

    @cached_property
    def stage_seconds(self) -> list[Seconds]:
        """Of each stage, one micro-batch."""
        found: dict[tuple[int, int], Seconds] = {}
        keys = [(id(stage), count) for stage, count in zip(self.split.stages, self.split.recomputed, strict=True)]
        for n, key in enumerate(keys):
            if key not in found:
                found[key] = self.unsent_seconds(n)
        return [found[key] + sends for key, sends in zip(keys, self.unhidden_sends, strict=True)]

    def unsent_seconds(self, n: int) -> Seconds:
        """The device's, or the host's where that is longer; what ZeRO gathers beside it; no sends."""
        hosts = self.host_seconds(self.split.stages[n])
        found = self.device_seconds(n) + self.zero_seconds(n)
        return Seconds(max(found.forward, hosts[0]), max(found.backward, hosts[1]))

    def device_seconds(self, n: int) -> Seconds:
        """Compute and what layouts send, recompute with them, at the pace of the slowest device."""
        stage, again = self.split.stages[n], self.split.again(n)
        backward = stage.seconds.backward + again.compute + again.communication
        return Seconds(self.slowest_factor * stage.seconds.forward, self.slowest_factor * backward)

    def zero_seconds(self, n: int) -> Seconds:
        """What ZeRO's weights and gradients, moved beside compute, add to it."""
        if self.parallelism.zero < 2 or self.parallelism.shards == 1:
            return ZERO
        stage, busy = self.split.stages[n], self.device_seconds(n)
        gather = self.gather_seconds(stage) if self.parallelism.zero == 3 else 0.0
        moved = Seconds(gather, self.scatter_seconds(stage) + gather)
        if not self.software.overlap_parameters:
            return moved
        forward, backward = ([(seconds, self.shard_route)] for seconds in (moved.forward, moved.backward))
        return Seconds(
            self.unhidden_seconds(forward, busy.forward, stage.blocks),
            self.unhidden_seconds(backward, busy.backward, stage.blocks),
        )

    def exposed_seconds(self, p: int) -> dict[str, float]:
        """By axis, of a pipeline rank's micro-batch: what it communicates while it computes nothing."""
        found = dict.fromkeys((*reversed(inner()), PP, DP), 0.0)
        for n in self.parallelism.rank_stages[p]:
            stage, again = self.split.stages[n], self.split.again(n).communication
            more = 1 + again / stage.communication_seconds if again else 1.0
            rows = {axis: more * seconds for axis, seconds in stage.axis_seconds.items()}
            rows |= {PP: self.unhidden_sends[n].total, DP: self.zero_seconds(n).total}
            found |= {axis: found[axis] + seconds for axis, seconds in rows.items()}
        return found

    @cached_property
    def unhidden_sends(self) -> list[Seconds]:
        """What each stage's rank spends on sends that don't hide behind compute: of its result, and of its gradient."""
        many = len(self.split.stages)
        if self.software.overlap_sends or self.parallelism.mesh[PP] == 1:
            return [ZERO] * many
        lies = [self.parallelism.pipeline_rank(n) for n in range(many)]
        sends = [here != there for here, there in itertools.pairwise(lies)]
        pairs = zip([*sends, False], [False, *sends], strict=True)
        return [Seconds(down * self.send_seconds, up * self.send_seconds) for down, up in pairs]

    @property
    def send_delay(self) -> float:
        """Between the end of an action and its result's arrival on another rank."""
        return self.send_seconds if self.software.overlap_sends else 0.0

    @cached_property
    def deferred_weight_seconds(self) -> list[float]:
        """Of each stage, what of a micro-batch's backward W does: weights' gradients, as large a share of it as they
        are of the device's."""
        if not SCHEDULES[self.parallelism.schedule].defers_weights:
            return [0.0] * len(self.split.stages)
        found = list[float]()
        for n, (stage, time) in enumerate(zip(self.split.stages, self.stage_seconds, strict=True)):
            again, backward = self.split.again(n), time.backward - self.unhidden_sends[n].backward
            whole = stage.seconds.backward + again.compute + again.communication
            found.append(backward * ((stage.weight_gradient_seconds - again.weight_gradient_seconds) / whole))
        return found

    def host_seconds(self, stage: StageSums) -> list[float]:
        """Seconds in which the host can issue a forward and a backward."""
        far = self.parallelism.mesh[PP] > 1 and self.cluster.route(2, self.parallelism.stride(PP)).nodes > 1
        each = self.software.enqueue_seconds * self.priced.ranks if far else 0.0
        pairs = zip(stage.kernels, stage.collectives, strict=True)
        return [self.software.dispatch_seconds * (k + c) + each * c for k, c in pairs]

    def gather_seconds(self, stage: StageSums) -> float:
        return self.by_blocks(ALL_GATHER, stage.weight_bytes + stage.frozen_bytes, stage.blocks)

    def scatter_seconds(self, stage: StageSums) -> float:
        return self.by_blocks(REDUCE_SCATTER, stage.gradient_bytes, stage.blocks)

    def by_blocks(self, kind: str, size: float, blocks: int) -> float:
        """Seconds of what ZeRO gathers or scatters, block by block."""
        pieces = max(1, blocks)
        return pieces * collective_seconds(kind, size / pieces, self.shard_route)

    def unhidden_seconds(self, parts: Parts, compute: float, blocks: int) -> float:
        """What communication adds to compute that hides it: its first piece or what is too long, and by how much the
        rest slows it."""
        if not (moved := sum(seconds for seconds, _ in parts)):
            return 0.0
        exposed = max(moved / max(1, blocks), moved - compute)
        near, far = self.cluster.node.contention, self.cluster.network.contention
        slowed = sum(seconds * (far if route.nodes > 1 else near) for seconds, route in parts)
        return exposed + slowed * (1 - exposed / moved)

    @cached_property
    def send_seconds(self) -> float:
        """One boundary's activations of one micro-batch: the largest output of a stage's last unit."""
        if self.parallelism.mesh[PP] == 1:
            return 0.0
        sent = max(stage.sent_bytes for stage in self.split.stages[:-1])
        route = self.cluster.route(2, self.parallelism.stride(PP))
        speed, hop = route.bytes_per_second, route.hop_seconds if route.nodes == 1 else route.far_hop_seconds
        return hop + sent / speed

    def sync_and_update_seconds(self) -> tuple[Mapping[str, float], float]:
        """The gradient sync that stays exposed, by axis, and the optimizer's update, each on its slowest rank."""
        alike = {tuple((id(self.split.stages[n]), self.split.recomputed[n]) for n in self.parallelism.rank_stages[p]): p
                 for p in range(self.parallelism.mesh[PP])}.values()  # fmt: skip
        slowest = max((self.sync_seconds(p) for p in alike), key=lambda rows: sum(rows.values()))
        return slowest, max(self.update_seconds(p) for p in alike)

    def rank_sums(self, p: int) -> list[StageSums]:
        return [self.split.stages[n] for n in self.parallelism.rank_stages[p]]

    def update_seconds(self, p: int) -> float:
        """The optimizer's; and what becomes of weights once a step, or where they are gathered, once a micro-batch."""
        shared = self.parallelism.shards if self.parallelism.zero else 1
        rows = [row for s in self.rank_sums(p) for row in s.parameters]
        own, cluster = self.priced.precision, self.cluster
        updated = sum(optimizer_seconds(row.elements / shared, row.dtype, own, cluster) for row in rows)
        times = self.parallelism.micro_batches if self.parallelism.zero == 3 else 1
        return updated + times * sum(stage.once_seconds for stage in self.rank_sums(p))

    def sync_seconds(self, p: int) -> dict[str, float]:
        """Partial gradients over their axes, then all over the replicas, less what a micro-batch's backward, or W,
        hides."""
        stages, own, software = self.rank_sums(p), self.parallelism.rank_stages[p], self.software
        summed = dict[str, float]()
        for axis, size in (row for stage in stages for row in stage.partial_bytes.items()):
            summed[axis] = summed.get(axis, 0.0) + size
        found = dict.fromkeys((*reversed(inner()), DP), 0.0)
        divided = self.parallelism.shards if self.parallelism.zero else 1  # each rank sums its rows
        for axis, size in summed.items():
            found[whole(axis)] += collective_seconds(ALL_REDUCE, size / divided, self.priced.routes[axis])
        gradients, weights = sum(s.gradient_bytes for s in stages), sum(s.weight_bytes for s in stages)
        blocks = sum(stage.blocks for stage in stages)
        backward = sum(self.deferred_weight_seconds[n] or self.stage_seconds[n].backward for n in own) / len(own)
        forward = sum(self.stage_seconds[n].forward for n in own) / len(own)
        reduced, gathered = self.reduction_parts(gradients, weights, blocks)
        hides = (reduced, backward, software.overlap_gradients), (gathered, forward, software.overlap_parameters)
        over_dp = sum(
            self.unhidden_seconds(parts, compute, blocks) if hidden else sum(seconds for seconds, _ in parts)
            for parts, compute, hidden in hides
        )
        return found | {DP: over_dp}

    def reduction_parts(self, gradients: float, weights: float, blocks: int) -> tuple[Parts, Parts]:
        """To sum gradients over the replicas once a step, and to gather, block by block, what ZeRO updated."""
        own, shards = self.parallelism, self.parallelism.shards
        if own.replicas == 1:
            return [], []
        if own.zero == 0:
            route = self.route(replicating(), own.replicas)
            return [(collective_seconds(ALL_REDUCE, gradients, route), route)], []
        stride = min(own.stride(a) for a in replicating() if a in own.mesh)
        across = self.cluster.route(own.replicas // shards, stride * shards)
        scatter = collective_seconds(REDUCE_SCATTER, gradients, self.shard_route) if own.zero == 1 else 0.0
        gather = self.by_blocks(ALL_GATHER, weights, blocks) if own.zero < 3 else 0.0
        summed = collective_seconds(ALL_REDUCE, gradients / shards, across)
        return [(scatter, self.shard_route), (summed, across)], [(gather, self.shard_route)]


def price(priced: Priced, split: Split) -> Cost:
    """The step, its Action table walked."""
    seconds, own = SplitSeconds(priced, split), split.parallelism
    pp = own.mesh[PP]
    weight = seconds.deferred_weight_seconds
    forward = [t.forward for t in seconds.stage_seconds]
    backward = [t.backward - w for t, w in zip(seconds.stage_seconds, weight, strict=True)]
    makespan, busy, _ = simulate(own.actions, pp, forward, backward, seconds.send_delay, weight)
    worst = max(range(pp), key=lambda p: busy[p])
    exposed = {axis: own.micro_batches * moved for axis, moved in seconds.exposed_seconds(worst).items()}
    communication = sum(exposed.values())
    synced, update = seconds.sync_and_update_seconds()
    sync, exposed = sum(synced.values()), {axis: s + synced.get(axis, 0.0) for axis, s in exposed.items()}
    memory = RankMemory(priced, split)
    flops = 3.0 * own.mesh[DP] * own.micro_batches * sum(s.flops for s in split.stages)
    return Cost(
        step_seconds=makespan + sync + update, compute_seconds=busy[worst] - communication,
        communication_seconds=communication, bubble_seconds=max(0.0, makespan - busy[worst]), sync_seconds=sync,
        optimizer_seconds=update, peak_bytes=memory.peak_bytes(split.recomputed), exposed_seconds=exposed,
        send_seconds=seconds.send_delay, input_bytes=memory.sample_bytes, stages=tuple(_stages(seconds, memory)),
        flops=flops,
    )  # fmt: skip


def _stages(seconds: SplitSeconds, memory: RankMemory) -> Iterator[StageCost]:
    counts, split, pp = seconds.split.recomputed, seconds.split, seconds.parallelism.mesh[PP]
    kept, acting = memory.action_bytes(counts)
    for n, (time, part) in enumerate(zip(seconds.stage_seconds, memory.fullest(counts), strict=True)):
        stage = split.stages[n]
        sent = stage.sent_bytes if n + 1 < len(split.stages) and pp > 1 else 0.0
        back = stage.sent_back_bytes if n and pp > 1 else 0.0
        forward, backward, first = map(float, acting[n])
        yield StageCost(
            forward_seconds=time.forward, backward_seconds=time.backward,
            put_off_seconds=seconds.deferred_weight_seconds[n], weight_bytes=part.weights,
            gradient_bytes=part.gradients, optimizer_bytes=part.optimizer, activation_bytes=part.activations,
            transient_bytes=part.transient, grown_bytes=float(memory.state[n, 1]),
            new_bytes=float(memory.new_gradients[n]), kept_bytes=float(kept[n]),
            acting_bytes=(forward, backward, first), sent_bytes=sent, sent_back_bytes=back,
            synced_bytes=stage.gradient_bytes, partial_bytes=stage.partial_bytes, gathered_bytes=stage.weight_bytes,
        )  # fmt: skip


def floor(priced: Priced, split: Split) -> float:
    """Seconds that ``bound`` is at least, found sooner: those of the busiest pipeline rank's devices."""
    seconds, own = SplitSeconds(priced, split), split.parallelism
    keys = list(zip(map(id, split.stages), split.recomputed, strict=True))
    known = {key: seconds.device_seconds(n).total for key, n in {key: n for n, key in enumerate(keys)}.items()}
    if own.virtual == 1:
        return own.micro_batches * max(known.values()) * (1 - 2e-12)
    return own.micro_batches * max(sum(known[keys[n]] for n in row) for row in own.rank_stages) * (1 - 2e-12)


def bound(priced: Priced, split: Split) -> float:
    """Seconds that the step takes at least.

    A pipeline rank is busy with its stages; before its first forward the stages before it run theirs, and after its
    last backward they run those. What was put off is left after it of no more micro-batches than are in flight.
    """
    seconds, parallelism = SplitSeconds(priced, split), split.parallelism
    pp, many, schedule = parallelism.mesh[PP], parallelism.micro_batches, SCHEDULES[parallelism.schedule]
    deferred = seconds.deferred_weight_seconds if schedule.defers_weights else []
    in_flight = most_in_flight(schedule.name, pp, parallelism.virtual, many) if deferred else ()
    totals = [time.total for time in seconds.stage_seconds]
    least, before, after = 0.0, 0.0, seconds.deferred_weight_seconds[0]
    for p, own in enumerate(parallelism.rank_stages):
        busy = before + many * sum([totals[n] for n in own])
        left = sum(deferred[n] * in_flight[n] for n in own) if deferred else 0.0
        least = max(least, busy, busy - left + after)
        before += seconds.stage_seconds[p].forward + seconds.send_delay
        after += seconds.stage_seconds[p].backward - seconds.deferred_weight_seconds[p] + seconds.send_delay
    synced, update = seconds.sync_and_update_seconds()
    return least * (1 - 1e-12) + sum(synced.values()) + update
