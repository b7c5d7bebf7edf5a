"""The runtime: executes what a Program says on torch.distributed; decides nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.state.deferred_init import deferred_init
    from runtime.state.parameter_groups import parameter_groups
    from runtime.train.engine import Engine
    from runtime.train.parallelize import parallelize

__all__ = ["Engine", "deferred_init", "parallelize", "parameter_groups"]

_ROOMS = {  # imported when they are asked for
    "Engine": "train.engine", "deferred_init": "state.deferred_init", "parallelize": "train.parallelize",
    "parameter_groups": "state.parameter_groups",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    return found
