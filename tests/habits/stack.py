"""One tiny pre-norm decoder that every case changes in one place, and its batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, VOCAB, SEQ, HEADS, BLOCKS = 32, 64, 16, 4, 4
Batch = dict[str, Tensor]
Made = tuple[nn.Module, Batch]
Build = Callable[[int], Made]


class Attention(nn.Module):
    """Causal self-attention with one fused projection."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then an MLP of four times the width."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(hidden), Attention(hidden), nn.LayerNorm(hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Stack(nn.Module):
    """Embedding, blocks, norm, head; mean cross entropy of ``labels``."""

    def __init__(self, vocab: int = VOCAB, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.emb, self.blocks = nn.Embedding(vocab, HIDDEN), nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, vocab, bias=False)

    def body(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def logits(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.emb(tokens)))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.logits(tokens), labels)


def tokens(batch: int, seq: int = SEQ, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    """Ids (b s), the first samples the same for every size of batch."""
    rows = [torch.randint(vocab, (seq,), generator=torch.Generator().manual_seed(seed + n)) for n in range(batch)]
    return torch.stack(rows)


def text(batch: int, seq: int = SEQ, vocab: int = VOCAB) -> Batch:
    """Ids and the next ones."""
    ids = tokens(batch, seq, vocab)
    return {"tokens": ids, "labels": ids.roll(-1, 1)}


def uneven(batch: int, ignored: int = -100) -> Batch:
    """``text`` of which every sample counts another number of labels."""
    made = text(batch)
    for n in range(batch):
        made["labels"][n, : 1 + 3 * n % (SEQ - 2)] = ignored
    return made
