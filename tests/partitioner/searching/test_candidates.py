"""Which ways to cut a step are tried, listed by hand; the front is what no other beats in both time and memory."""

from __future__ import annotations

import functools
import itertools
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hand_counted import chain, cluster

from partitioner import Cluster, Graph, search
from partitioner.errors import InputError
from partitioner.plan.executed import space_of
from partitioner.searching.candidates import candidates, divisors
from partitioner.searching.pins import read_pins
from partitioner.searching.splits import Tried
from partitioner.searching.where_memory_binds import where_memory_binds
from partitioner.software import Software
from partitioner.solve.choices import NoLayout
from partitioner.step.step_seconds import price

Way = tuple[str, int, str, str, int]  # mesh as pp x dp x tp, micro-batch, schedule and virtual, recomputed, ZeRO


@functools.cache
def graph(blocks: int = 4) -> Graph:
    return chain(blocks)


def tried(
    on: Cluster, batch: int, pins: Mapping[str, str | int] | None = None, plan_only: bool = False
) -> list[Tried]:
    asked = {"zero": 0} | dict(pins or {})
    fixed = read_pins({name: value for name, value in asked.items() if value != "any"}, graph())
    return list(candidates(graph(), on, batch, fixed, space_of(Software(), plan_only), lambda text: None))


def ways(rows: list[Tried]) -> Counter[Way]:
    return Counter(map(way, rows))


def way(row: Tried) -> Way:
    split, own = row.split, row.split.parallelism
    mesh = "x".join(str(own.mesh[axis]) for axis in ("pp", "dp", "cp", "tp") if axis in own.mesh)
    again = f"{own.recompute} {sum(split.recomputed)}" if any(split.recomputed) else ""
    return mesh, own.micro_batch, f"{own.schedule} {own.virtual}", again, own.zero


def plain(*rows: tuple[str, int, str]) -> Counter[Way]:
    return Counter((*row, "", 0) for row in rows)


def test_two_devices_and_two_samples() -> None:
    """Four blocks: no interleaving of one micro-batch; no schedule but one where there is one stage."""
    assert ways(tried(cluster(2), 2)) == plain(
        ("1x2x1", 1, "1f1b 1"), ("1x1x2", 1, "1f1b 1"), ("1x1x2", 2, "1f1b 1"),
        ("2x1x1", 1, "gpipe 1"), ("2x1x1", 1, "1f1b 1"), ("2x1x1", 1, "interleaved 2"),
        ("2x1x1", 2, "gpipe 1"), ("2x1x1", 2, "1f1b 1"),
    )  # fmt: skip


def test_no_more_stages_than_blocks() -> None:
    found = ways(tried(cluster(4), 4, {"tp": 1, "micro_batch": 1}))
    assert found == plain(
        ("1x4x1", 1, "1f1b 1"),
        ("2x2x1", 1, "gpipe 1"), ("2x2x1", 1, "1f1b 1"), ("2x2x1", 1, "interleaved 2"),
        ("4x1x1", 1, "gpipe 1"), ("4x1x1", 1, "1f1b 1"),
    )  # fmt: skip
    assert not tried(cluster(8), 8, {"pp": 8})


@pytest.mark.parametrize(
    ("pins", "found"),
    [
        ({"schedule": "gpipe"}, [("2x1x1", 1, "gpipe 1"), ("2x1x1", 2, "gpipe 1")]),
        ({"virtual": 2}, [("2x1x1", 1, "interleaved 2")]),
        ({"dp": 2}, [("1x2x1", 1, "1f1b 1")]),
        ({"tp": 2, "micro_batch": 2}, [("1x1x2", 2, "1f1b 1")]),
        ({"stages": "2,4", "schedule": "1f1b"}, [("2x1x1", 1, "1f1b 1"), ("2x1x1", 2, "1f1b 1")]),
    ],
)
def test_pins_leave_what_they_admit(pins: dict[str, str | int], found: list[tuple[str, int, str]]) -> None:
    assert ways(tried(cluster(2), 2, pins)) == plain(*found)


def test_a_micro_batch_has_at_most_sixteen_samples_but_where_one_is_pinned() -> None:
    assert {row.split.parallelism.micro_batch for row in tried(cluster(1), 32)} == {1, 2, 4, 8, 16}
    assert {row.split.parallelism.micro_batch for row in tried(cluster(1), 32, {"micro_batch": 32})} == {32}


def test_tensor_parallel_ranks_stay_in_a_node_but_where_they_are_pinned() -> None:
    two = cluster(1, nodes=2)
    assert {row.split.parallelism.mesh["tp"] for row in tried(two, 2)} == {1}
    assert {row.split.parallelism.mesh["tp"] for row in tried(two, 2, {"tp": 2})} == {2}
    with pytest.raises(NoLayout):
        tried(two, 2, {"blocks.0.0.weight": "shard:0"})


def test_orders_where_stages_and_replicas_both_span_nodes() -> None:
    pins: dict[str, str | int] = {"pp": 2, "dp": 2, "schedule": "1f1b", "micro_batch": 1}
    usual, other = ("pp", "dp", "tp"), ("dp", "pp", "tp")
    assert [row.split.parallelism.order for row in tried(cluster(4), 4, pins)] == [usual]
    assert [row.split.parallelism.order for row in tried(cluster(2, nodes=2), 4, pins)] == [usual, other]
    assert [row.split.parallelism.order for row in tried(cluster(2, nodes=2), 4, pins | {"pp": 4, "dp": 1})] == [usual]


def test_what_is_only_planned() -> None:
    """Ranks that share a sample's tokens; schedules that put weights' gradients off."""
    pins: dict[str, str | int] = {"tp": 1, "pp": 1}
    assert ways(tried(cluster(2, launch=1.0), 2, pins, plan_only=True)) == plain(
        ("1x2x1", 1, "1f1b 1"), ("1x1x2x1", 1, "1f1b 1"), ("1x1x2x1", 2, "1f1b 1")
    )  # fmt: skip
    staged = tried(cluster(2, launch=1.0), 2, {"pp": 2, "micro_batch": 1}, plan_only=True)
    assert {way(row)[2] for row in staged} == {"gpipe 1", "1f1b 1", "interleaved 2", "zero_bubble 1", "zbv 2"}
    assert {row.split.parallelism.zero for row in staged} == {0}


def test_state_is_divided_as_far_as_memory_asks() -> None:
    """Nothing, and what the optimizer needs; more only where that does not fit with nothing recomputed. What moves most
    also over a node's ranks."""
    pins: dict[str, str | int] = {"tp": 1, "pp": 1, "micro_batch": 1, "recompute": "off", "zero": "any"}

    def stages(on: Cluster, **more: int) -> list[tuple[int, int]]:
        return [(own.zero, own.zero_group) for own in (row.split.parallelism for row in tried(on, 4, pins | more))]

    assert stages(cluster(4)) == [(0, 0), (1, 0)]
    assert stages(cluster(1)) == [(0, 0)]
    rows = {row.split.parallelism.zero: row.peak_bytes for row in tried(cluster(4, memory_bytes=1.0), 4, pins)}
    assert sorted(rows) == [0, 1, 2, 3]
    for zero in (1, 2, 3):
        assert rows[zero] < rows[zero - 1]
        fits = cluster(4, memory_bytes=rows[zero])
        assert stages(fits) == [(n, 0) for n in range(zero + 1)]
    two_nodes = cluster(2, nodes=2, memory_bytes=1.0)
    assert stages(two_nodes) == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 2)]
    assert stages(two_nodes, zero=2, zero_group=2) == [(2, 2)]
    assert stages(two_nodes, zero_group=3) == []


PINNED: dict[str, str | int] = {"tp": 1, "pp": 1, "dp": 1, "micro_batch": 2}


def test_as_many_blocks_are_recomputed_as_needed_and_all() -> None:
    """Four blocks of 96 bytes of tanh a micro-batch of 2: a byte too little costs one of them."""
    (row,) = tried(cluster(1), 2, PINNED)
    whole = row.peak_bytes

    def again(room: float, plan_only: bool = False, **pins: str | int) -> list[str]:
        on = cluster(1, memory_bytes=room)
        return [way(row)[3] for row in tried(on, 2, PINNED | pins, plan_only)]

    assert again(whole) == [""]
    assert again(whole - 1) == ["", "full 1", "full 4"]
    assert again(whole - 97) == ["", "full 2", "full 4"]
    assert again(whole - 4 * 96) == ["", "full 4"]
    assert again(whole - 4 * 96 - 1) == ["", "full 4"]  # which does not fit either, and search says by how much
    assert again(whole, recompute="on") == ["full 4"]
    assert again(whole - 1, recompute="off") == [""]
    assert again(whole, recompute="on", recomputed=3) == again(whole, recomputed=3) == ["full 3"]
    assert again(whole, recomputed=5) == []
    found = {way(row)[3]: row.peak_bytes for row in tried(cluster(1, memory_bytes=whole - 1), 2, PINNED)}
    assert found == {"": whole, "full 1": whole - 96, "full 4": whole - 4 * 96}


def test_the_plainest_of_equals_comes_first() -> None:
    """Fewest bytes before anything else."""
    (one,) = tried(cluster(2), 2, {"dp": 2})
    pp, dp, tp = ({"pp": 1, "dp": 1, "tp": 1} | {axis: 2} for axis in ("pp", "dp", "tp"))
    for name, worse in (("zero", 1), ("virtual", 2), ("recompute", "selective"), ("mesh", pp), ("mesh", tp)):
        assert one.plainness < otherwise(one, name, worse).plainness, worse
    assert one.split.parallelism.mesh == dp
    assert otherwise(one, "mesh", tp).plainness < replace(one, peak_bytes=1e9).plainness


def otherwise(row: Tried, name: str, value: object) -> Tried:
    """The same with another degree."""
    changed = replace(row.split.parallelism, **{name: value})  # type: ignore[arg-type]
    return replace(row, split=replace(row.split, parallelism=changed))


SLOW = cluster(4, flops=1e3, memory=1e4, near=2e3, launch=0.05)


@pytest.mark.parametrize("plan_only", [False, True])
def test_the_front_beats_all_others(plan_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step on the front saves a hundredth of the time of the one before it, which needs less memory."""
    beside, real = list[Tried](), where_memory_binds
    monkeypatch.setattr(
        sys.modules["partitioner.searching.search"], "where_memory_binds", lambda *a: beside.extend(real(*a)) or beside
    )
    pins: dict[str, str | int] = {"cp": 1, "zero": 0} if plan_only else {"zero": 0}
    half = search(graph(), SLOW, 8, pins, plan_only=plan_only).cost.peak_bytes / 2
    on = replace(SLOW, device=replace(SLOW.device, memory_bytes=half))
    beside.clear()
    plan = search(graph(), on, 8, pins, plan_only=plan_only)
    every = [row for row in (*tried(on, 8, pins, plan_only), *beside) if row.peak_bytes <= half]
    prices = [(row.peak_bytes, price(row.priced, row.split).step_seconds) for row in every]
    front = [(row.peak_bytes, row.step_seconds) for row in plan.front]
    assert len(front) >= 3
    assert set(front) <= set(prices)
    for (less, longer), (more, shorter) in itertools.pairwise(front):
        assert less < more
        assert shorter < 0.99 * longer
    for size, seconds in prices:
        assert not any(size < a and seconds <= b for a, b in front), "a row of the front is beaten"
        assert any(a <= size and 0.99 * b <= seconds for a, b in front), "a row is missing of the front"
    assert plan.cost.step_seconds == pytest.approx(min(seconds for _, seconds in prices))
    assert plan.searched["candidates"] == len(tried(on, 8, pins, plan_only)) + len(beside)


@pytest.mark.parametrize("samples", [0, -4, 2**63])
def test_a_batch_that_no_step_has_is_refused(samples: int) -> None:
    with pytest.raises(InputError, match=f"global_batch of {samples} samples: take 1 to"):
        search(graph(), cluster(2), samples)


def test_divisors_are_all_and_rise() -> None:
    for n in (1, 2, 12, 36, 97, 360):
        assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]
