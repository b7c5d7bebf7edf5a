"""Where nothing fits with the fastest layouts, plans are found whose layouts hold fewer bytes."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from examples.gpt import model
from partitioner import Cluster, Graph, search, trace
from partitioner.errors import DoesNotFit

PINS: dict[str, str | int] = {"tp": 2, "micro_batch": 8, "recompute": "off"}


@functools.cache
def graph() -> Graph:
    return trace(*model(layers=4, vocab=256, hidden=64, heads=4, seq=64), compare=False)


def with_room(name: str, room: float) -> Cluster:
    found = Cluster.load(name, devices=2)
    memory = found.device.memory_bytes * room / found.device.room
    return replace(found, device=replace(found.device, memory_bytes=memory))


@pytest.mark.parametrize("name", ["dgx-a100", "local-cpu", "rtx4090-8"])
def test_layouts_give_way_to_memory(name: str) -> None:
    """Slower than the plan that does not fit, and the plan says why; with room enough nothing changes."""
    fastest = search(graph(), Cluster.load(name, devices=2), 8, PINS)
    short = with_room(name, fastest.cost.peak_bytes - 1)
    found = search(graph(), short, 8, PINS)
    assert found.cost.peak_bytes < fastest.cost.peak_bytes
    assert found.cost.step_seconds > fastest.cost.step_seconds
    assert any("layouts hold fewer bytes" in note for note in found.notes)
    enough = search(graph(), with_room(name, fastest.cost.peak_bytes + 1), 8, PINS)
    assert enough.decisions == fastest.decisions
    assert not any("layouts hold fewer bytes" in note for note in enough.notes)


def test_what_fits_at_no_price_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="no plan fits"):
        search(graph(), with_room("dgx-a100", 1e6), 8, PINS)
