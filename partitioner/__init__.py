"""The compiler: ``trace`` a model, ``search`` a plan for a cluster, ``lower`` both to a program."""

from partitioner.cluster import Cluster
from partitioner.graph.graph import Graph
from partitioner.lowering.lower import lower
from partitioner.lowering.program import Program
from partitioner.ops import collectives, own_ops
from partitioner.plan.plan import Plan
from partitioner.searching.search import search
from partitioner.tracing.trace import trace

_REGISTRARS = (collectives, own_ops)  # importing them registers the ops that graphs and programs hold

__all__ = ["Cluster", "Graph", "Plan", "Program", "lower", "search", "trace"]
