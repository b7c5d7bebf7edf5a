"""A plain single-GPU GPT over bytes: nothing in this file knows of parallelism."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """``tied`` shares the token embedding with the head; ``dropout`` acts on attention and residual branches."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    seq: int
    dropout: float
    tied: bool


class Attention(nn.Module):
    """Causal self-attention with one fused projection to queries, keys and values."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.dropout = size.heads, size.dropout
        self.qkv = nn.Linear(size.hidden, 3 * size.hidden)
        self.out = nn.Linear(size.hidden, size.hidden)

    def forward(self, x: Tensor) -> Tensor:  # b s d
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)  # b h s e
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a four times wider MLP, each behind a norm and beside the residual stream."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(size.hidden), Attention(size)
        self.norm2 = nn.LayerNorm(size.hidden)
        self.mlp = nn.Sequential(
            nn.Linear(size.hidden, 4 * size.hidden), nn.GELU(), nn.Linear(4 * size.hidden, size.hidden)
        )
        self.drop = nn.Dropout(size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """Returns the mean cross entropy of every next byte; ``labels`` are the tokens, -100 where a byte is not asked."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocab, size.hidden)
        self.positions = nn.Embedding(size.seq, size.hidden)
        self.drop = nn.Dropout(size.dropout)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.hidden)
        self.head = nn.Linear(size.hidden, size.vocab, bias=False)
        self.apply(self._init_weights)
        if size.tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:  # b s, b s
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.tokens(tokens) + self.positions(positions))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))  # b s v
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def model(
    vocab: int = 256,
    hidden: int = 256,
    layers: int = 4,
    heads: int = 8,
    seq: int = 128,
    dropout: float = 0.0,
    tied: bool = False,
    batch: int = 2,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module and an example batch of ``batch`` samples of ``seq`` tokens."""
    module = GPT(Size(vocab, hidden, layers, heads, seq, dropout, tied))
    tokens = torch.randint(0, vocab, (batch, seq))
    return module, {"tokens": tokens, "labels": tokens.clone()}
