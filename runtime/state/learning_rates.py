"""Learning rates: read, set, and made to follow factors by step.

    rate of a group = initial rate x factor of the step          initial rate = base rate x the group's own factor
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from partitioner.errors import InputError

LrLambda = Callable[[int], float]  # the factor of a step, as of torch's LambdaLR


class LearningRates:
    """Those of an optimizer, which follow ``factors``; where that is None, whoever holds the optimizer sets them."""

    def __init__(self, optimizer: torch.optim.Optimizer, factors: LrLambda | None) -> None:
        self._factors = factors
        self.start(optimizer)

    def start(self, optimizer: torch.optim.Optimizer, lr: float | None = None) -> None:
        """From what the optimizer says, or from ``lr``, which factors multiply."""
        if lr is not None:
            _set(optimizer, lr)
        if self._factors is not None:
            _keep_initial(optimizer)
        self._set_last = rates(optimizer)

    def follow(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the rates of a step; raises InputError when someone else has set them since the last."""
        if self._factors is None:
            return
        if rates(optimizer) != self._set_last:
            raise InputError(
                f"step {step}: the optimizer's learning rate was changed, by a scheduler or by hand, and "
                "the engine's lr_lambda sets it too: leave out lr_lambda, or the other"
            )
        _scale(optimizer, self._factors(step))
        self._set_last = rates(optimizer)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of each group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """What groups multiply by their own factors, as it was before those of a step."""
    group = _plain_group(optimizer)
    return float(group.get("initial_lr", group["lr"]))


def step_rate(optimizer: torch.optim.Optimizer) -> float:
    """What groups multiplied by their own factors in the last step."""
    return float(_plain_group(optimizer)["lr"])


def _plain_group(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """One without a factor of its own, where there is one."""
    plain = (group for group in optimizer.param_groups if group.get("lr_factor", 1.0) == 1.0)
    return next(plain, optimizer.param_groups[0])


def _set(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let ``lr`` be every group's learning rate, times its own factor (``parameter_groups``), and what the factors of
    the engine start from."""
    for group in optimizer.param_groups:
        group.pop("initial_lr", None)
        group["lr"] = lr * group.get("lr_factor", 1.0)


def _keep_initial(optimizer: torch.optim.Optimizer) -> None:
    """Note in each group, where torch's schedulers do, the rate that factors multiply."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))


def _scale(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Let each group's learning rate be ``factor`` times its initial one."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], torch.Tensor) else rate


def warmup_cosine(warmup_steps: int, steps: int, floor: float = 0.0) -> LrLambda:
    """Linear from 0 over ``warmup_steps``, then a half cosine to ``floor`` at ``steps`` (Loshchilov, Hutter, 2017)."""
    if not 0 <= warmup_steps < steps:
        raise InputError(f"the learning rate warms up for {warmup_steps} of {steps} steps: warm up for fewer than all")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))

    return factor
