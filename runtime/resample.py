"""A batch of another size, made of an example's own samples, so that ids, labels and masks stay valid."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from partitioner.graph import Graph, placeholders


def carriers(graph: Graph) -> set[str]:
    """The inputs that have a sample a row; the others are the same for every batch."""
    return {name for name, node in placeholders(graph.module.graph, "input").items() if node.name in graph.batch_layout}


def resample(
    batch: Mapping[str, torch.Tensor], names: set[str], samples: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """``samples`` rows of the inputs ``names``: every row of the example before one comes twice, in a seeded order."""
    size = next((tensor.shape[0] for name, tensor in batch.items() if name in names), 0)
    if not size:
        return dict(batch)
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(size, generator=generator) for _ in range(-(-samples // size))]
    rows = torch.cat(rounds)[:samples]
    return {name: tensor[rows] if name in names else tensor for name, tensor in batch.items()}
