"""Training by parts: blocks of one kind whose values have a gradient here and none there."""

from __future__ import annotations

import torch
from case import equal, named
from stack import HIDDEN, Made, Stack, text
from torch import Tensor, nn


def _frozen(batch: int, *names: str) -> Made:
    """Parameters whose names start so do not train."""
    module = Stack()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(names))
    return module, text(batch)


def embedding(batch: int) -> Made:
    return _frozen(batch, "emb")


def first_half(batch: int) -> Made:
    return _frozen(batch, "emb", "blocks.0", "blocks.1")


def last_half(batch: int) -> Made:
    return _frozen(batch, "blocks.2", "blocks.3")


def attention_of_even_blocks(batch: int) -> Made:
    return _frozen(batch, "blocks.0.attention", "blocks.2.attention")


def all_but_head(batch: int) -> Made:
    return _frozen(batch, "emb", "blocks", "norm")


def all_but_norms(batch: int) -> Made:
    module, made = _frozen(batch)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("norm" in name)
    return module, made


def all_but_biases(batch: int) -> Made:
    module, made = _frozen(batch)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return module, made


class Adapted(nn.Module):
    """A frozen linear and a trained product of low rank beside it, the second factor zero at first."""

    def __init__(self, linear: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) * 0.1)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + 2.0 * ((x @ self.a.T) @ self.b.T)


def _adapted(batch: int, layers: range) -> Made:
    module = Stack().requires_grad_(False)
    for n in layers:
        block = module.blocks[n]
        block.attention.qkv, block.down = Adapted(block.attention.qkv), Adapted(block.down)
    return module, text(batch)


def lora(batch: int) -> Made:
    return _adapted(batch, range(4))


def lora_in_last_blocks(batch: int) -> Made:
    return _adapted(batch, range(2, 4))


def prompt(batch: int) -> Made:
    """A learned prompt before the tokens, all else frozen; a class from a masked mean."""

    class Prompted(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.requires_grad_(False)
            self.prompt, self.cls = nn.Parameter(torch.randn(4, HIDDEN) * 0.1), nn.Linear(HIDDEN, 8)
            del self.head

        def forward(self, tokens: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
            x = torch.cat([self.prompt[None].expand(tokens.shape[0], -1, -1), self.emb(tokens)], 1)
            mask = attention_mask[..., None].to(x.dtype)
            pooled = (self.body(x)[:, 4:] * mask).sum(1) / mask.sum(1).clamp(min=1)
            return self.loss(self.cls(pooled), labels)

    made = text(batch)
    rows = torch.arange(batch)
    mask = (torch.arange(16)[None] < 4 + rows[:, None] % 12).long()
    return Prompted(), {"tokens": made["tokens"], "attention_mask": mask, "labels": rows % 8}


def no_grad_region(batch: int) -> Made:
    """A feature of the same embedding that is made without autograd."""

    class Partly(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                mean = self.emb(tokens).mean(-1, keepdim=True)
            return self.loss(self.head(self.body(self.emb(tokens) + mean)), labels)

    return Partly(), text(batch)


def detached_branch(batch: int) -> Made:
    """Every block reads the first values, cut off."""

    class Cut(Stack):
        def body(self, x: Tensor) -> Tensor:
            first = x
            for block in self.blocks:
                x = block(x + 0.1 * first.detach())
            return self.norm(x)

    return Cut(), text(batch)


def gradient_set_off_by_decorator(batch: int) -> Made:
    class Teacher(Stack):
        @torch.no_grad()
        def teach(self, tokens: Tensor) -> Tensor:
            return self.emb(tokens).softmax(-1)

        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            x = self.body(self.emb(tokens) + self.teach(tokens))
            return self.loss(self.head(x), labels)

    return Teacher(), text(batch)


def unused(batch: int) -> Made:
    """A parameter that forward does not read is not decayed."""
    module = Stack()
    module.spare = nn.Linear(HIDDEN, HIDDEN)
    return module, text(batch)


def padding_row(batch: int) -> Made:
    """One row of the embedding has no gradient."""
    module = Stack()
    module.emb = nn.Embedding(64, HIDDEN, padding_idx=3)
    return module, text(batch)


CASES = named(
    equal(
        embedding, first_half, last_half, attention_of_even_blocks, all_but_head, all_but_norms, all_but_biases, lora,
        lora_in_last_blocks, prompt, no_grad_region, detached_branch, gradient_set_off_by_decorator, unused,
        padding_row,
    )
)  # fmt: skip
