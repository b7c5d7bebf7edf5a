"""Ranks that build a module of other draws are told so before they train; others hold the same values."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from plans import spawn
from torch import nn

from partitioner.errors import InputError
from runtime import deferred_init, parallelize


def _built(rank: int) -> None:
    torch.manual_seed(0)

    def build() -> nn.Module:
        if rank:
            torch.rand(1)
        return Tiny()

    batch = {"tokens": torch.randint(16, (2, 4)), "labels": torch.randint(16, (2, 4))}
    with pytest.raises(InputError, match="rank 1 has drawn otherwise than rank 0 while it built the model"):
        parallelize(deferred_init(build), batch, global_batch=4, cluster="local-cpu", pins={"dp": 2, "zero": 0})
    engine = parallelize(deferred_init(Tiny), batch, global_batch=4, cluster="local-cpu", pins={"dp": 2, "zero": 0})
    found: list[object] = [None, None]
    dist.all_gather_object(found, {name: float(p.sum()) for name, p in engine.parameters.items()})
    assert found[0] == found[1]


class Tiny(nn.Module):
    """Enough to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.tokens(tokens)).flatten(0, 1), labels.flatten())


def test_ranks_that_drew_otherwise_are_told() -> None:
    spawn(_built, 2)
