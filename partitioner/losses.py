"""What a graph's loss is about: how many targets a sample has, and how many classes they are of."""

from __future__ import annotations

from torch import fx

from partitioner.ops import own
from partitioner.shapes import shape_of


def targets_per_sample(graph: fx.Graph, batch: int) -> int:
    """Targets of the largest cross entropy, counted or ignored, in each of ``batch`` samples: a model's tokens.

    1 where nothing is classified.
    """
    rows = [shape_of(n)[0] // batch for n in _cross_entropies(graph)]
    return max([1, *rows])


def classes(graph: fx.Graph) -> int:
    """Between how many classes the loss chooses at the most; 0 where nothing is classified."""
    return max((shape_of(n.args[0])[1] for n in _cross_entropies(graph)), default=0)  # type: ignore[arg-type]


def _cross_entropies(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.target == own.cross_entropy.default]
