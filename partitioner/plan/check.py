"""Is this Plan legal? A plan file can be broken by hand, so what is wrong with one is an InputError."""

from __future__ import annotations

from partitioner.errors import InputError
from partitioner.plan.plan import Plan
from partitioner.sharding.mesh_axes import DP, PP


def check_plan(plan: Plan) -> None:
    """The decisions agree with one another and with the global batch; raises InputError naming those that do not."""
    own, stages = plan.parallelism, len(plan.decisions.stages)
    samples = own.mesh[DP] * own.micro_batch * own.micro_batches
    if samples != plan.global_batch:
        raise InputError(
            f"the plan's dp x micro_batch x micro_batches is {samples}, "
            f"not its global batch {plan.global_batch}: plan again"
        )
    if stages != own.stage_count:
        raise InputError(f"the plan has {stages} stages for pp {own.mesh[PP]} x virtual {own.virtual}: plan again")
