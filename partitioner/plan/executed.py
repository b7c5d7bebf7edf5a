"""Which values of a decision a step can be executed with, and which a plan can only be looked at with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from partitioner.plan.parallelism import Parallelism
from partitioner.plan.recompute_ways import NO_RECOMPUTE, WAYS
from partitioner.precision import OWN as OWN_TYPES
from partitioner.precision import Precision
from partitioner.schedule.tables import SCHEDULES
from partitioner.sharding.mesh_axes import AXES
from partitioner.software import OWN, Software

MOST_VIRTUAL = 4


@dataclass(frozen=True)
class Values:
    """Of one decision: those that the runtime executes, the plainest first; those that are searched beside them only
    for plans to look at; and how a plan says which it has."""

    executed: tuple[Any, ...]
    looked_at: tuple[Any, ...]
    words: str

    def searched(self, plan_only: bool) -> tuple[Any, ...]:
        """Those that a search may propose."""
        return (*self.executed, *(self.looked_at if plan_only else ()))


def _schedules(executed: bool) -> tuple[str, ...]:
    return tuple(row.name for row in SCHEDULES.values() if row.executed == executed)


EXECUTED = {  # a decision that has no row is executed with every value
    **{axis: Values((1,), row.looked_at, f"{axis} {{}}") for axis, row in AXES.items() if row.looked_at},
    "zero": Values((0, 1, 2, 3), (), "ZeRO {}"),
    "recompute": Values((NO_RECOMPUTE, *WAYS), (), "{} recompute"),
    "schedule": Values(_schedules(True), _schedules(False), "schedule {}"),
}


@dataclass(frozen=True)
class Space:
    """Which steps a search may propose: by decision its values, all of one without a row; at most so many ``virtual``
    stages a rank. ``name``: of the framework that they are for; ``end_slots``, ``same_recompute``: as it can be told
    (``Expressible``)."""

    values: Mapping[str, tuple[Any, ...]]
    virtual: int
    name: str = OWN
    end_slots: bool = False
    same_recompute: bool = False

    def most_stages(self, blocks: int) -> int:
        """Into how many a model of so many ``blocks`` can be cut."""
        return blocks + (2 if self.end_slots else 0)

    def admits(self, decision: str, value: object) -> bool:
        """Whether a search proposes it."""
        return decision not in self.values or value in self.values[decision]


def space_of(software: Software, plan_only: bool = False) -> Space:
    """What a framework can express; of this project's runtime what it executes, with ``plan_only`` also what a plan can
    only be looked at with."""
    told = software.plans
    if told is None:
        return Space({decision: row.searched(plan_only) for decision, row in EXECUTED.items()}, MOST_VIRTUAL)
    axes = {axis: row.searched(True) for axis, row in EXECUTED.items() if axis in AXES}
    axes |= {axis: (1,) for axis in AXES if axis not in told.axes}
    kinds = tuple(name for name in SCHEDULES if name in told.schedules)
    ways = tuple(way for way in EXECUTED["recompute"].searched(True) if way == NO_RECOMPUTE or way in told.recompute)
    values = {**axes, "zero": told.zero, "recompute": ways, "schedule": kinds}
    if not told.zero_groups:
        values["zero_group"] = (0,)
    return Space(values, told.virtual, software.name, told.end_slots, told.same_recompute)


def not_executed(parallelism: Parallelism, precision: Precision = OWN_TYPES) -> Iterator[str]:
    """What of them the runtime has no way to execute, in words."""
    if precision.products:
        yield f"products in {precision.products}"
    for decision, row in EXECUTED.items():
        value = parallelism.degree(decision) if decision in AXES else getattr(parallelism, decision)
        if value not in row.executed:
            yield row.words.format(value)
