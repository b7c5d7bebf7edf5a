"""A dynamic loss scale: gradients of float16 times a power of two, so that small ones do not vanish.

    gradients finite      INTERVAL times in a row      the scale doubles
    one is not            the step is skipped          it halves; below LEAST nothing helps

The rule and the numbers are those of torch.amp.GradScaler; whether gradients are finite is seen in their global norm,
which is the same on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from partitioner.errors import InputError

START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
LEAST = 2.0**-14  # 30 steps skipped in a row from the start


@dataclass
class LossScale:
    """``value`` multiplies the loss; ``good``: steps since it last changed; ``skipped``: steps without an update."""

    value: float = START
    good: int = 0
    skipped: int = 0

    def unscale(self, gradients: Sequence[torch.Tensor]) -> None:
        """In place."""
        if gradients:
            torch.ops.aten._foreach_mul_.Scalar(list(gradients), 1.0 / self.value)

    def update(self, is_finite: bool) -> None:
        """After a step whose gradients were finite or not; raises InputError where no scale makes them so."""
        if not is_finite:
            if self.value <= LEAST:
                raise InputError(
                    f"gradients are not finite at a loss scale of {self.value:g}, after {self.skipped} skipped steps: "
                    "plan with precision bf16, or look in float32 for what is not"
                )
            self.value, self.good, self.skipped = self.value * BACKOFF, 0, self.skipped + 1
            return
        self.good += 1
        if self.good == INTERVAL:
            self.value, self.good = self.value * GROWTH, 0
