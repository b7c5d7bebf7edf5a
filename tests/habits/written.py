"""Models for the command line, whose example has 2 samples: a sum by a number of Python, one that prints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from stack import Made, Stack, text
from torch import Tensor


class Summed(Stack):
    """The sum of losses by how many there are."""

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        logits = self.logits(tokens)
        total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        return total / labels[:, 1:].numel()


def summed(batch: int = 2, seq: int = 32) -> Made:
    torch.manual_seed(0)
    ids = text(batch, seq, 256)["tokens"]
    return Summed(256), {"tokens": ids, "labels": ids}


class Talkative(Stack):
    """Prints as it runs."""

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        print("forward of", len(self.blocks), "blocks")
        return super().forward(tokens, labels)


def talkative(batch: int = 2, seq: int = 16) -> Made:
    torch.manual_seed(0)
    module = Talkative(256)
    print("parameters:", sum(p.numel() for p in module.parameters()))
    ids = text(batch, seq, 256)["tokens"]
    return module, {"tokens": ids, "labels": ids}
