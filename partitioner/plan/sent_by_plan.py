"""What a rank of each pipeline rank sends in a step, from a plan's file alone; ``traffic`` finds it of a Program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from partitioner.plan.derived_rows import CollectiveRow
from partitioner.plan.plan import Plan
from partitioner.sharding.layout import layout_word, parse_layout
from partitioner.sharding.mesh_axes import DP, PP


@dataclass(frozen=True)
class Volume:
    """``count`` collectives or sends of one kind in a step, and their payload bytes in all."""

    axis: str
    kind: str
    phase: str
    count: int
    bytes: float


def volume(plan: Plan, rank: int) -> tuple[Volume, ...]:
    """Of pipeline rank ``rank``, by axis, kind and phase: forward, backward, recompute, send, sync.

    Left out: control scalars, and the gradients of tied weights between stages.
    """
    found: dict[tuple[str, str, str], tuple[int, float]] = {}
    for n in plan.parallelism.rank_stages[rank]:
        for axis, kind, phase, count, size in (*_collectives(plan, n), *_sends(plan, n), *_sync(plan, n)):
            if kind and size and count:
                many, whole = found.get((axis, kind, phase), (0, 0.0))
                found[axis, kind, phase] = many + count, whole + count * size
    return tuple(Volume(*key, *value) for key, value in sorted(found.items()))


_Sent = tuple[str, str, str, int, float]


def _collectives(plan: Plan, stage: int) -> Iterator[_Sent]:
    rows, many = {name: row for row in plan.blocks for name in row.units}, plan.parallelism.micro_batches
    recomputed = plan.decisions.recomputed[stage]
    for name in plan.decisions.stages[stage]:
        again = rows[name].is_block and recomputed > 0
        recomputed -= again
        for move in moves(plan, name):
            yield move.axis, move.forward, "forward", many, move.forward_bytes
            yield move.axis, move.backward, "backward", many, move.backward_bytes
            if again and move.again:
                yield move.axis, move.forward, "recompute", many, move.forward_bytes


def moves(plan: Plan, unit: str) -> Iterable[CollectiveRow]:
    """All that a unit sends, in order."""
    row = next(row for row in plan.blocks if unit in row.units)
    return [*(move for op in row.ops for move in op.collectives), *leaving(plan, unit)]


def leaving(plan: Plan, unit: str) -> list[CollectiveRow]:
    """What a unit sends after its last op, because later units want another layout than it makes."""
    rows = {name: row for row in plan.blocks for name in row.units}
    wanted = {
        (value, layout_word(parse_layout(port, len(plan.parallelism.axes))))
        for reader, sources in plan.reads.items()
        for (maker, value), port in zip(sources, rows[reader].ports, strict=True) if maker == unit
    }  # fmt: skip
    return [move for move in rows[unit].leaving if (move.value, move.target) in wanted]


def _sends(plan: Plan, stage: int) -> Iterator[_Sent]:
    """Results to the next stage, gradients to the one before, where those lie on other ranks."""
    own, row = plan.parallelism, plan.cost.stages[stage]
    here = own.pipeline_rank(stage)
    if stage + 1 < own.stage_count and own.pipeline_rank(stage + 1) != here:
        yield PP, "send", "send", own.micro_batches, row.sent_bytes
    if stage and own.pipeline_rank(stage - 1) != here:
        yield PP, "send", "send", own.micro_batches, row.sent_back_bytes


def _sync(plan: Plan, stage: int) -> Iterator[_Sent]:
    """Once a step; with ZeRO 2 and 3 for each micro-batch."""
    own, row = plan.parallelism, plan.cost.stages[stage]
    for axis, size in row.partial_bytes.items():
        yield axis, ALL_REDUCE, "sync", 1, size
    if own.replicas > 1:
        if not own.zero:
            yield DP, ALL_REDUCE, "sync", 1, row.synced_bytes
        else:
            yield DP, REDUCE_SCATTER, "sync", own.micro_batches if own.zero > 1 else 1, row.synced_bytes
            yield DP, ALL_GATHER, "sync", 2 * own.micro_batches if own.zero == 3 else 1, row.gathered_bytes
