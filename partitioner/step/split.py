"""How a step is cut: stages of units added up, and the decisions beside them that a price needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from partitioner.cost.backward_peak import StagePeaks
from partitioner.cost.op_seconds import ZERO, Seconds
from partitioner.cost.state_bytes import state
from partitioner.cost.unit_cost import Held, Priced, UnitCost
from partitioner.graph.graph import Unit
from partitioner.plan.parallelism import Parallelism
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.precision import Precision
from partitioner.step.stage_peaks import StageWalk
from partitioner.step.stashes import Again, Stashes


@dataclass(frozen=True, kw_only=True)
class StageSums:
    """What one micro-batch takes of a stage's units; ``blocks`` of them may be recomputed.

    ``axis_seconds``: of communication, by axis of the mesh. ``stash``: by way of recomputing, what the whole stage
    keeps when its first 0, 1, 2, ... blocks are recomputed so. ``input_bytes`` and ``output_bytes``: what it receives
    and hands on, ``sent_bytes`` of it by this rank; ``sent_back_bytes``: gradients of what it receives, by this rank.
    ``parameters``: alike ones added up, ``frozen_bytes`` of others, that nothing trains; ``weight_bytes`` and
    ``gradient_bytes``: as they are gathered and summed, ``partial_bytes`` of the latter Partial, by axis;
    ``scattered_bytes`` of the last that a backward scatters; ``tied_parameters``: those that other units read too.
    ``once_seconds``, ``copied_bytes``: of weights in few bits, once a step.
    """

    seconds: Seconds
    weight_gradient_seconds: float
    communication_seconds: float
    axis_seconds: Mapping[str, float]
    collectives: tuple[int, int]
    kernels: tuple[int, int]
    blocks: int
    stash: Mapping[str, Stashes]
    input_bytes: float
    output_bytes: float
    sent_bytes: float
    sent_back_bytes: float
    flops: float
    parameters: tuple[Held, ...]
    frozen_bytes: float
    weight_bytes: float
    gradient_bytes: float
    partial_bytes: dict[str, float]
    scattered_bytes: float
    tied_parameters: Mapping[fx.Node, Held]
    once_seconds: float
    copied_bytes: float


def stage_sums(
    priced: Priced, units: Sequence[Unit], ways: Sequence[str] = ("full",), shards: int = 1,
    walk: StageWalk | None = None,
) -> StageSums:  # fmt: skip
    """Add up a stage; ``ways``: of recomputing, those that are asked for beside none; ``shards``: ranks that divide
    state; ``walk``: through these units, where there is one."""
    start, end = priced.place[units[0]], priced.place[units[-1]] + 1
    rows, precision, tied = [priced.unit(u) for u in units], priced.precision, priced.setting.tied
    walk, parameters = walk or StageWalk(priced, units), dict[fx.Node, Held]()
    for unit in units:
        parameters |= priced.held[unit]
    found: dict[tuple[torch.dtype, tuple[str, ...]], float] = {}
    for elements, dtype, partial in parameters.values():
        found[dtype, partial] = found.get((dtype, partial), 0.0) + elements
    held = [Held(elements, *key) for key, elements in found.items()]
    return StageSums(
        seconds=sum((c.seconds for c in rows), ZERO),
        weight_gradient_seconds=sum(c.weight_gradient_seconds for c in rows),
        communication_seconds=sum(c.communication.total for c in rows),
        axis_seconds=_by_axis(rows),
        collectives=(sum(c.collectives[0] for c in rows), sum(c.collectives[1] for c in rows)),
        kernels=(sum(c.kernels[0] for c in rows), sum(c.kernels[1] for c in rows)),
        blocks=sum(u.is_block for u in units),
        stash=walk.stash(ways, shards),
        input_bytes=priced.crossing[start],
        output_bytes=priced.crossing[end],
        sent_bytes=priced.sent[end],
        sent_back_bytes=priced.sent_back[start],
        flops=sum(c.flops for c in rows),
        parameters=tuple(held),
        frozen_bytes=sum({node: size for unit in units for node, size in priced.frozen[unit].items()}.values()),
        weight_bytes=sum(row.elements * row.dtype.itemsize for row in held),
        gradient_bytes=sum(row.elements * state(row.dtype, precision).gradient for row in held),
        partial_bytes=_partial_bytes(held, precision),
        scattered_bytes=walk.scattered_last,
        tied_parameters={node: row for node, row in parameters.items() if tied and priced.folded.own(node) in tied},
        once_seconds=sum(c.once_seconds for c in rows),
        copied_bytes=sum(c.copied_bytes for c in rows),
    )


def idle_stage(priced: Priced, place: int, ways: Sequence[str] = ()) -> StageSums:
    """A stage without units: it hands on what those ahead of ``place`` have made for those behind, and keeps it."""
    handed = priced.crossing[place]
    sizes = np.array([[handed, *(0.0 for _ in StagePeaks._fields)]])
    return StageSums(
        seconds=ZERO, weight_gradient_seconds=0.0, communication_seconds=0.0, axis_seconds={}, collectives=(0, 0),
        kernels=(0, 0), blocks=0, stash={way: Stashes(sizes, [Again()]) for way in (NO_RECOMPUTE, *ways)},
        input_bytes=handed, output_bytes=handed, sent_bytes=priced.sent[place], sent_back_bytes=priced.sent_back[place],
        flops=0.0, parameters=(), frozen_bytes=0.0, weight_bytes=0.0, gradient_bytes=0.0, partial_bytes={},
        scattered_bytes=0.0, tied_parameters={}, once_seconds=0.0, copied_bytes=0.0,
    )  # fmt: skip


def _by_axis(rows: Iterable[UnitCost]) -> dict[str, float]:
    """Exposed seconds of communication by axis."""
    found: dict[str, float] = {}
    for cost in rows:
        for axis, share in cost.axis_shares.items():
            found[axis] = found.get(axis, 0.0) + cost.communication.total * share
    return found


def _partial_bytes(held: Iterable[Held], precision: Precision) -> dict[str, float]:
    """Of the gradients that are summed over each axis."""
    found: dict[str, float] = {}
    for row in held:
        for axis in row.partial:
            found[axis] = found.get(axis, 0.0) + row.elements * state(row.dtype, precision).gradient
    return found


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a step is cut: its parallelism and the stages that follow from it.

    ``recomputed``: of each stage, how many of its blocks are recomputed in the way of the parallelism.
    """

    parallelism: Parallelism
    stages: tuple[StageSums, ...]
    units: tuple[tuple[Unit, ...], ...]
    recomputed: tuple[int, ...]

    def recomputing(self, way: str, counts: tuple[int, ...]) -> Split:
        """The same, recomputing so many blocks of each stage."""
        return replace(self, parallelism=replace(self.parallelism, recompute=way), recomputed=counts)

    def again(self, stage: int) -> Again:
        """What a stage runs again."""
        return self.stages[stage].stash[self.parallelism.recompute].again[self.recomputed[stage]]
