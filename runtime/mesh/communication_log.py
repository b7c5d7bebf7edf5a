"""What a rank sent, by axis and phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from partitioner.lowering.traffic import Sending
from runtime.mesh.step_clock import Clock


@dataclass
class Log:
    """What a rank communicated, when ``keep`` is set. ``phase`` is what the step is doing now."""

    keep: bool = False
    phase: str = "control"
    rows: list[Sending] = field(default_factory=list)
    clock: Clock | None = None

    def add(self, axis: str, kind: str, tensor: torch.Tensor, phase: str | None = None) -> None:
        """Note one communication of ``tensor``."""
        if self.keep:
            self.rows.append(Sending(axis, kind, phase or self.phase, tensor.numel() * tensor.element_size()))

    def timed(self, part: str) -> AbstractContextManager[object]:
        """Count what runs inside as a part of the step, where a clock runs."""
        return self.clock.during(part) if self.clock else nullcontext()

    @property
    def forward(self) -> str:
        """The phase of a forward op: within a backward, activations are being recomputed."""
        return "recompute" if self.phase == "backward" else self.phase

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Set the phase for a while."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before
