"""A plain encoder-decoder: one table of tokens for both and for the head, learned positions, norms before each part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, BEGIN, END = 0, 1, 2  # tokens of every vocabulary here
IGNORED = -100  # a label that is not asked for


@dataclass(frozen=True)
class Size:
    """``layers`` of the encoder and as many of the decoder; ``seq``: positions of the longest text of either."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    seq: int
    dropout: float


class Attention(nn.Module):
    """Of ``x`` to ``seen``: where ``mask`` is true, or causal."""

    def __init__(self, size: Size, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.is_causal = size.heads, is_causal
        self.q, self.k, self.v, self.out = (nn.Linear(size.hidden, size.hidden) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:  # b t d, b s d, b 1 1 s
        rows = (self.q(x), self.k(seen), self.v(seen))
        q, k, v = (row.unflatten(-1, (self.heads, -1)).transpose(1, 2) for row in rows)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.is_causal)  # b h t e
        return self.out(y.transpose(1, 2).flatten(2))


class Reader(nn.Module):
    """A block of the encoder."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(size.hidden), Attention(size, is_causal=False)
        self.norm2, self.mlp = nn.LayerNorm(size.hidden), _mlp(size)
        self.drop = nn.Dropout(size.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # b s d, b 1 1 s
        y = self.norm1(x)
        x = x + self.drop(self.attention(y, y, mask))
        return x + self.drop(self.mlp(self.norm2(x)))


class Writer(nn.Module):
    """A block of the decoder, which looks at what was read."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(size.hidden), Attention(size, is_causal=True)
        self.norm2, self.reading = nn.LayerNorm(size.hidden), Attention(size, is_causal=False)
        self.norm3, self.mlp = nn.LayerNorm(size.hidden), _mlp(size)
        self.drop = nn.Dropout(size.dropout)

    def forward(self, x: Tensor, read: Tensor, mask: Tensor) -> Tensor:  # b t d, b s d, b 1 1 s
        y = self.norm1(x)
        x = x + self.drop(self.attention(y, y))
        x = x + self.drop(self.reading(self.norm2(x), read, mask))
        return x + self.drop(self.mlp(self.norm3(x)))


class Translator(nn.Module):
    """Returns the mean cross entropy of the ``labels``, -100 where none is asked; the decoder is given them shifted."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocab, size.hidden)
        self.source_positions, self.positions = (nn.Embedding(size.seq, size.hidden) for _ in range(2))
        self.drop = nn.Dropout(size.dropout)
        self.readers = nn.ModuleList(Reader(size) for _ in range(size.layers))
        self.read_norm = nn.LayerNorm(size.hidden)
        self.writers = nn.ModuleList(Writer(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.hidden)
        self.head = nn.Linear(size.hidden, size.vocab, bias=False)
        self.apply(self._init_weights)
        self.head.weight = self.tokens.weight

    def forward(self, sources: Tensor, labels: Tensor) -> Tensor:  # b s, b t
        mask = (sources != PAD)[:, None, None, :]  # b 1 1 s
        x = self.drop(self.tokens(sources) + self.source_positions(_places(sources)))
        for block in self.readers:
            x = block(x, mask)
        read = self.read_norm(x)
        given = F.pad(labels[:, :-1], (1, 0), value=BEGIN)
        given = given.masked_fill(given == IGNORED, PAD)
        x = self.drop(self.tokens(given) + self.positions(_places(given)))
        for block in self.writers:
            x = block(x, read, mask)
        logits = self.head(self.norm(x))  # b t v
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _mlp(size: Size) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size.hidden, 4 * size.hidden), nn.GELU(), nn.Linear(4 * size.hidden, size.hidden))


def _places(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device)


def model(
    vocab: int = 2048, hidden: int = 192, layers: int = 2, heads: int = 6, seq: int = 32, dropout: float = 0.1,
    batch: int = 2,
) -> tuple[nn.Module, dict[str, Tensor]]:  # fmt: skip
    """The module and an example batch of ``batch`` pairs of ``seq`` tokens."""
    sources, labels = (torch.randint(3, vocab, (batch, seq)) for _ in range(2))
    return Translator(Size(vocab, hidden, layers, heads, seq, dropout)), {"sources": sources, "labels": labels}
