"""Steps timed as the slowest rank sees them, all ranks starting each one together."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch.distributed as dist

from runtime.ranks.process_group import largest


def timed(step: Callable[[int], object], steps: int) -> list[float]:
    """Seconds of ``step(0)``, ``step(1)``, ... on the slowest rank, the same list on every rank."""
    return [_seconds(step, n) for n in range(steps)]


def _seconds(step: Callable[[int], object], n: int) -> float:
    if dist.is_initialized():
        dist.barrier()
    began = time.perf_counter()
    step(n)
    return largest(time.perf_counter() - began)
