"""A stage without units hands on what passes it, and takes no time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_decoders import MADE

from partitioner import search, trace
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_units
from partitioner.errors import InputError
from partitioner.graph.tied_blocks import fold
from partitioner.layouts.from_plan import recall
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.searching.reprice import decided
from partitioner.searching.same_state import with_state_of
from partitioner.step.split import idle_stage
from partitioner.step.step_seconds import price
from tools.verify.plan_families import cluster


def test_it_hands_on_what_passes_it() -> None:
    module, batch = MADE["grouped in one op"]()
    graph = trace(module, batch)
    plan = search(graph, cluster(2), 4, {"pp": 2, "schedule": "1f1b", "micro_batch": 2})
    folded = fold(graph)
    setting = Setting.of(folded, cluster(2), plan.parallelism.mesh, plan.parallelism.refined)
    priced = price_units(setting, recall(plan, folded), cluster(2))
    first, *others = [name for stage in plan.decisions.stages for name in stage]
    idle = idle_stage(priced, 1)
    passing = priced.crossing[1]
    assert passing > 0
    assert (idle.input_bytes, idle.output_bytes, idle.seconds.total, idle.flops) == (passing, passing, 0.0, 0.0)
    assert idle.stash[NO_RECOMPUTE].sizes[0].tolist()[0] == passing
    found = [
        price(tried.priced, tried.split).step_seconds
        for stages in ([[first, *others], []], [[first], others])
        if (tried := decided(priced, plan.parallelism, stages, (0, 0)))
    ]
    assert 0 < found[1] < found[0]  # of two that share the work, and of one that has all of it


def test_nothing_trains_with_a_stage_that_has_nothing() -> None:
    module, batch = MADE["grouped in one op"]()
    graph = trace(module, batch)
    plan = search(graph, cluster(2), 4, {"pp": 2, "schedule": "1f1b"})
    plan = replace(plan, decisions=replace(plan.decisions, stages=((), ())))  # no unit has a name that it knows
    everything = dict.fromkeys(graph.parameters, (0,))
    with pytest.raises(InputError, match="nothing of the model is left in stage 1"):
        with_state_of(plan, trace(module, {n: t[:, :12] for n, t in batch.items()}), everything, 2)
