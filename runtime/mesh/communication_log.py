"""What a rank sent, by axis and phase."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch

from partitioner.lowering.sent_by_call import Sending
from runtime.mesh.step_clock import Clock

Phase = Literal["forward", "recompute", "backward", "send", "state", "sync", "control", "start"]  # of a step, or before


@dataclass
class Log:
    """What a rank communicated, when ``keep`` is set."""

    keep: bool = False
    rows: list[Sending] = field(default_factory=list)
    clock: Clock | None = None

    def add(self, axis: str, kind: str, tensor: torch.Tensor, phase: Phase) -> None:
        """Note one communication of ``tensor``."""
        if self.keep:
            self.rows.append(Sending(axis, kind, phase, tensor.numel() * tensor.element_size()))

    def timed(self, part: str) -> AbstractContextManager[object]:
        """Count what runs inside as a part of the step, where a clock runs."""
        return self.clock.during(part) if self.clock else nullcontext()

    def around(self, name: str, kind: str) -> AbstractContextManager[object]:
        """Note when what runs inside did, where a clock is followed."""
        return self.clock.around(name, kind) if self.clock else nullcontext()
