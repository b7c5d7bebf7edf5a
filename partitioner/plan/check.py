"""Is this Plan legal? A plan file can be broken by hand, so what is wrong with one is an InputError."""

from __future__ import annotations

from partitioner.errors import InputError
from partitioner.plan.plan import Plan


def check_plan(plan: Plan) -> None:
    """The decisions agree with one another and with the global batch; raises InputError naming those that do not."""
    decisions = plan.decisions
    mesh = decisions.mesh
    samples = mesh["dp"] * decisions.micro_batch * decisions.micro_batches
    if samples != plan.global_batch:
        raise InputError(
            f"the plan's dp x micro_batch x micro_batches is {samples}, "
            f"not its global batch {plan.global_batch}: plan again"
        )
    if len(decisions.stages) != mesh["pp"] * decisions.virtual:
        raise InputError(
            f"the plan has {len(decisions.stages)} stages for pp {mesh['pp']} x virtual {decisions.virtual}: plan again"
        )
