"""State that forward changes, statistics of the batch, and gradients that look at the whole batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import equal, equal_or_refused, equal_unsplit, named, refused
from stack import HIDDEN, SEQ, Block, Made, Stack, text
from torch import Tensor, nn


class Kept(Stack):
    """A stack with a buffer."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", value)


def batch_norm(batch: int) -> Made:
    class Normed(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(HIDDEN)

        def body(self, x: Tensor) -> Tensor:
            return super().body(self.bn(x.transpose(1, 2)).transpose(1, 2))

    return Normed(), text(batch)


def batch_norm_frozen(batch: int) -> Made:
    """In eval mode it is a scale of each feature."""
    module, made = batch_norm(batch)
    module.bn.eval()
    return module, made


def batch_norm_without_state(batch: int) -> Made:
    """Statistics of this batch, kept nowhere."""
    module, made = batch_norm(batch)
    module.bn = nn.BatchNorm1d(HIDDEN, track_running_stats=False)
    return module, made


def standardized_over_batch(batch: int) -> Made:
    class Whitened(Stack):
        def body(self, x: Tensor) -> Tensor:
            return super().body((x - x.mean(0, keepdim=True)) / (x.std(0, keepdim=True) + 1.0))

    return Whitened(), text(batch)


def counter(batch: int) -> Made:
    class Counting(Kept):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            self.kept += 1
            return super().forward(tokens, labels)

    return Counting(torch.zeros((), dtype=torch.long)), text(batch)


def counter_assigned(batch: int) -> Made:
    class Counting(Kept):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            self.kept = self.kept + 1
            return super().forward(tokens, labels) * (self.kept / self.kept)

    return Counting(torch.zeros(())), text(batch)


def moving_average(batch: int) -> Made:
    class Averaging(Kept):
        def body(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.kept.mul_(0.9).add_(0.1 * x.abs().mean((0, 1)))
            return super().body(x / self.kept)

    return Averaging(torch.ones(HIDDEN)), text(batch)


def expert_bias(batch: int) -> Made:
    """A bias that forward corrects by what it counts (DeepSeek-V3)."""

    class Biased(Kept):
        def body(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.kept.copy_(self.kept + 0.01 * torch.sign(x.mean((0, 1))))
            return super().body(x + self.kept)

    return Biased(torch.zeros(HIDDEN)), text(batch)


def lazy_table(batch: int) -> Made:
    """A table that the first forward makes and keeps."""

    class Lazy(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.cos: Tensor | None = None

        def body(self, x: Tensor) -> Tensor:
            if self.cos is None or len(self.cos) < x.shape[1]:
                self.cos = torch.cos(torch.arange(x.shape[1])[:, None] * torch.arange(HIDDEN)[None] / 32.0)
            return super().body(x * self.cos[: x.shape[1]])

    return Lazy(), text(batch)


def lazy_table_in_dict(batch: int) -> Made:
    class Lazy(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.tables: dict[int, Tensor] = {}

        def body(self, x: Tensor) -> Tensor:
            if x.shape[1] not in self.tables:
                self.tables[x.shape[1]] = torch.sin(torch.arange(x.shape[1]).float()[:, None] / 7)
            return super().body(x + self.tables[x.shape[1]])

    return Lazy(), text(batch)


def lazy_mask_as_buffer(batch: int) -> Made:
    class Lazy(Stack):
        def body(self, x: Tensor) -> Tensor:
            if not hasattr(self, "shade"):
                self.register_buffer("shade", torch.linspace(0.5, 1.0, SEQ)[:, None], persistent=False)
            return super().body(x * self.shade)

    return Lazy(), text(batch)


def last_values_kept(batch: int) -> Made:
    """An attribute that only remembers."""

    class Remembering(Stack):
        def body(self, x: Tensor) -> Tensor:
            self.seen = x.detach()
            return super().body(x)

    return Remembering(), text(batch)


def constant_branch(batch: int) -> Made:
    """A branch on a tensor that hangs on nothing (nn.Transformer's search for a causal mask)."""

    class Branching(Stack):
        def body(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            causal = torch.triu(torch.full_like(mask, float("-inf")), 1)
            return super().body(x + 0.5 if bool((mask == causal).all()) else x)

    return Branching(), text(batch)


def constant_to_number(batch: int) -> Made:
    class Scaled(Stack):
        def body(self, x: Tensor) -> Tensor:
            return super().body(x * torch.tensor(x.shape[-1]).sqrt().item())

    return Scaled(), text(batch)


def frequency_scaled_embedding(batch: int) -> Made:
    """Its backward divides by counts in the whole batch."""
    module = Stack()
    module.emb = nn.Embedding(64, HIDDEN, scale_grad_by_freq=True)
    return module, text(batch, vocab=8)


def frequency_scaled_second_embedding(batch: int) -> Made:
    class Typed(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.kinds = nn.Embedding(2, HIDDEN)

        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            kind = F.embedding(tokens % 2, self.kinds.weight, scale_grad_by_freq=True)
            return self.loss(self.head(self.body(self.emb(tokens) + kind)), labels)

    return Typed(), text(batch)


def sparse_embedding(batch: int) -> Made:
    module = Stack()
    module.emb = nn.Embedding(64, HIDDEN, sparse=True)
    return module, text(batch)


class Experts(nn.Module):
    """Two of four experts a token, all computed; returns the balance loss besides."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, 4, bias=False)
        self.w1 = nn.Parameter(torch.randn(4, HIDDEN, 2 * HIDDEN) * 0.1)
        self.w2 = nn.Parameter(torch.randn(4, 2 * HIDDEN, HIDDEN) * 0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.gate(x).softmax(-1)
        value, index = p.topk(2, -1)
        w = torch.zeros_like(p).scatter(-1, index, value / value.sum(-1, keepdim=True))
        y = torch.einsum("bsnf,nfd->bsnd", F.gelu(torch.einsum("bsd,ndf->bsnf", x, self.w1)), self.w2)
        return (y * w[..., None]).sum(2), 4 * ((w > 0).to(p.dtype).mean((0, 1)) * p.mean((0, 1))).sum()


class Mixture(Stack):
    """Experts in place of MLPs; ``weight`` of their balance loss."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        for block in self.blocks:
            block.experts = Experts()
            del block.up, block.down

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x, balance = self.emb(tokens), 0.0
        for block in self.blocks:
            assert isinstance(block, Block)
            x = x + block.attention(block.norm1(x))
            y, term = block.experts(block.norm2(x))
            x, balance = x + y, balance + term
        loss = self.loss(self.head(self.norm(x)), labels)
        return loss + self.weight * balance if self.weight else loss


def experts_balanced(batch: int) -> Made:
    return Mixture(0.01), text(batch)


def experts(batch: int) -> Made:
    return Mixture(0.0), text(batch)


CASES = named(
    equal(batch_norm_frozen, lazy_table, lazy_table_in_dict, constant_branch, constant_to_number, experts),
    equal_or_refused("(?i)shade|buffer", lazy_mask_as_buffer),
    equal_or_refused("(?i)seen|attribute|state", last_values_kept),
    equal_or_refused("(?i)sparse", sparse_embedding),
    refused("(?i)batch_?norm|bn", batch_norm),
    refused("kept|buffer", counter, counter_assigned, moving_average, expert_bias),
    equal_unsplit("mixes? samples|separate|frequenc|scale_grad_by_freq", frequency_scaled_embedding,
                  frequency_scaled_second_embedding, experts_balanced, standardized_over_batch),
    equal_or_refused("(?i)batch_?norm|bn|samples", batch_norm_without_state),
)  # fmt: skip
