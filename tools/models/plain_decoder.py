"""A plain decoder of given dimensions: the GPT family (LayerNorm, GELU) or the Llama family (RMSNorm, gated SiLU)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DROPOUT = 0.1  # of GPT's training, where attention is written out


@dataclass(frozen=True)
class Dimensions:
    """``written_out``: attention makes its scores, with dropout, instead of calling a fused kernel. ``adapter``: the
    rank of what alone is trained beside attention's products (LoRA, Hu et al., 2021); 0 where all is trained."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    gated: bool
    vocab: int
    tied: bool
    seq: int
    written_out: bool
    adapter: int = field(default=0, repr=False)


class Adapted(nn.Linear):
    """A frozen product beside which a low-rank one is trained."""

    def __init__(self, inner: int, outer: int, bias: bool, rank: int) -> None:
        super().__init__(inner, outer, bias)
        self.down, self.up = nn.Linear(inner, rank, bias=False), nn.Linear(rank, outer, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # torch's own name of it
        return super().forward(input) + self.up(self.down(input))


class Attention(nn.Module):
    """Causal, grouped-query; rotary positions in the Llama family."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.size, self.width = size, size.hidden // size.heads
        self.sizes = [n * self.width for n in (size.heads, size.kv_heads, size.kv_heads)]
        self.qkv, self.out = (_projection(size, outer) for outer in (sum(self.sizes), size.hidden))

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:  # b s d
        q, k, v = (t.unflatten(-1, (-1, self.width)).transpose(1, 2) for t in self.qkv(x).split(self.sizes, -1))
        if rotary is not None:
            q, k = _rotated(q, *rotary), _rotated(k, *rotary)
        y = _written_out(q, k, v) if self.size.written_out else _fused(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def _projection(size: Dimensions, outer: int) -> nn.Linear:
    bias = not size.gated
    return Adapted(size.hidden, outer, bias, size.adapter) if size.adapter else nn.Linear(size.hidden, outer, bias)


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = torch.arange(q.shape[2], device=q.device)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # b h s s
    shares = torch.where(rows[:, None] >= rows, scores, float("-inf")).softmax(-1)
    return F.dropout(shares, DROPOUT) @ v


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside the residual stream."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = _norm(size), Attention(size), _norm(size)
        self.gated, self.drop = size.gated, nn.Dropout(DROPOUT if size.written_out else 0.0)
        self.up = nn.Linear(size.hidden, size.ffn * (2 if size.gated else 1), bias=not size.gated)
        self.down = nn.Linear(size.ffn, size.hidden, bias=not size.gated)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), rotary))
        return x + self.drop(self.down(self.activated(self.up(self.norm2(x)))))

    def activated(self, x: Tensor) -> Tensor:
        if not self.gated:
            return F.gelu(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


def _norm(size: Dimensions) -> nn.Module:
    return nn.RMSNorm(size.hidden) if size.gated else nn.LayerNorm(size.hidden)


class Decoder(nn.Module):
    """Returns the mean cross entropy of (b, s) tokens against (b, s) labels."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.size = size
        self.tokens = nn.Embedding(size.vocab, size.hidden)
        if not size.gated:
            self.positions = nn.Embedding(size.seq, size.hidden)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm, self.head = _norm(size), nn.Linear(size.hidden, size.vocab, bias=False)
        if size.tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x, rotary = self.tokens(tokens), None
        if self.size.gated:
            rotary = _table(places, self.size.hidden // self.size.heads, x.dtype)
        else:
            x = x + self.positions(places)
        for block in self.blocks:
            x = block(x, rotary)
        return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), labels.flatten())


def _table(places: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every place (Su et al., 2021): s e each."""
    speeds = 10000.0 ** (-torch.arange(0, width, 2, device=places.device) / width)
    angles = torch.outer(places.float(), speeds).repeat(1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def decoder(size: Dimensions, dtype: torch.dtype, batch: int = 2) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module on meta in training mode, and an example batch."""
    with torch.device("meta"):
        module = Decoder(size).to(dtype).train()
        if size.adapter:
            module.requires_grad_(False)
            for part in (m for m in module.modules() if isinstance(m, Adapted)):
                part.down.requires_grad_(True)
                part.up.requires_grad_(True)
        tokens = torch.zeros(batch, size.seq, dtype=torch.long)
    return module, {"tokens": tokens, "labels": torch.zeros_like(tokens)}
