"""A batch of another size, made of an example's own samples, so that ids, labels and masks stay valid."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from partitioner.user_code.batches import flat


def resample(batch: Mapping[str, Any], names: Collection[str], samples: int, seed: int = 0) -> dict[str, Any]:
    """``samples`` rows of the inputs ``names``: every row of the example before one comes twice, in a seeded order.

    ``names`` are dotted where the batch is nested, as it stays.
    """
    found = flat(batch)
    size = next((tensor.shape[0] for name, tensor in found.tensors.items() if name in names), 0)
    if not size:
        return dict(batch)
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(size, generator=generator) for _ in range(-(-samples // size))]
    rows = torch.cat(rounds)[:samples]
    return found.together({n: t[rows] if n in names else t for n, t in found.tensors.items()})
