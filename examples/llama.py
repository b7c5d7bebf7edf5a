"""A plain single-GPU decoder as Llama's: RMSNorm, rotary positions, grouped queries, SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """``groups`` of keys and values serve ``heads`` of queries; ``mlp`` is the width between gate and down."""

    vocab: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    groups: int


def rotated(x: Tensor) -> Tensor:  # b h s e
    """Turned by its position, pairs of the two halves together (Su et al., 2021)."""
    half, s = x.shape[-1] // 2, x.shape[-2]
    speeds = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.outer(torch.arange(s, device=x.device), speeds)  # s e/2
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal, by positions; with ``mask`` only where it is true."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.width = size.hidden // size.heads
        self.q = nn.Linear(size.hidden, size.heads * self.width, bias=False)
        self.k = nn.Linear(size.hidden, size.groups * self.width, bias=False)
        self.v = nn.Linear(size.hidden, size.groups * self.width, bias=False)
        self.out = nn.Linear(size.heads * self.width, size.hidden, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # b s d, b 1 s s
        q, k, v = (part(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(
            rotated(q), rotated(k), v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )  # b h s e
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a gated MLP, each behind a norm and beside the residual stream."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(size.hidden, eps=1e-5), Attention(size)
        self.norm2 = nn.RMSNorm(size.hidden, eps=1e-5)
        self.gate = nn.Linear(size.hidden, size.mlp, bias=False)
        self.up = nn.Linear(size.hidden, size.mlp, bias=False)
        self.down = nn.Linear(size.mlp, size.hidden, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Returns the mean cross entropy of every next token that ``labels``, the tokens themselves, don't say -100 of.

    ``documents`` numbers those that a sample is packed of: none attends to another. None: a sample is one.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocab, size.hidden)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.hidden, eps=1e-5)
        self.head = nn.Linear(size.hidden, size.vocab, bias=False)
        self.apply(self._init_weights)

    def forward(self, tokens: Tensor, labels: Tensor, documents: Tensor | None = None) -> Tensor:  # b s, b s, b s
        mask = None
        if documents is not None:
            same = documents[:, :, None] == documents[:, None, :]
            mask = (same & torch.ones_like(same[0]).tril())[:, None]  # b 1 s s
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, mask)
        logits = self.head(self.norm(x))  # b s v
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)


def example(vocab: int, seq: int, batch: int, documents: bool) -> dict[str, Tensor]:
    """A batch of ``batch`` samples of ``seq`` tokens, with ``documents`` of two halves each."""
    tokens = torch.randint(0, vocab, (batch, seq))
    packed = {"documents": (torch.arange(seq) * 2 // seq).repeat(batch, 1)} if documents else {}
    return {"tokens": tokens, "labels": tokens.clone()} | packed
