"""Search finds what trying everything finds: every mesh, schedule and number of recomputed blocks, priced."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from small_plans import graph_of
from splits import all_cuts, split_of

from partitioner import Cluster, search
from partitioner.graph.graph import Graph
from partitioner.graph.resize_batch import resize
from partitioner.graph.tied_blocks import fold
from partitioner.plan.recompute_ways import OPERATORS, WAYS
from partitioner.schedule.tables import SCHEDULES
from partitioner.searching.candidates import layouts
from partitioner.searching.pins import read_pins
from partitioner.searching.search import SCARCITIES
from partitioner.searching.splits import Setup
from partitioner.step.cut_stages import StageCuts
from partitioner.step.split import stage_sums
from partitioner.step.step_seconds import price

BATCH = 8
CLUSTER = Cluster.load("dgx-a100", devices=4)
FREE = dataclasses.replace(CLUSTER, device=dataclasses.replace(CLUSTER.device, allocator_share=1.0))


def test_tensors_fill_what_an_allocator_leaves_them() -> None:
    graph = graph_of("gpt")
    roomy = search(graph, FREE, BATCH)
    half = dataclasses.replace(FREE.device, memory_bytes=roomy.cost.peak_bytes * 0.9)
    whole = dataclasses.replace(half, memory_bytes=half.memory_bytes * 2, allocator_share=0.5)
    plans = [search(graph, dataclasses.replace(FREE, device=device), BATCH) for device in (half, whole)]
    assert plans[0].decisions == plans[1].decisions != roomy.decisions
    assert plans[1].cost.peak_bytes <= whole.memory_bytes / 2


def enumerated(graph: Graph, cluster: Cluster) -> tuple[float, int]:
    """The least step of all that fit, and how many were priced: no bound, no rule of which blocks to recompute, nor of
    where to cut what has one stage a rank, nor of when layouts that hold less are tried."""
    best, tried = math.inf, 0
    whole = [n for n in range(1, cluster.devices + 1) if cluster.devices % n == 0]
    for tp, micro_batch in itertools.product(whole, range(1, BATCH + 1)):
        if BATCH % micro_batch:
            continue
        folded = fold(resize(graph, micro_batch))
        for pp in whole:
            dp, rest = divmod(cluster.devices, tp * pp)
            if rest or BATCH % (dp * micro_batch):
                continue
            many = BATCH // (dp * micro_batch)
            setup, pins = Setup((("tp", tp),), micro_batch), read_pins({}, graph)
            solved = [layouts(folded, cluster, setup, [many], pins, s)[many] for s in SCARCITIES[:2]]
            executed = [row.name for row in SCHEDULES.values() if row.executed]
            for priced, kind, virtual in itertools.product(solved, executed, (1, 2, 3, 4)):
                legal = kind == "interleaved" if virtual > 1 else kind != "interleaved"
                if not legal or (pp == 1 and kind != "1f1b") or (virtual > 1 and many % pp):
                    continue
                evenest = StageCuts(priced).evenest(pp * virtual)
                for units in all_cuts(priced.folded.graph.units, pp) if virtual == 1 else [evenest] if evenest else []:
                    sums = tuple(stage_sums(priced, u, [*WAYS], dp) for u in units)
                    counted = itertools.product(*(range(s.blocks + 1) for s in sums))
                    for counts, zero, way in itertools.product(counted, range(4 if dp > 1 else 1), WAYS):
                        if way != OPERATORS and not any(counts):
                            continue
                        split = split_of(sums, units, many, kind, virtual, counts, zero, way, pp=pp, dp=dp, tp=tp)
                        cost, tried = price(priced, split), tried + 1
                        if cost.peak_bytes <= cluster.device.room:
                            best = min(best, cost.step_seconds)
    return best, tried


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["gpt", pytest.param("t5", marks=pytest.mark.parity)])
@pytest.mark.parametrize("room", [1.0, 0.8, 0.6])
def test_search_finds_the_best_of_everything(name: str, room: float) -> None:
    graph = graph_of(name)
    needed = search(graph, FREE, BATCH).cost.peak_bytes
    device = dataclasses.replace(FREE.device, memory_bytes=room * needed)
    cluster = dataclasses.replace(FREE, device=device)
    best, tried = enumerated(graph, cluster)
    found = search(graph, cluster, BATCH)
    assert best * (1 - 1e-9) <= found.cost.step_seconds
    assert found.cost.step_seconds <= best * (1 + 2e-3), "of cuts whose slowest stages are as fast, one may send less"
    assert found.searched["walked"] < tried


def test_a_little_less_memory_recomputes_some_blocks() -> None:
    graph = graph_of("gpt")
    pins = {"tp": 1, "pp": 1, "micro_batch": 2, "zero": 0}
    needed = search(graph, FREE, BATCH, {**pins, "recompute": "off"}).cost.peak_bytes
    device = dataclasses.replace(FREE.device, memory_bytes=needed - 1)
    found = search(graph, dataclasses.replace(FREE, device=device), BATCH, pins).decisions
    assert found.parallelism.recompute == "operators"
    assert 0 < found.recomputed[0] < len(graph.blocks)
