"""How long anything may take before it counts as hung: far more than is expected of it."""

from __future__ import annotations

from dataclasses import dataclass

START_SECONDS = 300.0  # until all ranks have come together, their models traced
FIRST_SECONDS = 240.0  # beside what a step may take: memory is found, kernels are loaded
LEAST_STEP_SECONDS, STEP_FACTOR = 60.0, 5.0
STATE_BYTES_A_SECOND = 20e6  # of a checkpoint or of weights, at the least


@dataclass(frozen=True)
class Limits:
    """Seconds, for a run whose steps are predicted to take ``predicted_seconds``; ``patience`` multiplies them all."""

    predicted_seconds: float
    patience: float = 1.0

    @property
    def start(self) -> float:
        """Until all ranks have come together."""
        return START_SECONDS * self.patience

    @property
    def first_step(self) -> float:
        """Of the first step of a process."""
        return self.step + FIRST_SECONDS * self.patience

    @property
    def step(self) -> float:
        """Of any other, or what is done between two."""
        return max(STEP_FACTOR * self.predicted_seconds, LEAST_STEP_SECONDS) * self.patience

    def state(self, held_bytes: float) -> float:
        """Of reading or writing a rank's part of the state."""
        return (START_SECONDS + held_bytes / STATE_BYTES_A_SECOND) * self.patience
