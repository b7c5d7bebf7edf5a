"""Dtypes that the model sets itself: autocast, casts, bf16 weights, complex rotary tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import equal, named
from stack import HEADS, HIDDEN, SEQ, Attention, Made, Stack, text
from torch import Tensor


def autocast(batch: int) -> Made:
    class Cast(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = self.logits(tokens)
            return self.loss(logits.float(), labels)

    return Cast(), text(batch)


def autocast_of_all(batch: int) -> Made:
    class Cast(Stack):
        @torch.autocast("cpu", dtype=torch.bfloat16)
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            return super().forward(tokens, labels)

    return Cast(), text(batch)


def autocast_off_inside(batch: int) -> Made:
    class Cast(Stack):
        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.body(self.emb(tokens))
                with torch.autocast("cpu", enabled=False):
                    return self.loss(self.head(x.float()), labels)

    return Cast(), text(batch)


def autocast_off_alone(batch: int) -> Made:
    """Rotary tables of transformers are made so."""

    class Cast(Stack):
        def body(self, x: Tensor) -> Tensor:
            with torch.autocast(device_type="cpu", enabled=False):
                angle = torch.arange(x.shape[1]).float()[:, None] / 9
            return super().body(x * angle.cos())

    return Cast(), text(batch)


def bf16_weights(batch: int) -> Made:
    return Stack().bfloat16(), text(batch)


def logits_in_float32(batch: int) -> Made:
    class Cast(Stack):
        def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            return super().loss(logits.float(), labels)

    return Cast().bfloat16(), text(batch)


def norm_in_float32(batch: int) -> Made:
    """RMS norm that casts up and back (Llama)."""

    class Cast(Stack):
        def body(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                y = x.to(torch.float32)
                y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
                x = block(y.type_as(x))
            return self.norm(x)

    return Cast(), text(batch)


def softmax_dtype(batch: int) -> Made:
    class Cast(Stack):
        def body(self, x: Tensor) -> Tensor:
            return super().body(x + F.softmax(x, dim=-1, dtype=torch.float32).to(x.dtype))

    return Cast(), text(batch)


class Rotated(Attention):
    """Queries and keys as complex numbers, times a table of unit length (Llama's reference)."""

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        assert table is not None
        q, k, v = (t.unflatten(-1, (HEADS, -1)) for t in self.qkv(x).chunk(3, -1))
        q, k = (self.turn(t, table[None, : x.shape[1], None]) for t in (q, k))
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def turn(self, t: Tensor, table: Tensor) -> Tensor:
        pairs = torch.view_as_complex(t.float().reshape(*t.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * table).flatten(3).type_as(t)


class Polar(Rotated):
    """The same through torch.complex, real and imag."""

    def turn(self, t: Tensor, table: Tensor) -> Tensor:
        even, odd = t[..., ::2], t[..., 1::2]
        turned = torch.complex(even, odd) * table
        return torch.stack([turned.real, turned.imag], -1).flatten(3)


class Turning(Stack):
    """``table`` is complex, a buffer or an attribute."""

    def __init__(self, kind: type[Rotated], buffer: bool, made: bool = False) -> None:
        super().__init__()
        self.made = made
        for block in self.blocks:
            block.attention = kind()
        if buffer:
            self.register_buffer("table", self.polar())
        else:
            self.table = self.polar()

    def polar(self) -> Tensor:
        width = HIDDEN // HEADS
        angle = torch.outer(torch.arange(SEQ).float(), 1e4 ** -(torch.arange(0, width, 2) / width))
        return torch.polar(torch.ones_like(angle), angle)

    def body(self, x: Tensor) -> Tensor:
        table = self.polar() if self.made else self.table
        for block in self.blocks:
            x = x + block.attention(block.norm1(x), table)
            x = x + block.mlp(block.norm2(x))
        return self.norm(x)


def complex_buffer(batch: int) -> Made:
    return Turning(Rotated, True), text(batch)


def complex_attribute(batch: int) -> Made:
    return Turning(Rotated, False), text(batch)


def complex_made_in_forward(batch: int) -> Made:
    return Turning(Rotated, True, made=True), text(batch)


def complex_of_two_parts(batch: int) -> Made:
    return Turning(Polar, True), text(batch)


def complex_hidden_states(batch: int) -> Made:
    """Complex values cross blocks and stages."""

    class Spectral(Stack):
        def body(self, x: Tensor) -> Tensor:
            y = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            for block in self.blocks:
                y = y * torch.polar(torch.ones(SEQ, 1), torch.arange(SEQ).float()[:, None] / 5)
                y = y + torch.view_as_complex(block(torch.view_as_real(y).flatten(-2)).unflatten(-1, (-1, 2)))
            return self.norm(torch.view_as_real(y).flatten(-2))

    return Spectral(), text(batch)


CASES = named(
    equal(
        autocast, autocast_of_all, autocast_off_inside, autocast_off_alone, bf16_weights, logits_in_float32,
        norm_in_float32, softmax_dtype, complex_buffer, complex_attribute, complex_made_in_forward,
        complex_of_two_parts,
    ),
    equal(complex_hidden_states),
)  # fmt: skip
