"""The plan of fewest bytes fits where search finds a plan and only there, and no plan that search lists needs fewer."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import pytest

from examples.gpt import model
from partitioner import Cluster, Graph, Plan, search, trace
from partitioner.cost.state_bytes import least_state_bytes
from partitioner.errors import DoesNotFit, InputError
from partitioner.precision import PRESETS
from partitioner.searching.search import tightest

DEVICES, BATCH = 2, 4
PINS: list[dict[str, str | int]] = [{}, {"tp": 1, "zero": 0}, {"recompute": "off"}, {"pp": 2, "schedule": "gpipe"}]


@functools.cache
def graph(precision: str = "bf16") -> Graph:
    return trace(*model(layers=2, vocab=128, hidden=32, heads=4, seq=64), compare=False, precision=PRESETS[precision])


def with_room(room: float) -> Cluster:
    found = Cluster.load("dgx-a100", devices=DEVICES)
    memory = found.device.memory_bytes * room / found.device.room
    return replace(found, device=replace(found.device, memory_bytes=memory))


def tight(room: float, pins: dict[str, str | int]) -> Plan:
    return tightest(graph(), with_room(room), BATCH, pins)


@pytest.mark.parametrize("pins", PINS, ids=str)
def test_it_fits_where_search_finds_a_plan_and_only_there(pins: dict[str, str | int]) -> None:
    least = tight(1e9, pins).cost.peak_bytes
    for room in (1e9, 1.001 * least, 0.999 * least):
        found = tight(room, pins)
        if found.cost.peak_bytes <= with_room(room).device.room:
            listed = search(graph(), with_room(room), BATCH, pins)
            assert found.cost.peak_bytes <= min(row.peak_bytes for row in (*listed.front, *listed.candidates))
        else:
            with pytest.raises(DoesNotFit, match="misses"):
                search(graph(), with_room(room), BATCH, pins)
            assert room < least


def test_it_is_a_plan_of_the_cluster_that_was_asked_for() -> None:
    cluster = with_room(1e9)
    found = tightest(graph(), cluster, BATCH, {"tp": 2}, {"entry": "a model"})
    assert found.cluster == cluster.as_dict()
    assert found.parallelism.mesh["tp"] == 2
    assert not found.stale
    assert found.model["entry"] == "a model"
    stages = found.cost.stages
    held = max(sum(stages[n].peak_bytes for n in own) for own in found.parallelism.rank_stages)
    assert math.isclose(held, found.cost.peak_bytes)


def test_where_one_fits_what_nothing_needs_is_looked_at_all_the_same() -> None:
    listed = search(graph(), with_room(1e9), BATCH)
    assert tight(1e9, {}).cost.peak_bytes < min(row.peak_bytes for row in (*listed.front, *listed.candidates))


def test_pins_that_no_plan_has_are_refused() -> None:
    with pytest.raises(InputError, match="does not divide 2 devices"):
        tight(1e9, {"tp": 3})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-pure"])
def test_ranks_hold_no_less_than_all_state_once(precision: str) -> None:
    least = least_state_bytes(graph(precision))
    elements = sum(math.prod(row.shape) for row in graph(precision).parameters.values())
    assert least == elements * {"fp32": 16, "bf16": 16, "bf16-pure": 8}[precision]
    meshes = itertools.product(({"pp": 2}, {"tp": 2}, {"dp": 2}), (0, 3))
    for mesh, zero in meshes:
        plan = search(graph(precision), with_room(1e9), BATCH, {**mesh, "zero": zero} if "dp" in mesh else mesh)
        held = sum(stage.grown_bytes + stage.weight_bytes + stage.optimizer_bytes for stage in plan.cost.stages)
        assert held * DEVICES / plan.parallelism.mesh["pp"] >= least * (1 - 1e-9)
