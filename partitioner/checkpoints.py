"""Activation checkpoints of a model, which change what is kept and no number, run as plain calls while it is traced."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction


@contextmanager
def plain_checkpoints() -> Generator[None]:
    """Inside, ``checkpoint(..., use_reentrant=True)`` calls its function, whose gradients are then captured.

    Its autograd.Function runs the function without gradient mode and once more in backward, which export doesn't see.
    """
    own = vars(CheckpointFunction).get("apply")
    CheckpointFunction.apply = staticmethod(_call)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        if own is None:
            del CheckpointFunction.apply
        else:
            CheckpointFunction.apply = own  # type: ignore[method-assign]


def _call(function: Callable[..., Any], preserve_random_state: bool, *args: Any) -> Any:
    """As in torch, nothing in it has a gradient if no argument has."""
    trains = any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
    with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
        return function(*args)
