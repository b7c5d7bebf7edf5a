"""Ways of mixing positions that no cache can be derived of, and the op that each is refused by."""

from __future__ import annotations

import math

import torch
from hand_decoders import HEADS, WIDTH, Block, Mix, by_one_op, later
from torch import Tensor
from torch.nn import functional as F


def convolution(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Over time, of what comes before alone."""
    kernel = block.k.weight[:, :1, None].expand(-1, -1, 3)
    return F.conv1d(F.pad(x.transpose(1, 2), (2, 0)), kernel, groups=WIDTH).transpose(1, 2)


def symmetric_convolution(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return F.conv1d(x.transpose(1, 2), block.k.weight[:, :, None].expand(-1, -1, 3), padding=1).transpose(1, 2)


def mean(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return x + x.mean(1, keepdim=True)


def running_sum(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return x.cumsum(1)


def linear_attention(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    return block.together(torch.einsum("bhse,bhsef->bhsf", q, torch.einsum("bhse,bhsf->bhsef", k, v).cumsum(2)))


def moved(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 0))[:, :-1]


def rolled(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return x.roll(1, 1)


def first_position(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return x + x[:, :1]


def no_mask(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return block.together(F.scaled_dot_product_attention(*block.heads(x)))


def no_mask_written_out(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    return block.together((q @ k.mT).softmax(-1) @ v)


def masked(block: Block, x: Tensor, hidden: Tensor, low: float = -1e9, dim: int = -1) -> Tensor:
    q, k, v = block.heads(x)
    return block.together((q @ k.mT).masked_fill(hidden, low).softmax(dim) @ v)


def next_position_seen(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    s = x.shape[1]
    return masked(block, x, torch.ones(s, s, dtype=torch.bool).triu(2))


def one_pair_seen(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Position 3 sees position 5."""
    at = torch.arange(x.shape[1])
    return masked(block, x, later(x.shape[1]) & ~((at[:, None] == 3) & (at == 5)))


def one_pair_seen_in_one_op(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    at = torch.arange(x.shape[1])
    allowed = ~later(x.shape[1]) | ((at[:, None] == 3) & (at == 5))
    return block.together(F.scaled_dot_product_attention(*block.heads(x), attn_mask=allowed))


def first_tokens_seen(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """A prefix that all see, as a T5-like decoder has it."""
    return masked(block, x, later(x.shape[1]) & (torch.arange(x.shape[1]) > 4))


def causal_as_traced(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Hides what comes later among the first 24 positions alone."""
    return masked(block, x, later(x.shape[1]) & (torch.arange(x.shape[1]) < 24))


def mildly_hidden(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return masked(block, x, later(x.shape[1]), low=-5.0)


def hidden_by_tokens(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return masked(block, x, (tokens == 0)[:, None, None, :])


def over_queries(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return masked(block, x, later(x.shape[1]), dim=-2)


def keys_first(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Scores made as (keys, queries): causal, and not known to be."""
    q, k, v = block.heads(x)
    return block.together((k @ q.mT).mT.masked_fill(later(x.shape[1]), -1e9).softmax(-1) @ v)


def sinks(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    w = (q @ k.mT).masked_fill(later(x.shape[1]), -1e9)
    return block.together(torch.cat([w, w.new_zeros(*w.shape[:-1], 1)], -1).softmax(-1)[..., :-1] @ v)


def no_softmax(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    s = x.shape[1]
    return block.together((q @ k.mT * block.tril[..., :s, :s]) @ v)


def probabilities_moved(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """What is hidden is no longer 0 where it is summed."""
    q, k, v = block.heads(x)
    return block.together(((q @ k.mT).masked_fill(later(x.shape[1]), -1e9).softmax(-1) + 0.01) @ v)


MIXES: dict[Mix, str] = {
    convolution: "aten.pad.default", symmetric_convolution: "aten.conv1d.default", mean: "aten.mean.dim",
    running_sum: "aten.cumsum.default", linear_attention: "aten.cumsum.default", moved: "aten.pad.default",
    rolled: "aten.roll.default", first_position: "aten.slice.Tensor",
    no_mask: "aten.scaled_dot_product_attention.default", no_mask_written_out: "aten.softmax.int",
    next_position_seen: "aten.softmax.int", one_pair_seen: "aten.softmax.int",
    one_pair_seen_in_one_op: "aten.scaled_dot_product_attention.default", first_tokens_seen: "aten.softmax.int",
    causal_as_traced: "aten.softmax.int", mildly_hidden: "aten.softmax.int", hidden_by_tokens: "aten.softmax.int",
    over_queries: "aten.softmax.int", keys_first: "aten.masked_fill.Scalar", sinks: "aten.cat.default",
    no_softmax: "aten.matmul.default", probabilities_moved: "aten.matmul.default",
}  # fmt: skip


def fraction(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    s = x.shape[1]
    return by_one_op(block, x + torch.arange(s)[:, None] / s, tokens)


def evenly_spaced(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return by_one_op(block, x + torch.linspace(0, 1, x.shape[1])[:, None], tokens)


def counted_from_the_end(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    s = x.shape[1]
    return by_one_op(block, x + block.near(s - 1 - torch.arange(s)).repeat(1, WIDTH // HEADS), tokens)


def scaled_by_length(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    q, k, v = block.heads(x)
    return block.together(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / x.shape[1]))


def times_log_of_length(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return by_one_op(block, x * math.log(x.shape[1]), tokens)


def times_last_position(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    return by_one_op(block, x * torch.arange(x.shape[1]).max(), tokens)


def slopes_from_the_end_capped(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """Behind a tanh a softmax does not forget what all keys have more."""
    q, k, v = block.heads(x)
    w = torch.tanh(q @ k.mT + torch.arange(1 - x.shape[1], 1) * 0.1)
    return block.together(w.masked_fill(later(x.shape[1]), -1e9).softmax(-1) @ v)


LENGTHS: dict[Mix, str] = {
    fraction: "aten.div.Tensor", evenly_spaced: "aten.reshape.default", counted_from_the_end: "aten.add.Tensor",
    scaled_by_length: "aten.scaled_dot_product_attention.default", times_log_of_length: "aten.mul.Tensor",
    times_last_position: "aten.max.default", slopes_from_the_end_capped: "aten.mul.Tensor",
}  # fmt: skip
