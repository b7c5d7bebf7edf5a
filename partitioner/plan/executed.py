"""Which values of a decision a step can be executed with, and which a plan can only be looked at with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from partitioner.plan.parallelism import Parallelism
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, NO_RECOMPUTE, OPERATORS, SELECTIVE
from partitioner.schedule.tables import SCHEDULES
from partitioner.sharding.mesh_axes import AXES


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
    "recompute": Values((NO_RECOMPUTE, OPERATORS, SELECTIVE, FULL_RECOMPUTE), (), "{} recompute"),
    "schedule": Values(_schedules(True), _schedules(False), "schedule {}"),
}


def is_executed(decision: str, value: object) -> bool:
    """Whether the runtime executes a step with this value."""
    return decision not in EXECUTED or value in EXECUTED[decision].executed


def is_searched(decision: str, value: object, plan_only: bool) -> bool:
    """Whether a search proposes it, among plans to look at or among those that can be executed."""
    return decision not in EXECUTED or value in EXECUTED[decision].searched(plan_only)


def not_executed(parallelism: Parallelism) -> Iterator[str]:
    """What of it the runtime has no way to execute, in words."""
    for decision, row in EXECUTED.items():
        value = parallelism.degree(decision) if decision in AXES else getattr(parallelism, decision)
        if value not in row.executed:
            yield row.words.format(value)
