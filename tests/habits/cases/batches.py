"""Batches: inputs without samples, numbers that equal the batch size by chance, scalars, nested ones, masks of bool."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import equal, equal_unsplit, named, refused
from stack import HEADS, HIDDEN, SEQ, Attention, Made, Stack, text, tokens
from torch import Tensor, nn


class Positioned(Stack):
    """Learned positions, which come with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.pos = nn.Embedding(64, HIDDEN)

    def forward(self, tokens: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        return self.loss(self.head(self.body(self.emb(tokens) + self.pos(position_ids))), labels)


def positions_as_long_as_the_batch(batch: int) -> Made:
    """Four positions, and four samples in the example."""
    return Positioned(), text(batch, 4) | {"position_ids": torch.arange(4)}


class Turned(Stack):
    """Rotary tables come with the batch, and a mask; each is cut to the tokens."""

    def forward(self, tokens: Tensor, labels: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x, n = self.emb(tokens), tokens.shape[1]
        for block in self.blocks:
            h = block.norm1(x)
            q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in block.attention.qkv(h).chunk(3, -1))
            q, k = (t * cos[:n] + torch.cat([-t[..., 4:], t[..., :4]], -1) * sin[:n] for t in (q, k))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:n, :n]).transpose(1, 2).flatten(2)
            x = x + block.attention.out(y)
            x = x + block.mlp(block.norm2(x))
        return self.loss(self.head(self.norm(x)), labels)


def _tables(rows: int) -> dict[str, Tensor]:
    turns = torch.arange(rows)[:, None] * torch.linspace(0.2, 1.0, HIDDEN // HEADS)[None]
    mask = torch.ones(rows, rows, dtype=torch.bool).tril().triu(-2)
    return {"cos": turns.cos(), "sin": turns.sin(), "mask": mask}


def tables_as_long_as_the_batch(batch: int) -> Made:
    """Four tokens and rows, and four samples in the example."""
    return Turned(), text(batch, 4) | _tables(4)


def tables_longer_than_the_tokens(batch: int) -> Made:
    """More tensors are as long as the tables than as long as the batch."""
    return Turned(), text(batch, 4) | _tables(6)


def positions_without_samples(batch: int) -> Made:
    return Positioned(), text(batch) | {"position_ids": torch.arange(SEQ)}


def positions_of_one_row(batch: int) -> Made:
    return Positioned(), text(batch) | {"position_ids": torch.arange(SEQ)[None]}


def square(batch: int) -> Made:
    """As many tokens, heads and blocks as samples."""
    return Stack(), text(batch, 4)


def loss_mask(batch: int) -> Made:
    """Megatron's: each loss times a mask of the batch, by the mask's sum."""

    class Masked(Stack):
        def forward(self, tokens: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
            each = F.cross_entropy(self.logits(tokens).flatten(0, 1), labels.flatten(), reduction="none")
            return (each * loss_mask.flatten()).sum() / loss_mask.sum()

    made = text(batch)
    return Masked(), made | {"loss_mask": (made["tokens"] % 3 > 0).float()}


def loss_mask_of_bool(batch: int) -> Made:
    class Masked(Stack):
        def forward(self, tokens: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
            each = F.cross_entropy(self.logits(tokens).transpose(1, 2), labels, reduction="none")
            return torch.where(kept, each, 0.0).sum() / kept.sum()

    made = text(batch)
    return Masked(), made | {"kept": made["tokens"] % 3 > 0}


def weight_a_sample(batch: int) -> Made:
    """Each sample's loss has a weight, by their sum."""

    class Weighted(Stack):
        def forward(self, tokens: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
            each = F.cross_entropy(self.logits(tokens).transpose(1, 2), labels, reduction="none").mean(1)
            return (each * weight).sum() / weight.sum()

    return Weighted(), text(batch) | {"weight": 0.5 + torch.arange(batch) % 3}


def number_of_items(batch: int) -> Made:
    """The count comes as a scalar with the batch (transformers' Trainer)."""

    class Counted(Stack):
        def forward(self, tokens: Tensor, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
            total = F.cross_entropy(self.logits(tokens).flatten(0, 1), labels.flatten(), reduction="sum")
            return total / num_items_in_batch

    return Counted(), text(batch) | {"num_items_in_batch": torch.tensor(batch * SEQ)}


def documents(batch: int) -> Made:
    """Grouped queries; packed documents: a mask from their ids, causal besides; labels end with each."""

    class Grouped(Attention):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.q, self.kv = nn.Identity(), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            b, s, _ = x.shape
            q = self.q(x).view(b, s, HEADS, -1).transpose(1, 2)
            k, v = (t.transpose(1, 2) for t in self.kv(x).view(b, s, 2, 2, -1).unbind(2))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
            return self.out(y.transpose(1, 2).reshape(b, s, -1))

    class Packed(Stack):
        def __init__(self) -> None:
            super().__init__()
            for block in self.blocks:
                block.attention = Grouped()

        def forward(self, tokens: Tensor, labels: Tensor, docs: Tensor) -> Tensor:
            causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
            mask = (docs[:, None, :, None] == docs[:, None, None, :]) & causal
            x = self.emb(tokens)
            for block in self.blocks:
                x = x + block.attention(block.norm1(x), mask)
                x = x + block.mlp(block.norm2(x))
            return self.loss(self.head(self.norm(x)), labels)

    made = text(batch)
    docs = (torch.arange(SEQ)[None] >= 1 + torch.arange(batch)[:, None] % 12).long()
    return Packed(), made | {"labels": made["labels"].masked_fill(docs != docs.roll(-1, 1), -100), "docs": docs}


def padding_mask(batch: int) -> Made:
    """An additive mask made of a padding mask."""

    class Padded(Stack):
        def forward(self, tokens: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
            x = self.emb(tokens)
            bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
            for block in self.blocks:
                q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in block.attention.qkv(x).chunk(3, -1))
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
                x = x + block.attention.out(y)
            return self.loss(self.head(self.norm(x)), labels)

    made = text(batch)
    mask = (torch.arange(SEQ)[None] < 5 + torch.arange(batch)[:, None] % 8).long()
    return Padded(), {
        "tokens": made["tokens"], "labels": made["labels"].masked_fill(mask == 0, -100), "attention_mask": mask,
    }  # fmt: skip


def last_token(batch: int) -> Made:
    """The features at each sample's own end (CLIP's text tower)."""

    class Pooled(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            x = self.body(self.emb(tokens))
            return F.cross_entropy(self.head(x[torch.arange(x.shape[0]), tokens.argmax(-1)]), labels)

    return Pooled(), {"tokens": tokens(batch), "labels": torch.arange(batch) * 7 % 64}


def gathered_token(batch: int) -> Made:
    class Pooled(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            x = self.body(self.emb(tokens))
            place = tokens.argmax(-1)[:, None, None].expand(-1, 1, HIDDEN)
            return F.cross_entropy(self.head(x.gather(1, place).squeeze(1)), labels)

    return Pooled(), {"tokens": tokens(batch), "labels": torch.arange(batch) * 7 % 64}


def nested(batch: int) -> Made:
    """A dict within the batch."""

    class Nested(Stack):
        def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
            return super().forward(inputs["tokens"], labels)

    made = text(batch)
    return Nested(), {"inputs": {"tokens": made["tokens"]}, "labels": made["labels"]}  # type: ignore[dict-item]


def unread_input(batch: int) -> Made:
    """An input that forward takes and does not read."""

    class Lazy(Stack):
        def forward(self, tokens: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(tokens, labels)

    return Lazy(), text(batch) | {"attention_mask": torch.ones(batch, SEQ)}


def masked_select(batch: int) -> Made:
    """As many rows as labels count: a size that hangs on values."""

    class Chosen(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            kept = labels % 3 != 0
            return F.cross_entropy(self.head(self.body(self.emb(tokens))[kept]), labels[kept])

    return Chosen(), text(batch)


def nonzero(batch: int) -> Made:
    class Chosen(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            rows = (labels.flatten() % 3).nonzero().squeeze(1)
            logits = self.logits(tokens).flatten(0, 1)
            return F.cross_entropy(logits.index_select(0, rows), labels.flatten().index_select(0, rows))

    return Chosen(), text(batch)


def branch_on_values(batch: int) -> Made:
    class Branching(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            x = self.emb(tokens)
            if x.mean() > 0:
                x = 2 * x
            return self.loss(self.head(self.body(x)), labels)

    return Branching(), text(batch)


def shuffled_with_batch(batch: int) -> Made:
    """Each sample mixed with the one before it (mixup by roll)."""

    class Mixed(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            x = self.emb(tokens)
            return self.loss(self.head(self.body(0.7 * x + 0.3 * x.roll(1, 0))), labels)

    return Mixed(), text(batch)


CASES = named(
    equal(
        positions_as_long_as_the_batch, tables_as_long_as_the_batch, tables_longer_than_the_tokens,
        positions_without_samples, positions_of_one_row, square, loss_mask, loss_mask_of_bool, weight_a_sample,
        number_of_items, documents, padding_mask, last_token, gathered_token,
        nested, unread_input,
    ),
    refused("masked_select|nonzero|index|data-dependent|size", masked_select, nonzero),
    refused("(?i)branch|if x.mean|data-dependent|bool", branch_on_values),
    equal_unsplit("mixes? samples|separate", shuffled_with_batch),
)  # fmt: skip
