"""Blocks that mix the first value into their own, or add a skip to every second, train as the eager module does."""

from __future__ import annotations

import torch
from eager import PINS, Batch, check
from torch import nn
from torch.nn import functional as F

WIDTH, CLASSES, DEPTH = 8, 16, 4


class Mixing(nn.Module):
    """Each block reads its own places of ``scales``: of what came before it, and of the embedding."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
            for _ in range(DEPTH)
        )
        self.scales, self.every = nn.Parameter(torch.ones(DEPTH, 2)), every

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = h = self.embed(x)
        for n, block in enumerate(self.blocks):
            if n % self.every == self.every - 1:
                h = self.scales[n, 0] * h + self.scales[n, 1] * first
            h = h + block(h)
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


def _tokens(samples: int) -> Batch:
    ids = torch.randint(CLASSES, (samples, 6), generator=torch.Generator().manual_seed(3))
    return {"x": ids, "y": ids.roll(-1, 1)}


def every_block(samples: int) -> tuple[nn.Module, Batch]:
    return Mixing(1), _tokens(samples)


def every_second_block(samples: int) -> tuple[nn.Module, Batch]:
    return Mixing(2), _tokens(samples)


def test_places_of_a_vector_and_skips_under_every_plan() -> None:
    check({f.__name__: f for f in (every_block, every_second_block)}, PINS)
