"""A transport that tells its tape which value each send and receive is, and remembers what was handed on."""

from __future__ import annotations

import torch
import torch.distributed as dist

from partitioner.lowering.program import Program
from partitioner.schedule.tables import Action, reader
from runtime.dry_run.recording_group import Tape
from runtime.execute.stage_transport import Lane, Tensors, Transport
from runtime.mesh.groups import Groups


class RecordingTransport(Transport):
    """``sent`` is what the last action handed on; None: nothing since it was set so."""

    def __init__(self, program: Program, groups: Groups, tape: Tape) -> None:
        super().__init__(program, groups)
        self._tape, self._stages = tape, len(program.stages)
        self.sent: Tensors | None = None

    def post(self, lane: Lane, message: Action) -> tuple[Tensors, list[dist.Work]]:
        """Named by the values of the message."""
        self._announce(message)
        return super().post(lane, message)

    def send(self, action: Action, tensors: list[torch.Tensor]) -> None:
        """Named by the values that the reader waits for."""
        self.sent = tensors
        if (waiting := reader(action, self._stages)) is not None:
            self._announce(waiting)
        super().send(action, tensors)
        self._tape.messages.clear()  # what stays on its rank is no message

    def _announce(self, message: Action) -> None:
        self._tape.messages.extend((message, value.name) for value in self.values(message))
