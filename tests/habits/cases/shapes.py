"""Shapes of models: shared blocks, skips, encoder and decoder, odd heads, einsum weights, what forward returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from case import equal, named
from stack import HEADS, HIDDEN, VOCAB, Attention, Made, Stack, text, tokens
from torch import Tensor, nn


def plain(batch: int) -> Made:
    return Stack(), text(batch)


def one_block_again(batch: int) -> Made:
    """One block, applied four times (ALBERT)."""

    class Shared(Stack):
        def body(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = self.blocks[0](x)
            return self.norm(x)

    return Shared(blocks=1), text(batch)


def two_blocks_again(batch: int) -> Made:
    class Shared(Stack):
        def body(self, x: Tensor) -> Tensor:
            for n in range(4):
                x = self.blocks[n % 2](x)
            return self.norm(x)

    return Shared(blocks=2), text(batch)


def skips(batch: int) -> Made:
    """Block i hands its result to block L - 1 - i (U-ViT)."""

    class Skipping(Stack):
        def body(self, x: Tensor) -> Tensor:
            held: list[Tensor] = []
            for n, block in enumerate(self.blocks):
                x = block(x + held.pop() if n >= 2 else x)
                held += [x] if n < 2 else []
            return self.norm(x)

    return Skipping(), text(batch)


def first_values_everywhere(batch: int) -> Made:
    """A vector of each layer's own mixes in the first values (modded nanoGPT)."""

    class Mixed(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.lam = nn.Parameter(torch.ones(4, 2))

        def body(self, x: Tensor) -> Tensor:
            first = x
            for n, block in enumerate(self.blocks):
                x = block(self.lam[n, 0] * x + self.lam[n, 1] * first)
            return self.norm(x)

    return Mixed(), text(batch)


def zero_outputs(batch: int) -> Made:
    """Output projections and head start at zero (nanochat, ViT heads)."""
    module = Stack()
    for layer in [b.down for b in module.blocks] + [b.attention.out for b in module.blocks] + [module.head]:
        nn.init.zeros_(layer.weight)
    return module, text(batch)


def zero_gates(batch: int) -> Made:
    """Modulation that starts at zero (adaLN-Zero), gates that start at zero (ReZero)."""

    class Gated(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.gates = nn.Parameter(torch.zeros(4))
            self.modulation = nn.Linear(HIDDEN, 2 * HIDDEN)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

        def body(self, x: Tensor) -> Tensor:
            shift, scale = self.modulation(x.mean(1, keepdim=True)).chunk(2, -1)
            for n, block in enumerate(self.blocks):
                x = x + self.gates[n] * block(x * (1 + scale) + shift)
            return self.norm(x)

    return Gated(), text(batch)


def tied_by_product(batch: int) -> Made:
    """The head is the embedding's weight, transposed by hand; the embedding is scaled."""

    class Tied(Stack):
        def logits(self, tokens: Tensor) -> Tensor:
            return self.body(self.emb(tokens) * HIDDEN**0.5) @ self.emb.weight.T

    module = Tied()
    del module.head
    return module, text(batch)


def tied_by_assignment(batch: int) -> Made:
    module = Stack()
    module.head.weight = module.emb.weight
    return module, text(batch)


class EncoderDecoder(nn.Module):
    """torch's own, with a causal mask for the decoder."""

    def __init__(self, hint: bool | None) -> None:
        super().__init__()
        self.hint = hint
        self.emb, self.head = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB)
        self.model = nn.Transformer(HIDDEN, HEADS, 3, 3, 64, 0.0, batch_first=True)

    def forward(self, source: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        given = {} if self.hint is None else {"tgt_is_causal": self.hint}
        y = self.model(self.emb(source), self.emb(tokens), tgt_mask=mask, **given)
        return F.cross_entropy(self.head(y).flatten(0, 1), labels.flatten())


def encoder_decoder(batch: int) -> Made:
    return EncoderDecoder(None), {"source": tokens(batch, 12, seed=50), **text(batch)}


def encoder_decoder_with_hint(batch: int) -> Made:
    return EncoderDecoder(True), {"source": tokens(batch, 12, seed=50), **text(batch)}


def encoder_of_torch(batch: int) -> Made:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, 64, 0.0, batch_first=True, norm_first=True)
            self.model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            self.emb, self.head = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB)

        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            y = self.head(self.model(self.emb(tokens), mask=mask, is_causal=True))
            return F.cross_entropy(y.flatten(0, 1), labels.flatten())

    return Encoder(), text(batch)


class EinsumAttention(nn.Module):
    """Weights of three dimensions, a learned temperature, a mask that is filled in."""

    def __init__(self) -> None:
        super().__init__()
        width = HIDDEN // HEADS
        self.q, self.k, self.v = (nn.Parameter(torch.randn(HIDDEN, HEADS, width) * 0.1) for _ in range(3))
        self.o, self.heat = nn.Parameter(torch.randn(HEADS, width, HIDDEN) * 0.1), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bsd,dhe->bhse", x, w) for w in (self.q, self.k, self.v))
        later = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        a = torch.einsum("bhse,bhte->bhst", q, k) * self.heat.exp()
        return torch.einsum("bhst,bhte,hed->bsd", a.masked_fill(later, float("-inf")).softmax(-1), v, self.o)


def einsum_attention(batch: int) -> Made:
    module = Stack()
    for block in module.blocks:
        block.attention = EinsumAttention()
    return module, text(batch)


def torch_attention(batch: int) -> Made:
    class Wrapped(Attention):
        def __init__(self) -> None:
            super().__init__()
            del self.qkv, self.out
            self.inner = nn.MultiheadAttention(HIDDEN, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            return self.inner(x, x, x, attn_mask=mask, need_weights=False)[0]

    module = Stack()
    for block in module.blocks:
        block.attention = Wrapped()
    return module, text(batch)


def grouped_convolution(batch: int) -> Made:
    """A causal depthwise convolution before every block, and one of four groups."""

    class Convolved(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.depth = nn.ModuleList(nn.Conv1d(HIDDEN, HIDDEN, 3, groups=HIDDEN) for _ in range(2))
            self.group = nn.ModuleList(nn.Conv1d(HIDDEN, HIDDEN, 3, groups=4) for _ in range(2))

        def body(self, x: Tensor) -> Tensor:
            convolutions = [*self.depth, *self.group]
            for block, convolution in zip(self.blocks, convolutions, strict=True):
                x = block(x + convolution(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2))
            return self.norm(x)

    return Convolved(), text(batch)


def patches(batch: int) -> Made:
    """Images, a class token, a class."""

    class Vision(Stack):
        def __init__(self) -> None:
            super().__init__(vocab=8)
            del self.emb
            self.patch, self.cls = nn.Conv2d(3, HIDDEN, 4, 4), nn.Parameter(torch.randn(1, 1, HIDDEN) * 0.02)
            self.pos = nn.Parameter(torch.randn(1, 16, HIDDEN) * 0.02)

        def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
            x = self.patch(pixels).flatten(2).transpose(1, 2)[:, :15]
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
            return F.cross_entropy(self.head(self.body(x)[:, 0]), labels)

    pixels = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Vision(), {"pixels": pixels, "labels": torch.arange(batch) % 8}


def odd_heads(batch: int) -> Made:
    """Two ranks do not divide three heads."""

    class Three(Attention):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(HIDDEN, 3 * 36), nn.Linear(36, HIDDEN)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (3, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(y.transpose(1, 2).flatten(2))

    module = Stack()
    for block in module.blocks:
        block.attention = Three()
    return module, text(batch)


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


class Named(NamedTuple):
    logits: Tensor
    loss: Tensor


class Returning(Stack):
    """``put`` makes what forward returns of logits and loss."""

    def __init__(self, put: Any) -> None:
        super().__init__()
        self.put = put

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.logits(tokens)
        return self.put(logits, None if labels is None else self.loss(logits, labels))


def loss_first(batch: int) -> Made:
    return Returning(lambda logits, loss: (loss, logits)), text(batch)


def loss_last(batch: int) -> Made:
    return Returning(lambda logits, loss: (logits, loss)), text(batch)


def loss_in_dict(batch: int) -> Made:
    return Returning(lambda logits, loss: {"logits": logits, "loss": loss}), text(batch)


def loss_by_another_key(batch: int) -> Made:
    return Returning(lambda logits, loss: {"logits": logits, "total": loss}), text(batch)


def loss_in_dataclass(batch: int) -> Made:
    return Returning(lambda logits, loss: Output(loss, logits)), text(batch)


def loss_in_named_tuple(batch: int) -> Made:
    return Returning(lambda logits, loss: Named(logits, loss)), text(batch)


def loss_in_list(batch: int) -> Made:
    return Returning(lambda logits, loss: [logits, {"hidden": logits}, loss]), text(batch)


CASES = named(
    equal(
        plain, one_block_again, two_blocks_again, skips, first_values_everywhere, zero_outputs, zero_gates,
        tied_by_product, tied_by_assignment, encoder_decoder, encoder_decoder_with_hint, encoder_of_torch,
        einsum_attention, torch_attention, patches, loss_first, loss_last, loss_in_dict,
        loss_by_another_key, loss_in_dataclass, loss_in_named_tuple, loss_in_list,
    ),
    equal(grouped_convolution, odd_heads, divided=0.5),
)  # fmt: skip
