"""Steps timed as the slowest rank sees them, all ranks starting each one together."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist


def timed(step: Callable[[int], object], steps: int) -> list[float]:
    """Seconds of ``step(0)``, ``step(1)``, ... on the slowest rank, the same list on every rank."""
    return [_seconds(step, n) for n in range(steps)]


def _seconds(step: Callable[[int], object], n: int) -> float:
    if dist.is_initialized():
        dist.barrier()
    began = time.perf_counter()
    step(n)
    return largest(time.perf_counter() - began)


def largest(value: float) -> float:
    """The largest of all ranks' values."""
    if not dist.is_initialized():
        return value
    every = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(every, dist.ReduceOp.MAX)
    return float(every)


def leave() -> None:
    """Wait for all ranks, then leave the process group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is rank 0 of all."""
    return not dist.is_initialized() or dist.get_rank() == 0
