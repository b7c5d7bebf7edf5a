"""What is told of a step: what rank 0 measured, and what the plan makes of it.

An event is a dictionary whose first key says what it is of. In it what is no number is None.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping
from typing import Any

import torch

from partitioner import Plan
from runtime.state.learning_rates import step_rate
from runtime.train.engine import Engine
from tools.figures import figures

Event = dict[str, Any]
Tell = Callable[[Event], object]
STEP, VALIDATION = "step", "validation_loss"


def measured(
    trainer: Engine, loss: float, grad_norm: float | None, seconds: float, parts: Mapping[str, float]
) -> Event:
    """The step that ``trainer`` has just done. ``parts``: seconds by the clock; what is left of the step is compute."""
    return {
        STEP: trainer.steps_done, "loss": finite(loss), "seconds": seconds, "skipped": trainer.skipped,
        "learning_rate": step_rate(trainer.optimizer), "grad_norm": finite(grad_norm), "samples": trainer.samples_read,
        "peak_bytes": peak_bytes(), "parts": {"compute": seconds - sum(parts.values()), **parts},
    }  # fmt: skip


def beside_plan(event: Event, plan: Plan) -> Event:
    """A step's event with its rate and MFU, as ``compare`` reckons them, and the seconds that were predicted."""
    took, model = event["seconds"], plan.model
    return event | {
        f"{figures.unit(model)}_per_second": figures.rate_of(model, plan.global_batch, took),
        "mfu": figures.mfu_of(model, plan.cluster, plan.world, plan.cost.flops, took),
        "predicted_seconds": plan.cost.step_seconds,
    }


def finite(value: float | None) -> float | None:
    """The value, None where it is no number or has no end."""
    return value if value is not None and math.isfinite(value) else None


def peak_bytes() -> int:
    """The most memory that this process held so far: of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
