"""Which inputs of the batch a value is made of, and what says so where samples can't be told apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from partitioner.errors import InputError


class UnlikeBatches(InputError):
    """Two traces at two batch sizes are not the same ops; ``read``: what inputs the first unlike ones are made of."""

    def __init__(self, words: str, read: frozenset[str]) -> None:
        super().__init__(words)
        self.read = read


@dataclass(frozen=True)
class Mixed:
    """The first op that mixes samples, in words; ``read``: what inputs it takes rows of, as is done with tables."""

    words: str
    read: frozenset[str]


def inputs_of(nodes: Iterable[fx.Node]) -> frozenset[str]:
    """The names of the inputs that ``nodes`` are made of."""
    found, stack = set[fx.Node](), list(nodes)
    while stack:
        if (node := stack.pop()) not in found:
            found.add(node)
            stack += node.all_input_nodes
    return frozenset(n.meta["source"] for n in found if n.op == "placeholder" and n.meta["kind"] == "input")
