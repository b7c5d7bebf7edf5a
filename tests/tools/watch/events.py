"""An event of a step, as rank 0 tells it."""

from __future__ import annotations

from typing import Any


def step(number: int, **other: Any) -> dict[str, Any]:
    """Half a second, a third of it waiting."""
    found = {
        "step": number, "loss": 5.25, "seconds": 0.5, "skipped": 0, "learning_rate": 1e-3, "grad_norm": 1.5,
        "samples": 16 * number, "peak_bytes": 1000, "parts": {"compute": 0.25, "pipeline": 0.25},
    }  # fmt: skip
    return found | other
