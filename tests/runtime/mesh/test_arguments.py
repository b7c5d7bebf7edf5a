"""Arguments that change an op's equation, under every plan, against the eager module."""

from __future__ import annotations

import torch
from eager import PINS, Batch, Make, check
from torch import nn
from torch.nn import functional as F

VOCAB, WIDTH, SEQ = 16, 8, 6


class Mixer(nn.Module):
    """Convolutions in groups, a shift by padding and a norm of groups over tokens, scaled by places of one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2)
        self.each = nn.Conv1d(WIDTH, WIDTH, 1, groups=WIDTH)
        self.norm, self.up, self.down = nn.GroupNorm(4, WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.norm(self.each(self.grouped(x.transpose(1, 2)))).transpose(1, 2)
        shifted = F.pad(mixed, (0, 0, 1, -1))
        return x + self.down(F.gelu(self.up(shifted), approximate="tanh"))


class Stack(nn.Module):
    """Blocks scaled each by its own place of one parameter; the last token that is largest is classified."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH, padding_idx=3), nn.Linear(WIDTH, classes)
        self.blocks, self.scales = nn.ModuleList(Mixer() for _ in range(4)), nn.Parameter(torch.ones(4, 2))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = h = self.embed(x)
        for n, block in enumerate(self.blocks):
            h = block(self.scales[n, 0] * h + self.scales[n, 1] * first)
        return F.cross_entropy(self.head(h[torch.arange(x.shape[0]), x.argmax(-1)]), y)


def arguments(samples: int) -> tuple[nn.Module, Batch]:
    return Stack(6), {"x": torch.randint(VOCAB, (samples, SEQ)), "y": torch.randint(6, (samples,))}


CASES: dict[str, Make] = {"arguments": arguments}


def test_arguments_under_every_plan() -> None:
    check(CASES, PINS)
