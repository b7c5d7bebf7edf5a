"""A plain decoder of given dimensions: the GPT family (LayerNorm, GELU) or the Llama family (RMSNorm, gated SiLU)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner.errors import InputError

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
        if size.adapter:
            self.requires_grad_(False)
            for part in (m for m in self.modules() if isinstance(m, Adapted)):
                part.down.requires_grad_(True)
                part.up.requires_grad_(True)

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


COLUMNS_AND_ROWS = {  # as Megatron-LM divides it: products by columns, then by rows, tables by vocabulary
    "tokens.weight": "shard:0", "head.weight": "shard:0", "blocks.*.attention.qkv.weight": "shard:0",
    "blocks.*.attention.out.weight": "shard:1", "blocks.*.up.weight": "shard:0", "blocks.*.down.weight": "shard:1",
}  # fmt: skip
_USUAL = {"written_out": False, "gated": True, "tied": False}  # of settings that need not be given
_MOST, _MOST_LAYERS = 2**24, 2**12  # of any other size


def sized_decoder(
    settings: Mapping[str, object], seq: int | None, batch: int, meta: bool
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The decoder of sizes by the names of Dimensions, in training mode, and a batch; raises InputError.

    Where they are not set, there are as many kv_heads as heads, and ffn is four times hidden, or of a gated MLP of
    which three products have as many parameters, 8/3 of it in multiples of 64.
    """
    known = [f.name for f in fields(Dimensions) if f.name != "seq"]
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"--set {key}: plain:decoder has {', '.join(known)}")
        _check(key, value)
    given = _USUAL | dict(settings)
    missing = [key for key in ("layers", "hidden", "heads", "vocab") if key not in given]
    if missing or seq is None:
        word = f"--set {missing[0]}=N" if missing else "--seq S"
        raise InputError(f"plain:decoder is of a size that is to be given: {word} is missing")
    if not 1 <= seq <= _MOST:
        raise InputError(f"plain:decoder of {seq:,} tokens a sample: take 1 to {_MOST:,}")
    hidden, heads = int(str(given["hidden"])), int(str(given["heads"]))
    kv_heads = int(str(given.setdefault("kv_heads", heads)))
    given.setdefault("ffn", max(64, hidden * 8 // 3 // 64 * 64) if given["gated"] else 4 * hidden)
    if hidden % heads or heads % kv_heads or (given["gated"] and hidden // heads % 2):
        words = f"{hidden} hidden, {heads} heads and {kv_heads} kv_heads"
        raise InputError(f"plain:decoder: {words} do not divide each other, each head's width even: change one")
    size = Dimensions(**given, seq=seq)  # type: ignore[arg-type]
    with torch.device("meta" if meta else "cpu"):
        module = Decoder(size).train()
    tokens = torch.randint(size.vocab, (batch, seq), device="cpu")
    return module, {"tokens": tokens, "labels": tokens.roll(-1, 1)}


def _check(key: str, value: object) -> None:
    if key in ("written_out", "gated", "tied"):
        if not isinstance(value, bool):
            raise InputError(f"--set {key}={value}: give true or false")
        return
    least, most = int(key != "adapter"), _MOST_LAYERS if key == "layers" else _MOST
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"--set {key}={value}: give a whole number from {least} to {most:,}")


def decoder(size: Dimensions, dtype: torch.dtype, batch: int = 2) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module on meta in training mode, and an example batch."""
    with torch.device("meta"):
        module = Decoder(size).to(dtype).train()
        tokens = torch.zeros(batch, size.seq, dtype=torch.long)
    return module, {"tokens": tokens, "labels": torch.zeros_like(tokens)}
