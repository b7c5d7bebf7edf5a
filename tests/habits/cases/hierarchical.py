"""Models whose blocks have no twin: windows and widths by stage, a U of unequal lengths, one layer a side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import equal, named
from stack import HEADS, Block, Made, text, tokens
from torch import Tensor, nn

WINDOW = 4


class WindowBlock(nn.Module):
    """Attention in windows of a side of WINDOW, moved by half of it or not, with a bias of each pair; then an MLP."""

    def __init__(self, width: int, side: int, moved: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.bias = nn.Parameter(torch.randn(HEADS, WINDOW**2, WINDOW**2) * 0.1)
        self.by = WINDOW // 2 if moved else 0
        self.register_buffer("mask", self.apart(side) if moved else None, persistent=False)

    def apart(self, side: int) -> Tensor:
        """-100 between places that only the move brought into one window (windows t t)."""
        region = torch.bucketize(torch.arange(side), torch.tensor([side - WINDOW, side - self.by]), right=True)
        windows = self.windows((region[:, None] * 3 + region).view(1, side, side, 1)).squeeze(-1)
        return (windows[:, :, None] != windows[:, None, :]) * -100.0

    def windows(self, x: Tensor) -> Tensor:
        """(b h w d) to (b*windows t d)."""
        b, h, w, d = x.shape
        x = x.view(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, d)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW**2, d)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(len(x), WINDOW**2, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + self.bias
        if self.mask is not None:
            count = len(self.mask)
            scores = scores.view(-1, count, HEADS, WINDOW**2, WINDOW**2) + self.mask[None, :, None]
            scores = scores.view(-1, HEADS, WINDOW**2, WINDOW**2)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, d = x.shape
        moved = torch.roll(self.norm1(x), (-self.by, -self.by), (1, 2)) if self.by else self.norm1(x)
        y = self.attention(self.windows(moved)).view(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, d)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, d)
        x = x + (torch.roll(y, (self.by, self.by), (1, 2)) if self.by else y)
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    """Four neighbours to one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, -1)))


class Stage(nn.Module):
    """Blocks of one width, every second with moved windows; before them a merge, but in the first stage."""

    def __init__(self, width: int, side: int, blocks: int, first: bool) -> None:
        super().__init__()
        self.merge = nn.Identity() if first else Merge(width // 2)
        self.blocks = nn.Sequential(*(WindowBlock(width, side, n % 2 == 1) for n in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.merge(x))


class Windows(nn.Module):
    """Swin: patches, stages of so many blocks, a class of the mean."""

    def __init__(self, *blocks: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, 2)
        self.stages = nn.Sequential(*(Stage(16 << n, 16 >> n, count, n == 0) for n, count in enumerate(blocks)))
        width = 8 << len(blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 8)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        x = self.stages(self.patch(pixels).permute(0, 2, 3, 1))
        return F.cross_entropy(self.head(self.norm(x).mean((1, 2))), labels)


def images(batch: int) -> dict[str, Tensor]:
    """Pixels (b 3 32 32) and a class each."""
    rows = [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(batch)]
    return {"pixels": torch.stack(rows), "labels": torch.arange(batch) % 8}


def windows_by_stage(batch: int) -> Made:
    """Stages of a plain and a moved window (Swin)."""
    return Windows(2, 2), images(batch)


class Widths(nn.Module):
    """A block of every width, a projection between; residuals lie in the blocks."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.emb, self.blocks = nn.Embedding(64, widths[0]), nn.ModuleList(Block(w) for w in widths)
        self.grow = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.head = nn.Linear(widths[-1], 64)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.emb(tokens)
        for n, block in enumerate(self.blocks):
            x = block(self.grow[n - 1](x) if n else x)
        return F.cross_entropy(self.head(x).flatten(0, -2), labels.flatten())


def unlike_widths(batch: int) -> Made:
    return Widths(16, 32, 48, 64), text(batch)


class U(nn.Module):
    """Halves the sequence going down, and hands each level's result across to the one that grows it again."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.emb, self.head = nn.Embedding(64, widths[0]), nn.Linear(widths[0], 64)
        self.down, self.middle = nn.ModuleList(Block(w) for w in widths[:-1]), Block(widths[-1])
        self.up = nn.ModuleList(Block(w) for w in reversed(widths[:-1]))
        self.shrink = nn.ModuleList(nn.Linear(2 * a, b) for a, b in pairs)
        self.grow = nn.ModuleList(nn.Linear(b, 2 * a) for a, b in reversed(pairs))
        self.join = nn.ModuleList(nn.Linear(2 * a, a) for a, _ in reversed(pairs))

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.emb(tokens)
        held: list[Tensor] = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            held.append(x := block(x))
            x = shrink(x.unflatten(1, (-1, 2)).flatten(2))
        x = self.middle(x)
        for block, grow, join in zip(self.up, self.grow, self.join, strict=True):
            x = grow(x).unflatten(2, (2, -1)).flatten(1, 2)
            x = block(join(torch.cat([x, held.pop()], -1)))
        return F.cross_entropy(self.head(x).flatten(0, -2), labels.flatten())


def u_of_blocks(batch: int) -> Made:
    """A transformer of unequal lengths with skips (hourglass, U-Net)."""
    return U(16, 32, 64), text(batch)


class OneEach(nn.Module):
    """torch's own encoder and decoder of a layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)
        self.model = nn.Transformer(32, HEADS, 1, 1, 64, 0.0, batch_first=True)

    def forward(self, source: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        y = self.model(self.emb(source), self.emb(tokens), tgt_mask=mask)
        return F.cross_entropy(self.head(y).flatten(0, 1), labels.flatten())


def one_layer_each(batch: int) -> Made:
    return OneEach(), {"source": tokens(batch, 12, seed=50), **text(batch)}


CASES = named(equal(windows_by_stage, unlike_widths, u_of_blocks, one_layer_each))
