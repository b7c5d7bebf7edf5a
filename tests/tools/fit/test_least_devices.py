"""Which numbers of devices are tried: doubled until one fits, halved down to the next below."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import cast

import pytest

from partitioner import Plan
from tools.fit.least_devices import counts, least
from tools.fit.trials import Trial


class _Made:
    """A plan, as far as it is looked at."""

    def __init__(self, peak_bytes: float) -> None:
        self.cost, self.peak_bytes = self, peak_bytes


def made(devices: int, peak: float, room: float = 100.0, reason: str = "") -> Trial:
    plan = cast(Plan, _Made(peak))
    return Trial(
        devices=devices, global_batch=devices, room=room, state_bytes=0.0, tightest=None if reason else plan,
        comfortable=plan if peak <= room and not reason else None, reason=reason,
    )  # fmt: skip


def divided(whole: float) -> Callable[[int], Trial]:
    """Bytes that all devices share."""
    return lambda devices: made(devices, whole / devices)


def found(trials: list[Trial]) -> tuple[list[int], int | None]:
    return [row.devices for row in trials], next((row.devices for row in trials if row.fits), None)


def test_powers_of_two_in_a_node_then_doubled_nodes() -> None:
    assert list(islice(counts(8), 6)) == [1, 2, 4, 8, 16, 32]
    assert list(islice(counts(6), 5)) == [1, 2, 4, 6, 12]
    assert list(islice(counts(1), 3)) == [1, 2, 4]


@pytest.mark.parametrize("whole", [50, 150, 800, 801, 1601, 5000, 7300, 12345])
def test_the_number_below_the_least_was_tried_and_is_too_few(whole: float) -> None:
    tried, first = found(least(divided(whole), node=8))
    assert first is not None
    below = {1: [], 2: [1], 4: [2], 8: [4]}.get(first, [first - 8])
    assert set(below) <= set(tried)
    every = [n for n in (1, 2, 4, *range(8, 400, 8)) if whole / n <= 100]
    assert first == every[0]
    assert tried == sorted(tried)


def test_only_more_devices_are_tried_than_were_asked_for() -> None:
    tried, first = found(least(divided(5000), node=8, above=24))
    assert (tried, first) == ([32, 48, 56, 64], 56)
    assert found(least(divided(250), node=8, above=2)) == ([4], 4)
    assert found(least(divided(3100), node=8, above=24)) == ([32], 32)


def test_more_are_tried_up_to_as_many_as_asked() -> None:
    assert found(least(divided(150), node=8, up_to=32)) == ([1, 2, 4, 8, 16, 32], 2)


def test_what_gets_no_smaller_is_given_up() -> None:
    tried, first = found(least(lambda devices: made(devices, 300.0), node=8))
    assert (tried, first) == ([1, 2, 4], None)
    slow = found(least(lambda devices: made(devices, 300.0 if devices < 4 else 90.0), node=8))
    assert slow == ([1, 2, 4], 4)


def test_numbers_that_no_mesh_has_are_passed_over() -> None:
    def trial(devices: int) -> Trial:
        return made(devices, 3000 / devices, reason="" if devices % 16 == 0 else "no mesh")

    tried, first = found(least(trial, node=8))
    assert first == 32
    assert 24 in tried
