"""Why no answers can be derived from a graph with a cache."""

from __future__ import annotations

from torch import fx

from partitioner.errors import InputError
from partitioner.graph.dependence import module_of


class NotDerived(InputError):
    """A model whose answers can't be made position by position; names the op."""


def refused(node: fx.Node, why: str) -> NotDerived:
    """That ``node`` is why not."""
    what = node.target if node.op == "call_function" else f"{node.meta.get('kind')} {node.meta.get('source')}"
    return NotDerived(f"{what} in {module_of(node)} {why}: no cache can be derived; generate without one (--no-cache)")
