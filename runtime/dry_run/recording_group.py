"""A process group that sends nothing: it checks what it is asked for, and writes it on its world's tape.

    rank 3 of 64, alone in its process      all_reduce, wait, irecv, irecv, wait, isend, ...

Tensors may lie on meta. A world of such groups has any size, and one rank.
"""

# torch's stubs list overloads for tensors and lists of them: a group is asked with lists.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from partitioner.errors import InputError
from partitioner.lowering.sent_by_call import Sending
from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER
from partitioner.schedule.tables import Action
from partitioner.sharding.mesh_axes import PP
from runtime.mesh.communication_log import Log
from runtime.mesh.make_groups import Cells

NAME = "tape"
Message = tuple[Action, str]  # its reader, and the value's name


class Op(NamedTuple):
    """One communication as its rank asks for it.

    ``logged`` is the kind in the rank's own log (gloo's reduce_scatter is an all_to_all). ``ranks`` are its group's,
    the ``number``-th group of these; ``peer`` is the other rank of a send or receive, else -1. ``action`` is what the
    rank runs meanwhile; ``message`` what is sent: its reader and its name.
    """

    kind: str
    logged: str
    axis: str
    ranks: tuple[int, ...]
    number: int
    peer: int
    tag: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    reduction: str
    phase: str
    action: Action | None
    message: Message | None


class Passage(NamedTuple):
    """A part of a tape: its collectives, and its entries counted from the first of them."""

    ops: tuple[Op, ...]
    entries: tuple[int, ...]


@dataclass
class Tape:
    """What one rank asked for: ``entries`` in order, i where ``ops[i]`` was started and ~i where it was waited for.

    ``buffers``: whether what is sent leaves at once, as it does where the receiver waits already. ``log`` is the rank's
    own: each op but a receive must stand there, with its payload. ``now`` tells what it runs, ``messages`` what is
    sent or received next.
    """

    log: Log = field(default_factory=Log)
    buffers: bool = False
    now: Callable[[], Action | None] = lambda: None
    messages: deque[Message] = field(default_factory=deque)
    ops: list[Op] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    made: Counter[tuple[int, ...]] = field(default_factory=Counter)
    logged: int = 0

    def start(
        self, group: TapeGroup, kind: str, x: torch.Tensor, size: int, *, peer: int = -1, tag: int = 0,
        reduction: str = "", message: Message | None = None,
    ) -> _Recorded:  # fmt: skip
        """Note an op whose payload has ``size`` bytes."""
        axis, logged, phase, _ = self._row(kind, size)
        op = Op(
            kind=kind, logged=logged, axis=axis, ranks=group.ranks, number=group.number, peer=peer, tag=tag,
            shape=tuple(x.shape), dtype=x.dtype, bytes=size, reduction=reduction, phase=phase, action=self.now(),
            message=message,
        )  # fmt: skip
        self.ops.append(op)
        self.entries.append(len(self.ops) - 1)
        return _Recorded(self, len(self.ops) - 1)

    def _row(self, kind: str, size: int) -> Sending:
        """The log's first row that was of no op, which must be of this one."""
        rows = self.log.rows
        if kind == "recv":
            return Sending(PP, "recv", "send", size)
        if len(rows) == self.logged or rows[self.logged].bytes != size:
            raise ValueError(f"{kind} of {size} bytes is sent, its log holds {rows[self.logged :] or 'nothing'}")
        self.logged += 1
        return rows[self.logged - 1]

    def collectives_since(self, entry: int) -> Passage:
        """The collectives started behind that entry, gradient sync left out."""
        passed = self.entries[entry:]
        chosen = [e for e in passed if e >= 0 and self.ops[e].peer < 0 and self.ops[e].phase != "sync"]
        new = {e: n for n, e in enumerate(chosen)}
        entries = [new[e] if e >= 0 else ~new[~e] for e in passed if max(e, ~e) in new]
        return Passage(tuple(self.ops[e]._replace(action=None) for e in chosen), tuple(entries))

    def replay(self, passage: Passage) -> None:
        """The passage once more, now."""
        first, action = len(self.ops), self.now()
        self.ops += [op._replace(action=action) for op in passage.ops]
        self.entries += [first + e if e >= 0 else e - first for e in passage.entries]
        self.log.rows += [Sending(op.axis, op.logged, op.phase, op.bytes) for op in passage.ops]
        self.logged += len(passage.ops)


class _Recorded:
    """A handle that is complete at once, or never before it is waited for."""

    def __init__(self, tape: Tape, op: int) -> None:
        self._tape, self._op = tape, op

    def wait(self, timeout: object = None) -> bool:
        """Note that the rank waits here."""
        self._tape.entries.append(~self._op)
        return True

    def is_completed(self) -> bool:
        """A send may take as long as it likes, unless the tape buffers."""
        return self._tape.buffers


class TapeGroup(dist.ProcessGroup):
    """``ranks`` are global; all groups of a process write on the tape of the first."""

    def __init__(self, rank: int, ranks: tuple[int, ...]) -> None:
        super().__init__(rank, len(ranks))  # pyright: ignore[reportCallIssue]
        self.ranks, self._name = ranks, ""
        world = dist.group.WORLD if dist.is_initialized() else None
        self.tape: Tape = world.tape if isinstance(world, TapeGroup) else Tape()
        self.number = self.tape.made[ranks]
        self.tape.made[ranks] += 1

    def setGroupName(self, name: str) -> None:
        """By which torch's registry knows it."""
        self._name = name

    def getGroupName(self) -> str:
        """As it was set."""
        return self._name

    def getBackendName(self) -> str:
        """The name that ``dist.init_process_group`` knows."""
        return NAME

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> _Recorded:
        """In place."""
        (x,) = tensors
        word = "" if opts is None else str(opts.reduceOp.op).rpartition(".")[2]
        return self.tape.start(self, ALL_REDUCE, _dense(x), _bytes(x), reduction=word)

    def all_gather_single(self, output: torch.Tensor, x: torch.Tensor, opts: Any = None) -> _Recorded:
        """All ranks' parts, one behind the other."""
        self._fits(output, x, ALL_GATHER)
        return self.tape.start(self, ALL_GATHER, _dense(x), _bytes(_dense(output)))

    def reduce_scatter_single(self, output: torch.Tensor, x: torch.Tensor, opts: Any = None) -> _Recorded:
        """This rank's part of the sum."""
        self._fits(x, output, REDUCE_SCATTER)
        return self.tape.start(self, REDUCE_SCATTER, _dense(x), _bytes(_dense(output)) * len(self.ranks))

    def all_to_all_single(
        self, output: torch.Tensor, x: torch.Tensor, received: list[int], sent: list[int], opts: Any = None
    ) -> _Recorded:
        """Equal parts from and to every rank."""
        if output.shape != x.shape or output.dtype != x.dtype or received or sent or x.shape[0] % len(self.ranks):
            raise ValueError(f"{ALL_TO_ALL} of {_words(x)} into {_words(output)} on {len(self.ranks)} ranks")
        return self.tape.start(self, ALL_TO_ALL, _dense(x), _bytes(_dense(output)))

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> _Recorded:
        """To a rank of the group."""
        (x,) = tensors
        return self._pass("send", x, peer, tag)

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> _Recorded:
        """From a rank of the group."""
        (x,) = tensors
        return self._pass("recv", x, peer, tag)

    def _pass(self, kind: str, x: torch.Tensor, peer: int, tag: int) -> _Recorded:
        message = self.tape.messages.popleft() if self.tape.messages else None
        return self.tape.start(self, kind, _dense(x), _bytes(x), peer=self.ranks[peer], tag=tag, message=message)

    def _fits(self, whole: torch.Tensor, part: torch.Tensor, kind: str) -> None:
        if whole.numel() != part.numel() * len(self.ranks) or whole.dtype != part.dtype:
            raise ValueError(f"{kind} between {_words(part)} and {_words(whole)} on {len(self.ranks)} ranks")


for _old, _method in {  # torch 2.13 renamed these
    "_allgather_base": TapeGroup.all_gather_single,
    "_reduce_scatter_base": TapeGroup.reduce_scatter_single,
    "alltoall_base": TapeGroup.all_to_all_single,
}.items():
    setattr(TapeGroup, _old, _method)

def _dense(x: torch.Tensor) -> torch.Tensor:
    if not x.is_contiguous():
        raise ValueError(f"{_words(x)} is sent, and is not contiguous")
    return x


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _words(x: torch.Tensor) -> str:
    return f"{tuple(x.shape)} of {str(x.dtype).removeprefix('torch.')}"


def _make(options: Any, _: object) -> TapeGroup:
    return TapeGroup(options.group_rank, tuple(options.global_ranks_in_group) or tuple(range(options.group_size)))


dist.Backend.register_backend(NAME, _make, extended_api=True, devices=["cpu", "cuda"])


def own_group(cells: Cells) -> dist.ProcessGroup | None:
    """Of groups that have no rank in common, this rank's: the others are other tapes'."""
    own = next((ranks for ranks in cells if dist.get_rank() in ranks), None)
    made = None if own is None else dist.new_group(list(own))
    return made if isinstance(made, dist.ProcessGroup) else None


@contextmanager
def world_of(rank: int, ranks: int) -> Generator[Tape]:
    """This process is rank ``rank`` of ``ranks``, and speaks to a tape; a world of 1 has no process group."""
    if dist.is_initialized():
        raise InputError("a dry run plays all ranks in one process: run it outside torchrun and srun")
    if ranks == 1:
        yield Tape()
        return
    dist.init_process_group(NAME, rank=rank, world_size=ranks, store=HashStore())
    try:
        world = dist.group.WORLD
        assert isinstance(world, TapeGroup)
        yield world.tape
    finally:
        dist.destroy_process_group()
