"""A clock counts parts, and tells when things were done only while it is followed."""

from __future__ import annotations

import torch

from runtime.mesh.communication_log import Log
from runtime.mesh.step_clock import PART, Clock, Slice


def test_parts_are_counted_and_what_holds_them_is_not() -> None:
    clock = Clock(torch.device("cpu"))
    clock.follow()
    log = Log(clock=clock)
    with log.around("0F0", "forward"):
        for _ in range(2):
            with log.timed("pipeline"):
                pass
    found = clock.read()
    assert found.keys() == {"pipeline"}
    inside, again, action = clock.slices
    assert (action.name, action.kind) == ("0F0", "forward")
    assert [own.kind for own in (inside, again)] == [PART, PART]
    assert 0 <= action.start <= inside.start <= inside.stop <= again.start <= again.stop <= action.stop
    assert found["pipeline"] == (inside.stop - inside.start) + (again.stop - again.start)
    assert clock.read() == {}


def test_nothing_is_kept_of_what_is_not_followed() -> None:
    clock = Clock(torch.device("cpu"))
    with clock.around("step 1", "step"), clock.during("sync"):
        pass
    assert clock.read().keys() == {"sync"}
    assert clock.slices == list[Slice]()
    with clock.during("sync"):
        pass
    clock.clear()
    assert clock.read() == {}
    clock.follow()
    clock.unfollow()
    with clock.during("sync"):
        pass
    clock.read()
    assert clock.slices == []


def test_without_a_clock_nothing_is_noted() -> None:
    with Log().around("0F0", "forward"), Log().timed("sync"):
        pass
