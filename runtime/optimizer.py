"""Optimizers over a rank's parts of the parameters, and learning-rate schedules as factors of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from partitioner.errors import InputError

Factory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[int], float]

# Optimizers that update each element from its own gradient and state alone, so that a part is updated as the whole is.
ELEMENTWISE: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.AdamW,
    torch.optim.Adam,
    torch.optim.Adagrad,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)
FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)  # have one kernel that updates in place
FUSED_DEVICES = ("cpu", "cuda")


def factory(kind: type[torch.optim.Optimizer], **options: Any) -> Factory:
    """What makes an optimizer of this kind; raises InputError for one that needs a whole parameter at once.

    Where torch has a fused kernel it is taken, unless ``options`` say otherwise: it reads and writes the state once and
    makes no tensors of its own.
    """
    if kind not in ELEMENTWISE:
        known = ", ".join(k.__name__ for k in ELEMENTWISE)
        raise InputError(f"optimizer {kind.__name__} needs whole parameters, ranks hold parts: choose one of {known}")
    if kind not in FUSED or options.keys() & {"fused", "foreach"}:
        return partial(kind, **options)

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        rows = list(parameters)
        return kind(rows, **options, fused=all(p.device.type in FUSED_DEVICES for p in rows))  # type: ignore[call-arg]

    return make


def constant(step: int) -> float:
    """The learning rate as it was given."""
    return 1.0


def warmup_cosine(warmup_steps: int, steps: int, floor: float = 0.0) -> Schedule:
    """Linear from 0 over ``warmup_steps``, then a half cosine to ``floor`` at ``steps`` (Loshchilov, Hutter, 2017)."""
    if not 0 <= warmup_steps < steps:
        raise InputError(f"the schedule warms up for {warmup_steps} of {steps} steps: warm up for fewer than all")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))

    return factor
