"""The compiler: ``trace`` a model, ``search`` a plan for a cluster, ``lower`` both to a program."""

from partitioner import collectives, ops
from partitioner.cluster import Cluster
from partitioner.graph import Graph
from partitioner.lower import lower
from partitioner.plan import Plan
from partitioner.program import Program
from partitioner.search import search
from partitioner.trace import trace

_REGISTRARS = (collectives, ops)  # importing them registers the ops that graphs and programs hold

__all__ = ["Cluster", "Graph", "Plan", "Program", "lower", "search", "trace"]
