"""A batch of another size, made of an example's own samples, so that ids, labels and masks stay valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from partitioner.graph import Graph, placeholders


def flat(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a batch by dotted names, those in nested dicts, lists and tuples too."""
    leaves, _ = pytree.tree_flatten_with_path(dict(batch))
    return {_dotted(path): leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def carriers(graph: Graph) -> set[str]:
    """The inputs that have a sample a row; the others are the same for every batch."""
    return {name for name, node in placeholders(graph.module.graph, "input").items() if node.name in graph.batch_layout}


def resample(batch: Mapping[str, Any], names: set[str], samples: int, seed: int = 0) -> dict[str, Any]:
    """``samples`` rows of the inputs ``names``: every row of the example before one comes twice, in a seeded order.

    ``names`` are dotted where the batch is nested, as it stays.
    """
    size = next((tensor.shape[0] for name, tensor in flat(batch).items() if name in names), 0)
    if not size:
        return dict(batch)
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(size, generator=generator) for _ in range(-(-samples // size))]
    rows = torch.cat(rounds)[:samples]

    def chosen(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf[rows] if _dotted(path) in names else leaf

    return pytree.tree_map_with_path(chosen, dict(batch))
