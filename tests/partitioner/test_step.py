"""A step's bound is below every table's price and its memory exact; pruning by it loses nothing; cuts are the best."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import asdict

import pytest
from test_lower import graph_of

from partitioner import Cluster, search
from partitioner.choices import Prices
from partitioner.cost import Priced, price_units
from partitioner.fold import fold
from partitioner.solve import solve
from partitioner.split import Split, stage_sums
from partitioner.stages import Cuts
from partitioner.step import bound, price
from partitioner.strategies import space
from partitioner.work import Setting

CLUSTER = Cluster.load("dgx-a100", devices=4)


def priced_graph(name: str, tp: int) -> Priced:
    folded = fold(graph_of(name))
    setting = Setting.of(folded, CLUSTER, tp)
    return price_units(setting, solve(folded, space(folded, tp), Prices.of(CLUSTER, setting, 8)), CLUSTER)


@pytest.mark.parametrize("name", ["gpt", "t5", "gemma2"])
def test_the_bound_is_below_the_price_and_memory_is_exact(name: str) -> None:
    priced = priced_graph(name, 2)
    cuts, even = Cuts(priced), 0
    for (kind, virtual), pp, m, again in itertools.product(
        (("gpipe", 1), ("1f1b", 1), ("interleaved", 2)), (1, 2, 3), (6, 12), (False, True)
    ):
        stages = cuts.into(pp * virtual)
        if not stages or (pp == 1 and kind != "1f1b"):
            continue
        sums = tuple(stage_sums(priced, s) for s in stages)
        counts = tuple(s.blocks if again else 0 for s in sums)
        mesh = {"pp": pp, "dp": 1, "tp": 2}
        split = Split(sums, stages, mesh, ("pp", "dp", "tp"), m, kind, virtual, "full", counts)
        (least, peak), cost = bound(priced, split), price(priced, split)
        assert peak == cost.peak_bytes
        assert 0 < least <= cost.step_seconds
        even += least > 0.999 * cost.step_seconds
    assert even, "the bound is nowhere close"


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_cuts_are_the_best_of_all(stages: int) -> None:
    priced = priced_graph("t5", 1)
    units = priced.folded.graph.units
    seconds = [priced.unit(u).seconds.total for u in units]

    def slowest(bounds: tuple[int, ...]) -> tuple[float, float]:
        runs = list(itertools.pairwise((0, *bounds, len(units))))
        if not all(any(u.is_block for u in units[a:b]) for a, b in runs):
            return float("inf"), float("inf")
        sums = [sum(seconds[a:b]) for a, b in runs]
        return max(sums), sum(s * s for s in sums)

    found = Cuts(priced).into(stages)
    ends = tuple(itertools.accumulate(len(run) for run in found))[:-1]
    best = min(slowest(b) for b in itertools.combinations(range(1, len(units)), stages - 1))
    assert slowest(ends)[0] == pytest.approx(best[0])
    assert [u for run in found for u in run] == list(units)


def test_too_few_blocks_cannot_be_cut() -> None:
    assert Cuts(priced_graph("gpt", 1)).into(9) == ()


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_pruning_loses_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = search(graph_of(name), CLUSTER, 16)
    assert pruned.searched["beaten_by_bound"] > 0
    assert pruned.searched["candidates"] == sum(n for key, n in pruned.searched.items() if key != "candidates")
    monkeypatch.setattr(
        importlib.import_module("partitioner.candidates"),
        "bound",
        lambda priced, split: (0.0, price(priced, split).peak_bytes),
    )
    brute = search(graph_of(name), CLUSTER, 16)
    assert brute.searched["beaten_by_bound"] == 0
    assert asdict(brute.cost) == asdict(pruned.cost)
    assert brute.decisions == pruned.decisions
    assert brute.candidates == pruned.candidates
