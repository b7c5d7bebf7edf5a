"""The runtime: executes what a Program says on torch.distributed; decides nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.train.engine import Engine
    from runtime.train.parallelize import parallelize

__all__ = ["Engine", "parallelize"]

_ROOMS = {"Engine": "train.engine", "parallelize": "train.parallelize"}  # imported when they are asked for


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    return found
