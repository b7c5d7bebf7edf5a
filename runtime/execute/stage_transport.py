"""Values between adjacent stages: sends that are not waited for, receives that are posted before they are needed.

    stage s on its rank    F: Stage.sends  -->     stage s + 1 on its rank
                           B:      <-- their gradients

A lane is what one rank sends to another in one phase; its messages arrive in the order in which the sender acts, so the
receiver posts them in that order, which the Action table tells it. Stages of one rank hand their values over directly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist

from partitioner.lowering.program import Program, Value
from partitioner.plan.derived_rows import PIPELINE
from partitioner.schedule.tables import KINDS, SENDING, Action, maker, reader
from partitioner.sharding.mesh_axes import PP
from runtime.mesh.axis import flat
from runtime.mesh.groups import Groups
from runtime.ranks.doing import waits

Tensors = list[torch.Tensor]
AHEAD = 1


@dataclass
class Lane:
    """What one rank sends this one in one phase: messages in the sender's order, named by their reader."""

    peer: int
    group: dist.ProcessGroup
    tag: int
    order: tuple[Action, ...]
    posted: int = 0


class Transport:
    """One pipeline rank's end of all lanes."""

    def __init__(self, program: Program, groups: Groups) -> None:
        self._program, self._groups = program, groups
        self._pp, self._here = program.mesh[PP], groups.coordinates[PP]
        ends = [(peer, kind) for peer in self._peers() for kind in SENDING]
        self._lanes = {end: lane for end in ends if (lane := self._lane(*end))}
        self._arrived: dict[Action, tuple[Tensors, list[dist.Work]]] = {}
        self._sent: deque[tuple[Tensors, list[dist.Work]]] = deque()

    def _peers(self) -> set[int]:
        """The ranks of the stages beside its own."""
        beside = [{a.rank, b.rank} for a, b in pairwise(self._program.stages)]
        return set[int]().union(*(ranks for ranks in beside if self._here in ranks)) - {self._here}

    def _lane(self, peer: int, kind: str) -> Lane | None:
        stages = self._program.stages
        waiting = (reader(a, len(stages)) for a in self._program.actions[peer] if a.kind == kind)
        order = tuple(a for a in waiting if a and stages[a.stage].rank == self._here)
        if not order:
            return None
        group, tag = self._groups.lane(peer, self._here, not KINDS[kind].is_forward)
        return Lane(peer, group, tag, order)

    def values(self, action: Action) -> tuple[Value, ...]:
        """What ``action`` receives: values before a forward, gradients before a backward."""
        if KINDS[action.kind].is_forward:
            return self._program.stages[action.stage].receives
        return tuple(v for v in self._program.stages[action.stage].sends if v.differentiable)

    def source(self, action: Action) -> int | None:
        """The pipeline rank whose action makes what ``action`` receives."""
        made = maker(action, len(self._program.stages))
        return None if made is None else self._program.stages[made.stage].rank

    def begin(self) -> None:
        """Before the first action of a step."""
        for lane in self._lanes.values():
            lane.posted = 0

    def expect(self, action: Action) -> None:
        """Post the receives of ``action``, behind those that its sender sends before."""
        source = self.source(action)
        lane = None if source is None else self._lanes.get((source, action.kind))
        if lane is None or not self.values(action) or action in self._arrived:
            return
        while lane.posted < len(lane.order):
            message = lane.order[lane.posted]
            lane.posted += 1
            self._arrived[message] = self.post(lane, message)
            if message == action:
                return

    def post(self, lane: Lane, message: Action) -> tuple[Tensors, list[dist.Work]]:
        """Start to receive a lane's next message."""
        rows = self.values(message)
        tensors = [torch.empty(v.shape, dtype=v.dtype, device=self._groups.device) for v in rows]
        return tensors, self._start(dist.irecv, tensors, lane.group, lane.peer, lane.tag)

    def _start(
        self, op: Callable[..., Any], tensors: Tensors, group: dist.ProcessGroup, peer: int, tag: int
    ) -> list[dist.Work]:
        """All tensors of a message at once, to or from a pipeline rank: NCCL takes a batch for one op of the group, but
        what is alone for one of a communicator of its own, which is not there yet."""
        number = peer if group.size() == self._pp else int(peer > self._here)  # in a lane's group: two in their order
        ops = [dist.P2POp(op, flat(tensor), group=group, tag=tag, group_peer=number) for tensor in tensors]
        return dist.batch_isend_irecv(ops) if ops else []

    @waits
    def receive(self, action: Action) -> Tensors:
        """What ``action`` needs, waited for."""
        self.expect(action)
        tensors, works = self._arrived.pop(action, ([], []))
        with self._groups.log.timed(PIPELINE):
            for work in works:
                work.wait()
        return tensors

    def send(self, action: Action, tensors: Tensors) -> None:
        """Hand what ``action`` made to the action that needs it."""
        waiting = reader(action, len(self._program.stages))
        if waiting is None:
            raise ValueError(f"no stage waits for what {action} made")
        target = self._program.stages[waiting.stage].rank
        if target == self._here:
            self._arrived[waiting] = (tensors, [])
            return
        group, tag = self._groups.lane(self._here, target, not KINDS[action.kind].is_forward)
        for tensor in tensors:
            self._groups.log.add(PP, "send", tensor, "send")
        self._sent.append((tensors, self._start(dist.isend, tensors, group, target, tag)))
        while self._sent and all(work.is_completed() for work in self._sent[0][1]):
            self._sent.popleft()

    @waits
    def finish(self) -> None:
        """After the last action of a step: wait until everything sent has left."""
        with self._groups.log.timed(PIPELINE):
            while self._sent:
                for work in self._sent.popleft()[1]:
                    work.wait()
