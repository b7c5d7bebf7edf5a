"""Tapes of two ranks: what meets, what does not, and who is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from partitioner.errors import InputError
from runtime.dry_run.match_tapes import Problem, unmatched
from runtime.dry_run.recording_group import Tape, world_of
from runtime.mesh.communication_log import Log


def tape(rank: int, *asks: tuple[Any, ...]) -> Tape:
    """A rank of two that asks in order: ("send" | "recv" | "sum", elements), ("wait", of which)."""
    with world_of(rank, 2) as found:
        found.log = Log(keep=True)
        works: list[Any] = []
        for kind, number in asks:
            x = torch.empty(number, device="meta")
            if kind == "wait":
                works[number].wait()
            elif kind == "recv":
                works.append(dist.irecv(x, group_src=1 - rank))
            else:
                found.log.add("pp", kind, x, "send" if kind == "send" else "sync")
                works.append(
                    dist.isend(x, group_dst=1 - rank) if kind == "send" else dist.all_reduce(x, async_op=True)
                )
    return found


def problems(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> list[Problem]:
    return unmatched({0: tape(0, *first), 1: tape(1, *second)}, {0: 0, 1: 1})


def test_what_is_sent_is_received() -> None:
    assert problems([("send", 3), ("wait", 0)], [("recv", 3), ("wait", 0)]) == []


def test_nothing_is_buffered() -> None:
    both_send_first = [("send", 3), ("wait", 0), ("recv", 3), ("wait", 1)]
    found = problems(both_send_first, both_send_first)
    assert [p.rank for p in found] == [0, 1]
    assert all(p.words.startswith("deadlock: it waits in send to rank") for p in found)
    crossed = [("recv", 3), ("send", 3), ("wait", 0), ("wait", 1)]
    assert problems(crossed, crossed) == []


def test_shapes_and_order_must_agree() -> None:
    (problem,) = problems([("send", 3), ("send", 4)], [("recv", 4), ("recv", 4)])
    assert problem.rank == 0
    assert "(3,) of float32" in problem.words
    assert "meets recv from rank 0" in problem.words


def test_a_collective_needs_all_ranks() -> None:
    assert problems([("sum", 2), ("wait", 0)], [("sum", 2), ("wait", 0)]) == []
    (problem,) = problems([("sum", 2), ("wait", 0)], [])
    assert problem == Problem(0, problem.words)
    assert problem.words.endswith("for rank 1, which is done")


def test_what_is_never_waited_for_must_meet_too() -> None:
    tapes = {0: tape(0, ("send", 3)), 1: tape(1)}
    (problem,) = unmatched(tapes, {0: 0, 1: 1}, is_lazy=False)
    assert problem.words.startswith("1 communications never met, the first is send to rank 1")
    (problem,) = unmatched(tapes, {0: 0, 1: 1})  # its communicator is never made
    assert problem.words.startswith("deadlock: it waits in send to rank 1")


def test_ranks_that_are_alike_move_in_step() -> None:
    both = tape(0, ("sum", 2), ("wait", 0))
    assert unmatched({0: both}, {0: 0, 1: 0}) == []


def test_reductions_must_agree() -> None:
    first, second = (tape(rank, ("sum", 2), ("wait", 0)) for rank in (0, 1))
    second.ops = [op._replace(reduction="MAX") for op in second.ops]
    (problem,) = unmatched({0: first, 1: replace(second)}, {0: 0, 1: 1})
    assert "all_reduce MAX over pp" in problem.words


def test_a_tape_refuses_what_a_backend_would() -> None:
    with world_of(0, 2) as found:
        found.log = Log(keep=True)
        group = dist.group.WORLD
        x = torch.empty(4, 3, device="meta")
        with pytest.raises(ValueError, match="its log holds nothing"):
            dist.all_reduce(x)
        found.log.add("tp", "all_reduce", x.t(), "forward")
        with pytest.raises(ValueError, match="is not contiguous"):
            dist.all_reduce(x.t())
        for name in ("all_gather_single", "reduce_scatter_single"):
            with pytest.raises(ValueError, match="on 2 ranks"):
                getattr(group, name)(x, x)
        with pytest.raises(ValueError, match="all_to_all of"):
            group.all_to_all_single(x[:3], x[:3], [], [])  # type: ignore[union-attr]
        with pytest.raises(InputError, match="run it outside torchrun"), world_of(0, 2):
            pass
    assert not dist.is_initialized()
