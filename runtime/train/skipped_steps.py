"""Steps that update nothing, for their loss or gradients are no numbers: counted where they may be, else an error."""

from __future__ import annotations

from partitioner.errors import InputError

MOST = 30  # in a row


class SkippedSteps:
    """``many`` since the run began; ``may``: whether any is skipped."""

    def __init__(self, may: bool) -> None:
        self.may, self.many = may, 0
        self._in_a_row = 0

    def skip(self, step: int, why: str) -> None:
        """Count one; raises InputError where none may be skipped, or too many are in a row."""
        if not self.may:
            raise InputError(f"step {step}: {why}")
        self.many, self._in_a_row = self.many + 1, self._in_a_row + 1
        if self._in_a_row > MOST:
            raise InputError(f"step {step}: {why}, and {MOST} steps before it were skipped in a row")

    def taken(self) -> None:
        """A step has updated the parameters."""
        self._in_a_row = 0
