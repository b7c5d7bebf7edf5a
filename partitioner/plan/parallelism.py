"""How a step is divided over ranks and over time; plans, candidates and prices hold one of these.

pp 2 x dp 2 x tp 2, 4 micro-batches of 2, 1f1b, recompute full, ZeRO 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from partitioner.plan.json_document import Count, Positive
from partitioner.plan.recompute_ways import NO_RECOMPUTE, WAYS
from partitioner.schedule.tables import SCHEDULES, Table, rank_of, schedule, stages_of
from partitioner.sharding.mesh_axes import AXES, PP, Axes, laid_axes, replicating, whole


def mesh_of(**degrees: int) -> dict[str, int]:
    """Ranks along each axis; one that is not always named stands there where it divides."""
    return {axis: n for axis, row in AXES.items() if (n := degrees.get(axis, 1)) > 1 or row.is_always}


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """The degrees of a step's division.

    ``mesh``: ranks along each axis. ``order``: its axes, outermost first. ``micro_batch``: samples of one, of which a
    data rank takes ``micro_batches`` a step. ``schedule``: the pipeline's, with ``virtual`` stages a rank.
    ``recompute``: what is computed again in backward (plan/recompute_ways.py). ``zero``:
    ZeRO's stage, over groups of ``zero_group`` neighbouring ranks of those that hold the same parameters, 0 for all.
    ``refined``: of an axis of the mesh along which ops lie by its parts, the ranks of each part.
    """

    mesh: dict[str, int]
    order: tuple[str, ...]
    micro_batch: Positive
    micro_batches: Positive
    schedule: str
    virtual: Positive
    recompute: str
    zero: Count = 0
    zero_group: Count = 0
    refined: dict[str, int] = field(default_factory=dict[str, int])

    def degree(self, axis: str) -> int:
        """Ranks along an axis, 1 where the mesh has none such."""
        return self.mesh.get(axis, 1)

    @cached_property
    def world(self) -> int:
        """All ranks."""
        return math.prod(self.mesh.values())

    @cached_property
    def replicas(self) -> int:
        """Ranks that hold the same parameters."""
        return math.prod(map(self.degree, replicating()))

    @cached_property
    def axes(self) -> Axes:
        """Those along which ops lie, outermost first."""
        return laid_axes(self.mesh, self.refined)

    @property
    def shards(self) -> int:
        """Of the ranks that hold the same parameters, those over which ZeRO divides; the others hold that again."""
        return min(self.zero_group or self.replicas, self.replicas) if self.zero else 1

    @property
    def stage_count(self) -> int:
        """Stages of the pipeline, those of one rank counted each."""
        return self.mesh[PP] * self.virtual

    @property
    def actions(self) -> Table:
        """What every pipeline rank does in a step; raises InputError where the schedule has no such table."""
        return schedule(self.schedule, self.mesh[PP], self.virtual, self.micro_batches)

    @property
    def rank_stages(self) -> tuple[tuple[int, ...], ...]:
        """The stages of each pipeline rank, rising."""
        return stages_of(self.mesh[PP], self.virtual, self.schedule)

    def pipeline_rank(self, stage: int) -> int:
        """The rank along pp on which a stage lies."""
        return rank_of(stage, self.mesh[PP], self.schedule)

    def stride(self, axis: str) -> int:
        """Ranks between neighbours on an axis; of one that the mesh does not have, 1."""
        inner = self.order[self.order.index(axis) + 1 :] if axis in self.order else ()
        return math.prod(self.degree(name) for name in inner)


def parallelism_error(own: Parallelism) -> str:
    """What is wrong with how a step is divided, in words that follow their place's; "" where nothing is."""
    if wrong := mesh_error(own.mesh, own.order) or refined_error(own.mesh, own.refined):
        return wrong
    if own.replicas % (own.zero_group or 1):
        return f"zero_group must divide the {own.replicas} replicas, or be 0"
    named = (("schedule", own.schedule, [*SCHEDULES]), ("recompute", own.recompute, [NO_RECOMPUTE, *WAYS]),
             ("zero", own.zero, [0, 1, 2, 3]))  # fmt: skip
    for name, value, known in named:
        if value not in known:
            return f"{name} must be one of {', '.join(map(str, known))}, not {str(value)[:60]!r}"
    return ""


def mesh_error(mesh: dict[str, int], order: tuple[str, ...]) -> str:
    """What is wrong with a mesh and its order, in words that follow their place's; "" where nothing is."""
    known = sorted(mesh_of() | mesh)
    needed = ", ".join(axis for axis in AXES if axis in mesh_of())
    if known != sorted(mesh) or not set(known) <= set(AXES) or min(mesh.values()) < 1:
        return f"mesh must give a positive size to each of {needed}"
    return "" if sorted(order) == known else f"order must hold each of {', '.join(known)} once"


def refined_error(mesh: dict[str, int], refined: dict[str, int]) -> str:
    """What is wrong with how axes are refined, in words that follow their place's; "" where nothing is."""
    for axis in dict.fromkeys(map(whole, refined)):
        row, sizes = AXES.get(axis), [refined.get(part, 0) for part in (AXES[axis].parts if axis in AXES else ())]
        if row is None or not row.lays or not sizes or min(sizes) < 1 or math.prod(sizes) != mesh.get(axis, 1):
            return f"refined must give sizes to the parts of an axis, whose product is its own, not {refined}"
    return ""
