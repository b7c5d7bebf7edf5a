"""A step's bound is below every table's price and loses nothing; a candidate's bytes are exact; cuts are the best."""

from __future__ import annotations

import importlib
import itertools
import random
from dataclasses import asdict, replace

import pytest
from small_plans import graph_of
from splits import split_of

from partitioner import Cluster, search
from partitioner.cost.op_seconds import Seconds
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_units
from partitioner.cost.unit_cost import Priced
from partitioner.graph.tied_blocks import fold
from partitioner.layouts.strategies import space
from partitioner.plan.executed import space_of
from partitioner.schedule.tables import SCHEDULES
from partitioner.searching.candidates import candidates
from partitioner.searching.pins import read_pins
from partitioner.searching.splits import Tried
from partitioner.solve.choices import Prices
from partitioner.solve.solve import solve
from partitioner.step.cut_stages import StageCuts
from partitioner.step.split import StageSums, stage_sums
from partitioner.step.step_seconds import bound, price

CLUSTER = Cluster.load("dgx-a100", devices=4)


def priced_graph(name: str, tp: int) -> Priced:
    folded = fold(graph_of(name))
    setting = Setting.of(folded, CLUSTER, {"tp": tp})
    return price_units(setting, solve(folded, space(folded, "tp", tp), Prices(CLUSTER, setting, 8)), CLUSTER)


KINDS = tuple((row.name, row.fewest_stages) for row in SCHEDULES.values())


@pytest.mark.parametrize("name", ["gpt", "t5", "gemma2"])
def test_the_bound_is_below_the_price(name: str) -> None:
    priced = priced_graph(name, 2)
    cuts, even = StageCuts(priced), 0
    for (kind, virtual), pp, m, again in itertools.product(KINDS, (1, 2, 3), (6, 12), (False, True)):
        stages = cuts.evenest(pp * virtual)
        if not stages or (pp == 1 and kind != "1f1b"):
            continue
        sums = tuple(stage_sums(priced, s) for s in stages)
        counts = tuple(s.blocks if again else 0 for s in sums)
        split = split_of(sums, stages, m, kind, virtual, counts, pp=pp, tp=2)
        least, cost = bound(priced, split), price(priced, split)
        assert 0 < least <= cost.step_seconds
        even += least > 0.999 * cost.step_seconds
    assert even, "the bound is nowhere close"


def blocking(priced: Priced, send_seconds: float) -> Priced:
    """On links of which a send takes so long, and its rank waits."""
    node = replace(CLUSTER.node, latency_seconds=send_seconds, bytes_per_second=1e30)
    return replace(priced, cluster=replace(CLUSTER, node=node, software=replace(CLUSTER.software, overlap_sends=False)))


@pytest.mark.parametrize(("kind", "virtual"), KINDS)
def test_sends_that_do_not_hide_take_their_ranks_time(kind: str, virtual: int) -> None:
    """The worst rank of two sends each micro-batch's results or gradients once for every stage that is not its last."""
    many, priced = 4, priced_graph("gpt", 1)
    units = priced.folded.graph.units
    sums, stages = (stage_sums(priced, units),) * 2 * virtual, (units,) * 2 * virtual
    split = split_of(sums, stages, many, kind, virtual, pp=2)
    short, long = (price(blocking(priced, seconds), split) for seconds in (0.0, 1e-2))
    sends = {"interleaved": 3, "zbv": 2}.get(kind, 1) * many
    assert long.communication_seconds - short.communication_seconds == pytest.approx(sends * 1e-2)
    assert long.step_seconds - short.step_seconds >= sends * 1e-2
    assert bound(blocking(priced, 1e-2), split) <= long.step_seconds


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(("kind", "virtual"), KINDS)
def test_the_bound_holds_for_any_seconds(kind: str, virtual: int, blocks: bool) -> None:
    """Of stages that differ as much as may be, with little and with much that is put off."""
    priced, draw = priced_graph("gpt", 1), random.Random(0)
    priced = blocking(priced, 0.5) if blocks else priced
    units = priced.folded.graph.units
    plain = stage_sums(priced, units)
    for pp, m in itertools.product((2, 3, 4), (2, 4, 12, 13)):
        for _ in range(20 if kind != "interleaved" or m % pp == 0 else 0):
            sums = tuple(drawn(plain, draw) for _ in range(pp * virtual))
            split = split_of(sums, (units,) * (pp * virtual), m, kind, virtual, pp=pp)
            least, cost = bound(priced, split), price(priced, split)
            assert least <= cost.step_seconds


def drawn(plain: StageSums, draw: random.Random) -> StageSums:
    """A stage of other seconds, so long that no host counts."""
    backward = draw.uniform(1.0, 4.0)
    seconds = Seconds(draw.uniform(1.0, 2.0), backward)
    return replace(plain, seconds=seconds, weight_gradient_seconds=draw.choice((0.0, 0.1, 0.5, 0.9)) * backward)


def test_even_stages_put_off_as_the_paper_says() -> None:
    """(pp - 1)(F + B - W) of bubble; 1f1b's is (pp - 1)(F + B + W), and both do the same work and hold the same."""
    priced, pp, m = priced_graph("gpt", 1), 4, 8
    sums, units = stage_sums(priced, priced.folded.graph.units), priced.folded.graph.units
    sums = replace(sums, seconds=Seconds(1.0, 2.0), weight_gradient_seconds=0.9, output_bytes=0.0)
    costs = {
        kind: price(priced, split_of((sums,) * pp, (units,) * pp, m, kind, pp=pp))
        for kind in ("1f1b", "zero_bubble")
    }
    plain, split = costs["1f1b"], costs["zero_bubble"]
    slowest = plain.stages[0].forward_seconds
    assert plain.bubble_seconds == pytest.approx((pp - 1) * 3.0 * slowest, rel=1e-3)
    assert split.bubble_seconds == pytest.approx((pp - 1) * (3.0 - 2 * 0.9) * slowest, rel=1e-3)
    assert split.compute_seconds == pytest.approx(plain.compute_seconds)
    assert split.peak_bytes == plain.peak_bytes


def test_a_recomputed_block_puts_nothing_off() -> None:
    """Else what was rebuilt for B would have to be held for W."""
    priced = priced_graph("gpt", 1)
    (units,) = StageCuts(priced).evenest(1)
    sums = stage_sums(priced, units)
    kept = sums.stash["full"]
    blocks = [u for u in units if u.is_block]
    weights = [0.0, *itertools.accumulate(priced.unit(u).weight_gradient_seconds for u in blocks)]
    assert [k.weight_gradient_seconds for k in kept] == pytest.approx(weights)
    assert 0 < kept[-1].weight_gradient_seconds < sums.weight_gradient_seconds


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

    found = StageCuts(priced).evenest(stages)
    ends = tuple(itertools.accumulate(len(run) for run in found))[:-1]
    best = min(slowest(b) for b in itertools.combinations(range(1, len(units)), stages - 1))
    assert slowest(ends)[0] == pytest.approx(best[0])
    assert [u for run in found for u in run] == list(units)


@pytest.mark.parametrize(("name", "plan_only"), [("gpt", False), ("gemma2", True)])
def test_every_candidate_knows_its_bytes(name: str, plan_only: bool) -> None:
    graph = graph_of(name)

    def found(memory_bytes: float) -> list[Tried]:
        cluster = replace(CLUSTER, device=replace(CLUSTER.device, memory_bytes=memory_bytes))
        space = space_of(cluster.software, plan_only)
        return list(candidates(graph, cluster, 16, read_pins({"cp": 1}, graph), space, lambda text: None))

    peaks = sorted(t.peak_bytes for t in found(CLUSTER.device.memory_bytes))
    tight = found(peaks[len(peaks) // 2])
    assert any(sum(t.split.recomputed) for t in tight)
    assert {"gpipe", "1f1b"} <= {t.split.parallelism.schedule for t in tight}
    for tried in tight:
        assert tried.peak_bytes == price(tried.priced, tried.split).peak_bytes > 0


def test_too_few_blocks_cannot_be_cut() -> None:
    assert StageCuts(priced_graph("gpt", 1)).evenest(9) == ()


def test_zero_bubble_plans_are_to_look_at() -> None:
    plan = search(graph_of("gemma2"), CLUSTER, 16, {"schedule": "zbv", "pp": 2, "cp": 1, "zero": 0}, plan_only=True)
    assert plan.decisions.plan_only == ("schedule zbv",)
    assert (plan.parallelism.virtual, len(plan.decisions.stages)) == (2, 4)
    assert {c.parallelism.schedule for c in plan.candidates} == {"zbv"}
    executed = search(graph_of("gemma2"), CLUSTER, 16, {"pp": 2}, keep=999)
    assert {c.parallelism.schedule for c in executed.candidates} == {"gpipe", "1f1b", "interleaved"}


@pytest.mark.parametrize(
    ("name", "plan_only"), [("gpt", False), ("t5", False), pytest.param("gemma2", True, marks=pytest.mark.parity)]
)
def test_pruning_loses_nothing(name: str, plan_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = {"cp": 1} if plan_only else {}
    monkeypatch.setattr(importlib.import_module("partitioner.searching.search"), "where_memory_binds", lambda *_: [])
    pruned = search(graph_of(name), CLUSTER, 16, pins, plan_only=plan_only)
    assert pruned.searched["beaten_by_bound"] > 0
    assert pruned.searched["candidates"] == sum(n for key, n in pruned.searched.items() if key != "candidates")
    monkeypatch.setattr(importlib.import_module("partitioner.searching.splits"), "bound", lambda priced, split: 0.0)
    brute = search(graph_of(name), CLUSTER, 16, pins, plan_only=plan_only)
    assert brute.searched["beaten_by_bound"] == 0
    kinds = {c.parallelism.schedule for c in brute.candidates + brute.front}
    assert not plan_only or any(SCHEDULES[kind].defers_weights for kind in kinds)
    assert asdict(brute.cost) == asdict(pruned.cost)
    assert brute.decisions == pruned.decisions
    assert brute.candidates[:10] == pruned.candidates[:10]
