"""The compiler: ``trace`` a model, ``search`` a plan for a cluster, ``lower`` both to a program."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from partitioner.cluster import Cluster
    from partitioner.graph.graph import Graph
    from partitioner.lowering.lower import lower
    from partitioner.lowering.program import Program
    from partitioner.plan.plan import Plan
    from partitioner.searching.search import search
    from partitioner.tracing.trace import trace

__all__ = ["Cluster", "Graph", "Plan", "Program", "lower", "search", "trace"]
__version__ = "0.1.0"

_ROOMS = {  # where each name is; imported when it is asked for, since torch and solvers take seconds
    "Cluster": "cluster", "Graph": "graph.graph", "Plan": "plan.plan", "Program": "lowering.program",
    "lower": "lowering.lower", "search": "searching.search", "trace": "tracing.trace",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    return found
