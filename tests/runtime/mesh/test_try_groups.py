"""A slow link and a rank on another node than the plan takes it to be on are told of before the first step."""

from __future__ import annotations

import socket

import plans
import pytest

from runtime.mesh import try_groups
from runtime.mesh.groups import Groups
from runtime.mesh.try_groups import Tried, misplaced, slow_groups


def test_a_group_far_slower_than_its_like_is_named() -> None:
    rows = [Tried("tp", (2 * n, 2 * n + 1), 0.01) for n in range(4)] + [Tried("dp", (0, 2, 4, 6), 0.3)]
    assert list(slow_groups(rows)) == []
    rows[2] = Tried("tp", (4, 5), 0.5)
    wanted = "the tp group of ranks 4, 5 takes 500 ms for 4 MB, its like 10 ms: look at the links between them"
    assert list(slow_groups(rows)) == [wanted]
    fast = [Tried("tp", (2 * n, 2 * n + 1), 1e-4) for n in range(4)]
    assert list(slow_groups([*fast, Tried("tp", (8, 9), 0.01)])) == [], "noise of a machine"


def _try(rank: int) -> None:
    groups, told = Groups(plans.program(tp=2, dp=2)), list[str]()
    assert [axis for axis, _ in groups.every()] == ["dp", "tp"]
    tried = list[Tried]()
    inner = try_groups._tried  # pyright: ignore[reportPrivateUsage]

    def noted(axis: str, group: object, *given: object) -> Tried:
        found = inner(axis, group, *given)  # type: ignore[arg-type]
        tried.append(Tried(found.axis, found.ranks, 9.0 if found.ranks == (2, 3) else 1.0))
        return tried[-1]

    try_groups._tried = noted  # type: ignore[assignment]
    try_groups.SLOW = 1.5
    try_groups.try_groups(groups, 60.0, told.append)
    assert [row.axis for row in tried] == ["dp", "tp"]
    assert len(told) == 1
    assert told[0].startswith("the tp group of ranks 2, 3 takes 9e+03 ms for 4 MB, its like 5e+03 ms: look")


def test_every_group_is_tried() -> None:
    plans.spawn(_try, 4)


def test_ranks_that_the_plan_takes_to_be_together(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, told = ["a", "b", "a", "b"], list[str]()
    monkeypatch.setattr(try_groups, "everywhere", lambda own: [own] if own == socket.gethostname() else [])
    misplaced(2, told.append)
    assert told == []
    monkeypatch.setattr(try_groups, "everywhere", lambda _: hosts)
    misplaced(2, told.append)
    assert told[0].startswith("ranks 0 to 1 are one node of the plan and run on a, b: start 2 ranks on each node")
    assert len(told) == 2
    hosts.sort()
    misplaced(2, told.append)
    assert len(told) == 2
