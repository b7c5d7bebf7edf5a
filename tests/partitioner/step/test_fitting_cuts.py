"""FittingCuts against all cuts there are, each weighed exactly: the slowest, recomputing what it must, is fastest."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
from hand_counted import chain, cluster, priced, split
from splits import all_cuts

from partitioner import Graph
from partitioner.cost.unit_cost import Priced
from partitioner.graph.graph import Unit
from partitioner.step.cut_stages import StageCuts
from partitioner.step.fitting_cuts import FittingCuts
from partitioner.step.least_recompute import least_recomputed
from partitioner.step.rank_memory import RankMemory
from partitioner.step.split import Split, stage_sums

Cut = tuple[tuple[Unit, ...], ...]
BLOCKS, MANY = 9, 6


@functools.cache
def graph() -> Graph:
    return chain(BLOCKS)


def of(found: Priced, cut: Cut, schedule: str) -> Split:
    stages = tuple(stage_sums(found, units) for units in cut)
    return split(stages, pp=len(cut), many=MANY, units=cut, schedule=schedule)


def slowest(found: Priced, plain: Split, way: str) -> float:
    """Seconds of the slowest stage of what fits, infinite where it does not."""
    memory, room = RankMemory(found, plain.recomputing(way, plain.recomputed)), found.cluster.device.room
    if way == "none":
        return max(s.seconds.total for s in plain.stages) if memory.peak_bytes(plain.recomputed) <= room else math.inf
    counts = least_recomputed(memory, room)
    if counts is None:
        return math.inf
    again = [stage.stash[way][n] for stage, n in zip(plain.stages, counts, strict=True)]
    return max(s.seconds.total + a.compute + a.communication for s, a in zip(plain.stages, again, strict=True))


@pytest.mark.parametrize("way", ["none", "full"])
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_the_best_of_all_cuts(stages: int, schedule: str, way: str) -> None:
    """In rooms of 1/2 to all that the evenest cut needs; some of which nothing fits into, some only another cut."""
    roomy = priced(graph(), cluster(stages, flops=1.0))
    evenest = StageCuts(roomy).evenest(stages)
    whole = of(roomy, evenest, schedule)
    peak, rescued = RankMemory(roomy, whole).peak_bytes(whole.recomputed), 0
    for tenth in range(10, 20):
        on = priced(graph(), cluster(stages, flops=1.0, memory_bytes=peak * tenth / 20))
        plain = of(on, StageCuts(on).evenest(stages), schedule)
        best = min(slowest(on, of(on, cut, schedule), way) for cut in all_cuts(on.folded.graph.units, stages))
        cut = FittingCuts(on).cut(plain, way, math.inf)
        assert (slowest(on, of(on, cut, schedule), way) if cut else math.inf) == best
        rescued += best < slowest(on, plain, way)
    assert rescued or schedule == "gpipe", "no room in which the evenest cut is not the best"


def test_nothing_slower_than_is_asked_for() -> None:
    roomy = priced(graph(), cluster(2, flops=1.0))
    plain = of(roomy, StageCuts(roomy).evenest(2), "1f1b")
    least = max(stage.seconds.total for stage in plain.stages)
    assert FittingCuts(roomy).cut(plain, "none", least * 0.999) == ()
    assert slowest(roomy, of(roomy, FittingCuts(roomy).cut(plain, "none", least * 1.001), "1f1b"), "none") == least


def test_state_counts() -> None:
    """A first stage whose embedding is as large as many blocks has fewer of them."""
    found = priced(graph(), cluster(2, flops=1.0))
    table = next(node for node in found.held[found.folded.graph.units[0]])
    alike = found.folded.parameter[found.folded.own(table)]
    heavy = replace(found)
    heavy.__dict__["held"] = {
        unit: {n: row._replace(elements=2000.0) if found.folded.parameter[found.folded.own(n)] == alike else row
               for n, row in rows.items()}
        for unit, rows in found.held.items()
    }  # fmt: skip
    plain = of(heavy, StageCuts(heavy).evenest(2), "1f1b")
    needed = RankMemory(heavy, plain).rank_peak_bytes(plain.recomputed)  # type: ignore[arg-type]
    assert needed[0] > needed[1]
    short = replace(heavy, cluster=cluster(2, flops=1.0, memory_bytes=float(needed[0]) - 1))
    short.__dict__["held"] = heavy.__dict__["held"]
    cut = FittingCuts(short).cut(of(short, plain.units, "1f1b"), "none", math.inf)
    assert len(cut[0]) < len(plain.units[0])
    assert slowest(short, of(short, cut, "1f1b"), "none") < math.inf
