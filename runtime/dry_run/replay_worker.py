"""A worker on meta that executes the first and the last micro-batch and plays those between from the first one's tape.

    0F0 executed, learned      0F1 received, played, sent      ...      0F7 executed, must be what was learned

Without values an op's result follows from the shapes of its operands, and all micro-batches of a step have the same:
what is left out would do the same once more. The last is executed, for gradients then add up and are synced on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from partitioner.lowering.program import Program
from partitioner.schedule.tables import Action
from runtime.dry_run.recording_group import Passage, Tape
from runtime.dry_run.recording_transport import RecordingTransport
from runtime.execute.sharded_stages import ShardedStages
from runtime.execute.worker import Named, Stash, Worker
from runtime.mesh.groups import Groups


@dataclass(frozen=True)
class _Learned:
    """What one action of a stage does: its collectives, what it hands on (None: nothing), its loss."""

    passage: Passage
    sent: list[torch.Tensor] | None
    loss: torch.Tensor | None


class ReplayWorker(Worker):
    """Writes on ``tape``, and executes ``every`` micro-batch or as few as needed."""

    def __init__(
        self, program: Program, groups: Groups, parameters: Mapping[str, nn.Parameter],
        sharded: ShardedStages | None = None, *, tape: Tape, every: bool,
    ) -> None:  # fmt: skip
        super().__init__(program, groups, parameters, sharded)
        self._tape, self._known = tape, dict[tuple[int, str], _Learned]()
        self.transport = self._recorded = RecordingTransport(program, groups, tape)
        last = {action.micro_batch for action in self._last.values()}
        self._executed = set(range(program.micro_batches)) if every else {0, *last}

    def forward(self, action: Action, batch: Named) -> torch.Tensor | None:
        """Executed or replayed."""
        if action.micro_batch in self._executed:
            start = self._begin()
            loss = super().forward(action, batch)
            self._learn(action, start, loss)
        else:
            loss = self._replay(action)
            self._stash[action.stage, action.micro_batch] = Stash([], [], loss)
        return loss

    def backward(self, action: Action, batch: Named) -> None:
        """Executed or replayed."""
        if action.micro_batch in self._executed:
            start = self._begin()
            super().backward(action, batch)
            self._learn(action, start, None)
        else:
            self._stash.pop((action.stage, action.micro_batch))
            self._replay(action)

    def _begin(self) -> int:
        self._recorded.sent = None
        return len(self._tape.entries)

    def _learn(self, action: Action, start: int, loss: torch.Tensor | None) -> None:
        passage, sent = self._tape.collectives_since(start), self._recorded.sent
        found = _Learned(passage, sent, None if loss is None else loss.detach())
        known = self._known.setdefault((action.stage, action.kind), found)
        if known.passage != found.passage or _shapes(known.sent) != _shapes(found.sent):
            raise ValueError(f"{action} communicates otherwise than the same action of an earlier micro-batch")

    def _replay(self, action: Action) -> torch.Tensor | None:
        known = self._known[action.stage, action.kind]
        self.transport.receive(action)
        self._tape.replay(known.passage)
        if known.sent is not None:
            self.transport.send(action, [torch.empty_like(t) for t in known.sent])
        return known.loss


def _shapes(tensors: list[torch.Tensor] | None) -> list[tuple[torch.Size, torch.dtype]] | None:
    return None if tensors is None else [(t.shape, t.dtype) for t in tensors]
