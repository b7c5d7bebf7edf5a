"""What a plan says each rank holds is what the Program made of it holds."""

from __future__ import annotations

import math

from partitioner import lower, search, trace
from partitioner.lowering.parameter_bytes import held_bytes
from partitioner.lowering.program import coordinates
from runtime.state.shard_pieces import part_of, rank_parameters
from tools.models.load import load
from tools.verify.plan_families import cluster


def test_a_plan_tells_what_every_rank_holds() -> None:
    settings = {"vocab": 101, "hidden": 32, "layers": 2, "heads": 4, "seq": 16, "tied": True}
    source = load("examples/gpt.py:model", settings, batch=8, meta=True)
    graph = trace(source.module, source.batch)
    plan = search(graph, cluster(4), 8, {"tp": 2, "pp": 2})
    program = lower(graph, plan)
    sizes: set[int] = set()
    for place in coordinates(program):
        rows = rank_parameters(program, place["pp"])
        wanted = {p.name: math.prod(part_of(program, p, place).shape) * p.dtype.itemsize for p in rows}
        assert held_bytes(graph, plan, place) == wanted
        sizes.add(sum(wanted.values()))
    assert len(sizes) > 1
