"""Where memory binds, other layouts and stages are looked for: shorter steps in the same room."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace

import pytest

from examples.gpt import model
from partitioner import Cluster, Graph, Plan, search, trace
from partitioner.precision import PRESETS
from partitioner.searching.splits import Setup
from partitioner.searching.where_memory_binds import NEAR

SEARCH = sys.modules["partitioner.searching.search"]


@functools.cache
def graph() -> Graph:
    return trace(*model(layers=8, vocab=2048, hidden=64, heads=4, seq=64), compare=False, precision=PRESETS["tf32"])


def room(share: float, pins: dict[str, str | int]) -> Cluster:
    """``share`` of what the fastest plan needs."""
    roomy = Cluster.load("dgx-a100", devices=2)
    needed = search(graph(), roomy, 16, pins).cost.peak_bytes
    memory = roomy.device.memory_bytes * share * needed / roomy.device.room
    return replace(roomy, device=replace(roomy.device, memory_bytes=memory))


def both(share: float, pins: dict[str, str | int], monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, Plan]:
    """The plan, and the one of the first round alone."""
    on = room(share, pins)
    found = search(graph(), on, 16, pins)
    monkeypatch.setattr(SEARCH, "where_memory_binds", lambda *_: [])
    return found, search(graph(), on, 16, pins)


def test_layouts_that_hold_less_beat_recomputing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, first = both(0.8, {"tp": 2}, monkeypatch)
    assert found.cost.step_seconds < 0.97 * first.cost.step_seconds
    assert found.parallelism.recompute == "none" != first.parallelism.recompute
    assert any("layouts hold fewer bytes" in note for note in found.notes)
    assert not any("layouts hold fewer bytes" in note for note in first.notes)
    assert len({row.step_seconds for row in found.front}) > 1  # both kinds of layouts stand on it


def test_stages_of_other_sizes_beat_recomputing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, first = both(0.7, {"pp": 2}, monkeypatch)
    assert found.cost.step_seconds < 0.97 * first.cost.step_seconds
    assert [*map(len, found.decisions.stages)] != [*map(len, first.decisions.stages)]


def test_stages_are_cut_where_nothing_else_fits() -> None:
    """Nothing recomputed, one micro-batch, layouts of one rank: no other stages, no plan."""
    pins: dict[str, str | int] = {"pp": 2, "micro_batch": 8, "schedule": "gpipe", "recompute": "off", "tp": 1}
    roomy = Cluster.load("dgx-a100", devices=2)
    plan = search(graph(), roomy, 16, pins)
    assert [*map(len, plan.decisions.stages)] == [5, 5]
    short = search(graph(), room(0.98, pins), 16, pins)
    assert [*map(len, short.decisions.stages)] == [6, 4]
    assert short.cost.peak_bytes < plan.cost.peak_bytes


@pytest.mark.parametrize("share", [0.91, 0.90, 0.89, 0.88])
def test_less_room_takes_no_more_than_other_stages(share: float) -> None:
    """What a cut holds is known once it is made; at 0.90 and 0.89 the first that is found does not fit."""
    pins: dict[str, str | int] = {"pp": 2, "schedule": "gpipe", "micro_batch": 4, "recompute": "on"}
    found = search(graph(), room(share, pins), 16, pins)
    assert [*map(len, found.decisions.stages)] in ([7, 3], [8, 2])


def test_no_step_stands_twice() -> None:
    """On one rank a higher price of bytes chooses no other layouts; on two it does."""
    for pins in ({"tp": 1}, {"tp": 2}, {}):
        found = search(graph(), room(0.8, pins), 16, pins, keep=99)
        rows = [(str(row.parallelism), row.step_seconds, row.peak_bytes) for row in found.candidates]
        assert len(rows) == len(set(rows))
        stages = [str(row) for row in found.front]
        assert len(stages) == len(set(stages))


def test_pinned_stages_stay() -> None:
    pins: dict[str, str | int] = {"pp": 2, "stages": "5,5"}
    found = search(graph(), room(0.9, pins), 16, pins)
    assert [*map(len, found.decisions.stages)] == [5, 5]


def test_what_is_far_from_fitting_is_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one micro-batch size: what recomputes nothing, or operators, needs far more than the room."""
    asked = list[object]()
    real = sys.modules["partitioner.searching.where_memory_binds"].candidates
    monkeypatch.setattr(
        "partitioner.searching.where_memory_binds.candidates", lambda *a: (asked.append(a[-1]), real(*a))[1]
    )
    pins: dict[str, str | int] = {"tp": 2, "micro_batch": 16}
    search(graph(), room(1 / NEAR + 0.01, pins), 16, pins)
    assert asked == [{Setup((("cp", 1), ("tp", 2)), 16)}]
    search(graph(), room(0.6, pins), 16, pins)
    assert len(asked) == 1
