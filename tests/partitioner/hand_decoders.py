"""Small decoders as people write them by hand, attention spelled in many ways; none of them ever heard of a cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, WIDTH, HEADS, LONGEST, WINDOW = 32, 16, 4, 64, 5
Mix = Callable[["Block", Tensor, Tensor], Tensor]  # of a block, its x (b, s, d) and the tokens (b, s)


class Block(nn.Module):
    """Attention by ``mix``, and a small MLP; ``kv``: heads of keys and values."""

    def __init__(self, mix: Mix, kv: int, parallel: bool) -> None:
        super().__init__()
        self.mix, self.kv, self.parallel = mix, kv, parallel
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        size = WIDTH // HEADS
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, kv * size)
        self.v, self.out = nn.Linear(WIDTH, kv * size), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.near = nn.Embedding(2 * LONGEST, HEADS)
        self.register_buffer("tril", torch.tril(torch.ones(LONGEST, LONGEST)).view(1, 1, LONGEST, LONGEST))
        places = torch.arange(LONGEST)
        self.register_buffer("apart", places[:, None] - places)
        slopes = 2.0 ** -torch.arange(1, HEADS + 1)
        self.register_buffer("alibi", -slopes[:, None, None] * (places[:, None] - places).abs())
        self.register_buffer("angles", torch.outer(places, 1.0 / 10 ** torch.arange(0, 1, 2 / size)))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        a = self.mix(self, self.norm1(x), tokens)
        if self.parallel:
            return x + a + self.down(F.gelu(self.up(self.norm1(x))))
        x = x + a
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (b, h, s, e), keys and values."""
        b, s, _ = x.shape
        rows = (self.q, HEADS), (self.k, self.kv), (self.v, self.kv)
        q, k, v = (linear(x).view(b, s, n, -1).transpose(1, 2) for linear, n in rows)
        return q, k, v

    def together(self, y: Tensor) -> Tensor:
        """Heads (b, h, s, e) laid side by side."""
        return self.out(y.transpose(1, 2).flatten(2))


class HandDecoder(nn.Module):
    """Two blocks; ``learned``: positions are looked up in a table of LONGEST rows, or, ``sliced``, cut out of one."""

    def __init__(
        self, mix: Mix, kv: int = HEADS, parallel: bool = False, learned: bool = True, sliced: bool = False
    ) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(LONGEST, WIDTH)) if sliced else None
        self.embed, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH) if learned else None
        self.blocks = nn.ModuleList(Block(mix, kv, parallel) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.places is not None:
            x = x + self.places(torch.arange(tokens.shape[1]))
        x = x if self.rows is None else x + self.rows[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, tokens)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def made(mix: Mix, **how: object) -> tuple[nn.Module, dict[str, Tensor]]:
    """One, and a batch of 2 texts of 24."""
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (2, 24))
    return HandDecoder(mix, **how), {"tokens": tokens, "labels": tokens.clone()}  # type: ignore[arg-type]


def later(s: int) -> Tensor:
    """True where what comes later is."""
    return torch.ones(s, s, dtype=torch.bool).triu(1)


def tril_buffer(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    s = x.shape[1]
    w = (q @ k.transpose(-2, -1)) / math.sqrt(k.shape[-1])
    w = w.masked_fill(block.tril[:, :, :s, :s] == 0, float("-inf"))
    return block.together(w.softmax(-1) @ v)


def where(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    w = torch.where(~later(x.shape[1]), q @ k.mT * k.shape[-1] ** -0.5, -1e9)
    return block.together(F.softmax(w, dim=-1) @ v)


def added(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    s = x.shape[1]
    w = q @ k.transpose(2, 3) / k.shape[-1] ** 0.5 + torch.full((s, s), float("-inf")).triu(1)
    return block.together(F.softmax(w.float(), dim=-1).type_as(q) @ v)


def merged_heads(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    b, s, _ = x.shape
    q, k, v = (t.reshape(b * HEADS, s, -1) for t in block.heads(x))
    w = torch.bmm(q, k.transpose(1, 2)) * 0.5
    y = torch.bmm(w.masked_fill(later(s), -1e9).softmax(-1), v)
    return block.together(y.view(b, HEADS, s, -1))


def merged_heads_first(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    b, s, _ = x.shape
    q, k, v = (t.transpose(0, 1).reshape(HEADS * b, s, -1) for t in block.heads(x))
    w = (q * 0.5 @ k.mT).masked_fill(later(s), -1e30).softmax(-1)
    return block.together((w @ v).view(HEADS, b, s, -1).transpose(0, 1))


def einsum(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    w = torch.einsum("bhid,bhjd->bhij", q, k) * 0.5
    w = w.masked_fill(later(x.shape[1]), -1e9).softmax(dim=-1)
    return block.together(torch.einsum("bhij,bhjd->bhid", w, v))


def einsum_heads_last(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in block.heads(x))  # b s h e
    w = torch.einsum("bqhe,bkhe->bhqk", q, k) * 0.5
    w = w.masked_fill(later(x.shape[1]), float("-inf")).softmax(dim=-1)
    return block.out(torch.einsum("bhqk,bkhe->bqhe", w, v).flatten(2))


def distances(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    w = -(q[:, :, :, None] - k[:, :, None]).square().sum(-1)
    return block.together(w.masked_fill(later(x.shape[1]), -1e9).softmax(-1) @ v)


def mask_to_add_to(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    b, s, _ = x.shape
    q, k, v = (t.reshape(b * HEADS, s, -1) for t in block.heads(x))
    mask = torch.full((s, s), -1e9).triu(1).expand(b * HEADS, s, s)
    w = torch.baddbmm(mask, q, k.mT, alpha=0.5).softmax(-1)
    return block.together(torch.bmm(w, v).view(b, HEADS, s, -1))


def first_keys_and_near_ones(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    s = x.shape[1]
    apart = block.apart[:s, :s]
    unseen = (apart < 0) | ((apart >= WINDOW) & (torch.arange(s) > 1))
    return block.together((q @ k.mT).masked_fill(unseen, -1e9).softmax(-1) @ v)


def chunks_of_8(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Each position sees those of its own eight."""
    q, k, v = block.heads(x)
    s = x.shape[1]
    eight = torch.arange(s) // 8
    w = (q @ k.mT).masked_fill(later(s) | (eight[:, None] != eight), -1e9)
    return block.together(w.softmax(-1) @ v)


def slopes_from_the_end(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """ALiBi as MPT has it: a softmax forgets what is added to all keys of a row."""
    q, k, v = block.heads(x)
    s = x.shape[1]
    w = q @ k.mT + torch.arange(1 - s, 1) * 0.1
    return block.together(w.masked_fill(later(s), -1e9).softmax(-1) @ v)


def looked_at_twice(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    w = (q @ k.mT).masked_fill(later(x.shape[1]), -1e9).softmax(-1)
    w = w / w.sum(-1, keepdim=True)
    return block.together(w @ (w @ v))


def soft_cap(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    w = 3 * torch.tanh(q @ k.mT / 3)
    return block.together(w.masked_fill(later(x.shape[1]), -1e9).softmax(-1) @ v)


def alibi(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    s = x.shape[1]
    w = q @ k.mT * 0.5 + block.alibi[:, :s, :s]
    return block.together(w.masked_fill(block.tril[0, 0, :s, :s] == 0, -1e9).softmax(-1) @ v)


def alibi_in_one_op(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    s = x.shape[1]
    mask = block.alibi[:, :s, :s].masked_fill(later(s), float("-inf"))
    return block.together(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def complex_rotary(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    turn = torch.polar(torch.ones_like(block.angles), block.angles)[: x.shape[1]]

    def turned(t: Tensor) -> Tensor:
        pairs = torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(3)

    return block.together(F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True))


def part_rotary(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Of the first half of each head alone."""
    q, k, v = block.heads(x)
    angle = block.angles[: x.shape[1], :1]
    cos, sin = angle.cos(), angle.sin()

    def turned(t: Tensor) -> Tensor:
        a, b, rest = t[..., :1], t[..., 1:2], t[..., 2:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)

    w = turned(q) @ turned(k).mT * 0.5
    return block.together(w.masked_fill(later(x.shape[1]), -1e9).softmax(-1) @ v)


def shared_keys(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Fewer heads of keys, each repeated."""
    q, k, v = block.heads(x)
    k, v = (t.repeat_interleave(HEADS // block.kv, dim=1) for t in (k, v))
    w = q @ k.mT * 0.5
    return block.together(w.masked_fill(later(x.shape[1]), -1e9).softmax(-1) @ v)


def expanded_keys(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    b, n, s, e = k.shape
    k, v = (t[:, :, None].expand(b, n, HEADS // n, s, e).reshape(b, HEADS, s, e) for t in (k, v))
    return block.together(F.scaled_dot_product_attention(q, k, v, ~later(s)))


def window(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    s = x.shape[1]
    apart = block.apart[:s, :s]
    w = q @ k.mT * 0.5
    return block.together(w.masked_fill((apart < 0) | (apart >= WINDOW), -1e9).softmax(-1) @ v)


def window_in_one_op(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    apart = block.apart[: x.shape[1], : x.shape[1]]
    return block.together(F.scaled_dot_product_attention(q, k, v, attn_mask=(apart >= 0) & (apart < WINDOW)))


def window_beside_all(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """The same keys, of which one way and another is made, looked at near by and from afar."""
    q, k, v = block.heads(x)
    b, _, s, e = k.shape
    k, v = k[:, :, None], v[:, :, None]
    (near, u), (far, w) = (
        [t.expand(b, block.kv, HEADS // block.kv, s, e).reshape(b, HEADS, s, e) for t in (k, v)] for _ in "12"
    )
    apart = block.apart[:s, :s]
    y = (q @ near.mT).masked_fill((apart < 0) | (apart >= WINDOW), -1e9).softmax(-1) @ u
    return block.together(y + (q @ far.mT).masked_fill(apart < 0, -1e9).softmax(-1) @ w)


def relative(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """A learned number for each distance."""
    q, k, v = block.heads(x)
    s = x.shape[1]
    near = block.near(block.apart[:s, :s] + LONGEST).permute(2, 0, 1)
    w = q @ k.mT * 0.5 + near
    return block.together(w.masked_fill(later(s), -1e9).softmax(-1) @ v)


def padded(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Tokens 0 are looked at by none."""
    q, k, v = block.heads(x)
    s = x.shape[1]
    allowed = (tokens != 0)[:, None, None, :] & ~later(s)
    w = q @ k.mT * 0.5
    return block.together(w.masked_fill(~allowed, -1e9).softmax(-1) @ v)


def padded_in_one_op(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Each position sees itself at least."""
    q, k, v = block.heads(x)
    s = x.shape[1]
    allowed = ((tokens != 0)[:, None, None, :] | torch.eye(s, dtype=torch.bool)) & ~later(s)
    return block.together(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


def padded_and_added(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    unseen = (tokens == 0)[:, None, None, :].to(x.dtype) * -1e9
    w = q @ k.mT * 0.5 + torch.full((x.shape[1], x.shape[1]), -1e9).triu(1) + unseen
    return block.together(w.softmax(-1) @ v)


def by_one_op(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return block.together(F.scaled_dot_product_attention(*block.heads(x), is_causal=True))


SPELLINGS: dict[str, Mix] = {
    f.__name__: f
    for f in (
        tril_buffer, where, added, merged_heads, merged_heads_first, einsum,
        einsum_heads_last, distances, mask_to_add_to, first_keys_and_near_ones, chunks_of_8, slopes_from_the_end,
        looked_at_twice, soft_cap, alibi, alibi_in_one_op, complex_rotary, part_rotary, window, window_in_one_op,
        relative, padded, padded_in_one_op, padded_and_added, by_one_op,
    )
}  # fmt: skip
MADE: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
    **{name: (lambda mix=mix: made(mix)) for name, mix in SPELLINGS.items()},
    "grouped": lambda: made(shared_keys, kv=2),
    "multi query": lambda: made(shared_keys, kv=1),
    "grouped in one op": lambda: made(expanded_keys, kv=2),
    "multi query in one op": lambda: made(expanded_keys, kv=1),
    "a window beside all": lambda: made(window_beside_all),
    "a window beside all, grouped": lambda: made(window_beside_all, kv=2),
    "parallel block": lambda: made(tril_buffer, parallel=True),
    "no positions": lambda: made(alibi, learned=False),
    "positions cut out": lambda: made(expanded_keys, kv=2, learned=False, sliced=True),
    "windows alone": lambda: made(window, learned=False),
}
