"""A run whose ranks are not as many as its plan's: planned anew for those that came, gone on from its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable

from partitioner import Graph, Plan, search
from partitioner.errors import InputError
from partitioner.sharding.mesh_axes import AXES, refining

SIZES = {*AXES, *refining(), "stages", "virtual", "micro_batch", "zero_group"}  # pins that hang on the number of ranks


def plan_of_ranks(plan: Plan, graph: Graph, ranks: int, say: Callable[[str], object]) -> Plan:
    """The best plan of so many ranks for the model, the batch and the hardware of ``plan``, with those of its pins that
    name no size; it is said. Raises InputError where there is none."""
    began = time.monotonic()
    cluster = plan.machine.of_ranks(ranks)
    pins: dict[str, str | int] = {name: word for name, word in plan.pins.items() if name not in SIZES}
    try:
        found = search(graph, cluster, plan.global_batch, pins, plan.model)
    except InputError as error:
        raise InputError(f"{ranks} ranks came, not the plan's {plan.world}; no plan is for them: {error}") from error
    mesh = ", ".join(f"{axis} {found.parallelism.mesh[axis]}" for axis in found.parallelism.order)
    say(
        f"{ranks} ranks came, not the plan's {plan.world}: planned anew in {time.monotonic() - began:.1f} s ({mesh}, "
        f"a step of {found.cost.step_seconds:.3g} s predicted, {plan.cost.step_seconds:.3g} s before)"
    )
    return found
