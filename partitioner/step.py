"""The price of a step: stages of units, the Action table walked with their seconds, gradient sync, the update.

stage   sums over its units; bytes of state, and of activations for the micro-batches in flight
step    makespan of the table, then the gradient sync that backward can't hide, then the update
bound   the same with a makespan that no table can beat: cheap, and exact where stages are even
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from partitioner.cost import Priced
from partitioner.graph import Unit
from partitioner.plan import Cost, StageCost
from partitioner.price import ZERO, Seconds, collective_seconds, optimizer_seconds, state_bytes
from partitioner.schedule import most_in_flight, schedule, simulate

Held = tuple[float, int, bool]  # elements a rank holds, bytes an element, whether the gradient is Partial


@dataclass(frozen=True)
class StageSums:
    """A stage's units, and what one micro-batch takes of them; ``again`` and ``kept_again`` are of recomputed blocks.

    ``again``: seconds of compute and of communication. ``kept``: bytes until backward, all of it or, where blocks are
    recomputed, their inputs and the rest; ``rebuilt``: bytes of the largest block while it is recomputed.
    """

    units: tuple[Unit, ...]
    seconds: Seconds
    communication: float
    again: tuple[float, float]
    kept: float
    kept_again: float
    rebuilt: float
    output_bytes: float
    flops: float
    held: tuple[Held, ...]

    def time(self, recompute: bool) -> Seconds:
        """Forward and backward."""
        return Seconds(self.seconds.forward, self.seconds.backward + (sum(self.again) if recompute else 0.0))

    def activation_bytes(self, recompute: bool, in_flight: int) -> float:
        """What the micro-batches in flight keep, and what recompute adds."""
        return self.kept_again * in_flight + self.rebuilt if recompute else self.kept * in_flight


def stage_sums(priced: Priced, units: tuple[Unit, ...]) -> StageSums:
    """Add up a stage."""
    rows = [(priced.unit(u), u.is_block) for u in units]
    blocks = [c for c, is_block in rows if is_block]
    parameters: dict[fx.Node, Held] = {}
    for unit in units:
        parameters |= priced.held[unit]
    held: dict[tuple[int, bool], float] = {}
    for elements, size, is_partial in parameters.values():
        held[size, is_partial] = held.get((size, is_partial), 0.0) + elements
    return StageSums(
        units,
        sum((c.seconds for c, _ in rows), ZERO),
        sum(c.communication.total for c, _ in rows),
        (sum(c.again[0] for c in blocks), sum(c.again[1] for c in blocks)),
        sum(c.saved_bytes for c, _ in rows),
        sum(c.input_bytes if is_block else c.saved_bytes for c, is_block in rows),
        max((c.saved_bytes for c in blocks), default=0.0),
        rows[-1][0].output_bytes,
        sum(c.flops for c, _ in rows),
        tuple((elements, size, is_partial) for (size, is_partial), elements in held.items()),
    )


@dataclass(frozen=True)
class Split:
    """How a step is cut: stages of units, and the decisions that price needs."""

    stages: tuple[StageSums, ...]
    pp: int
    dp: int
    micro_batches: int
    schedule: str
    virtual: int
    recompute: bool

    def own(self, p: int) -> tuple[StageSums, ...]:
        """The stages of a pipeline rank."""
        return self.stages[p :: self.pp]


def price(priced: Priced, split: Split) -> Cost:
    """The step, its Action table walked."""
    times = [s.time(split.recompute) for s in split.stages]
    actions = schedule(split.schedule, split.pp, split.virtual, split.micro_batches)
    forward, backward = [t.forward for t in times], [t.backward for t in times]
    makespan, busy, in_flight = simulate(actions, split.pp, forward, backward, _send_seconds(priced, split))
    worst = max(range(split.pp), key=lambda p: busy[p])
    moved = sum(s.communication + (s.again[1] if split.recompute else 0.0) for s in split.own(worst))
    communication = split.micro_batches * moved
    sync, update = _after(priced, split)
    stages = _stage_costs(split, in_flight)
    flops = 3.0 * split.dp * split.micro_batches * sum(s.flops for s in split.stages)
    return Cost(
        makespan + sync + update, busy[worst] - communication, communication, makespan - busy[worst], sync, update,
        _peak(split, stages), stages, flops,
    )  # fmt: skip


def bound(priced: Priced, split: Split) -> tuple[float, float]:
    """Seconds that the step takes at least, and its exact peak bytes.

    A pipeline rank is busy with its stages; before its first forward the stages before it run theirs, and after its
    last backward they run those.
    """
    times = [s.time(split.recompute) for s in split.stages]
    send = _send_seconds(priced, split)
    least, ahead = 0.0, 0.0
    for p in range(split.pp):
        busy = split.micro_batches * sum(t.total for t in times[p :: split.pp])
        least = max(least, busy + ahead)
        ahead += times[p].total + 2 * send
    in_flight = most_in_flight(split.schedule, split.pp, split.virtual, split.micro_batches)
    return least * (1 - 1e-12) + sum(_after(priced, split)), _peak(split, _stage_costs(split, in_flight))


def _stage_costs(split: Split, in_flight: Sequence[int]) -> tuple[StageCost, ...]:
    rows: list[StageCost] = []
    for stage, flying in zip(split.stages, in_flight, strict=True):
        time = stage.time(split.recompute)
        state = sum(state_bytes(n, size) for n, size, _ in stage.held)
        activations = stage.activation_bytes(split.recompute, flying)
        rows.append(StageCost(time.forward, time.backward, state, activations))
    return tuple(rows)


def _peak(split: Split, stages: tuple[StageCost, ...]) -> float:
    return max(sum(s.peak_bytes for s in stages[p :: split.pp]) for p in range(split.pp))


def _send_seconds(priced: Priced, split: Split) -> float:
    """One boundary's activations of one micro-batch: the largest output of a stage's last unit."""
    if split.pp == 1:
        return 0.0
    sent = max(stage.output_bytes for stage in split.stages[:-1])
    link = priced.cluster.link(priced.ranks * split.dp * split.pp)
    return link.latency_seconds + sent / link.bytes_per_second


def _after(priced: Priced, split: Split) -> tuple[float, float]:
    """The gradient sync that stays exposed and the optimizer's update, each on its slowest pipeline rank."""
    sync = max(_sync_seconds(priced, split, p) for p in range(split.pp))
    rows = [[row for stage in split.own(p) for row in stage.held] for p in range(split.pp)]
    return sync, max(sum(optimizer_seconds(n, size, priced.cluster) for n, size, _ in held) for held in rows)


def _sync_seconds(priced: Priced, split: Split, p: int) -> float:
    """Partial gradients over tp, then all over dp, less what the last micro-batch's backward hides of the latter."""
    own = split.own(p)
    rows = [row for stage in own for row in stage.held]
    partial = sum(n * size for n, size, is_partial in rows if is_partial)
    over_tp = collective_seconds("all_reduce", partial, priced.ranks, priced.cluster.link(priced.ranks))
    span = priced.cluster.link(priced.ranks * split.dp)
    over_dp = collective_seconds("all_reduce", sum(n * size for n, size, _ in rows), split.dp, span)
    hidden = sum(stage.time(split.recompute).backward for stage in own) / max(1, len(own))
    return over_tp + max(0.0, over_dp - hidden)
