"""Which weights every framework divides over tensor parallel ranks, told by their shapes."""

from __future__ import annotations

from partitioner import Graph
from partitioner.plan.name_patterns import by_pattern


def divided_weights(graph: Graph) -> dict[str, str]:
    """Pins by parameter pattern: of matrices in blocks that a dimension is divided, of the tables of the vocabulary,
    which are the longest outside blocks, that their rows are."""
    inside, outside = set[str](), set[str]()
    for unit, nodes in graph.trained.items():
        (inside if unit.is_block else outside).update(str(node.meta["source"]) for node in nodes)
    shapes = {source: info.shape for source, info in graph.parameters.items()}
    longest = max((shapes[source][0] for source in outside if len(shapes[source]) == 2), default=0)
    words: dict[str, str] = {}
    for source, info in graph.parameters.items():
        is_table = source in outside and len(info.shape) == 2 and info.shape[0] == longest
        word = "shard:0" if is_table else "shard" if source in inside - outside and len(info.shape) > 1 else ""
        words |= dict.fromkeys(info.names, word)
    return {pattern: word for pattern, word in by_pattern(words).items() if word}
