"""What a sweep times on one device: products, streams, pointwise training, attention, whole blocks, tiny kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

Call = Callable[[], object]
TINY = 300  # kernels of the chain that times a launch
PEAK_SIDES = {"cpu": (512, 1024), "cuda": (4096, 8192)}
TOKENS = {"cpu": (128, 512, 1024), "cuda": (2048, 8192)}
WIDTHS = {"cpu": (128, 256, 512), "cuda": (1024, 4096)}
STREAMED = {"cpu": (16e6, 64e6, 256e6), "cuda": (256e6, 1024e6)}
HEADS = {"cpu": (8, 32), "cuda": (32, 128)}  # of attention: heads, size of one
SEQUENCES = {"cpu": (128, 256), "cuda": (1024, 4096)}
BLOCKS = {
    "cpu": ((2, 128, 8, 128), (8, 128, 8, 128), (2, 128, 8, 256), (8, 128, 8, 256)),
    "cuda": ((2, 2048, 16, 2048), (4, 2048, 16, 2048), (2, 2048, 32, 4096)),
}
TINY_BLOCK = (2, 16, 2, 16)
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}


@dataclass(frozen=True)
class Probe:
    """One thing to time; ``make`` builds its tensors and returns what is timed, of ``ranks`` ranks on ``nodes`` nodes;
    it does ``calls`` of its kind.

    ``size``: m, n, k of a product; bytes of a stream and of a collective's payload; b, h, s, e of attention; kernels of
    a launch; tokens and width of pointwise training; b, s, heads and width of a block.
    """

    kind: str
    dtype: torch.dtype
    size: tuple[int, ...]
    make: Callable[[], Call]
    ranks: int = 1
    nodes: int = 1
    calls: int = 1


def device_probes(device: torch.device, quick: bool) -> Iterator[Probe]:
    """All of one device's; ``quick`` leaves out the largest sizes."""
    few = slice(0, 1 if quick else None)
    for dtype in DTYPES[device.type]:
        for side in PEAK_SIDES[device.type][few]:
            yield _product("peak", dtype, (side, side, side), device)
        if dtype == DTYPES[device.type][0]:
            yield from _training_products(device, dtype, few)
    dtype = DTYPES[device.type][0]
    for size in STREAMED[device.type][few]:
        for kind in ("add", "copy"):
            yield Probe(kind, dtype, (int(size),), lambda k=kind, s=size: _stream(k, int(s), device))
    for tokens in TOKENS[device.type]:
        for width in WIDTHS[device.type][few]:
            yield Probe("pointwise", dtype, (tokens, width), lambda t=tokens, w=width: _pointwise(t, w, device))
    for seq in SEQUENCES[device.type]:
        size = (4, HEADS[device.type][0], seq, HEADS[device.type][1])
        yield Probe("attention", dtype, size, lambda s=size: _attention(s, device))
    for size in (TINY_BLOCK, *BLOCKS[device.type]):
        yield Probe("block", dtype, size, lambda s=size: _block(s, device))
    yield Probe("launch", dtype, (2 * TINY,), lambda: _launches(device))


def _training_products(device: torch.device, dtype: torch.dtype, few: slice) -> Iterator[Probe]:
    """A block's products, in which the width is each of m, n, k in turn as in a weight's gradient."""
    for tokens in TOKENS[device.type][few]:
        for width in WIDTHS[device.type]:
            for size in ((tokens, 3 * width, width), (tokens, width, 4 * width), (4 * width, width, tokens)):
                yield _product("gemm", dtype, size, device)


def _product(kind: str, dtype: torch.dtype, size: tuple[int, ...], device: torch.device) -> Probe:
    m, n, k = size

    def make() -> Call:
        x, weight = torch.randn(m, k, dtype=dtype, device=device), torch.randn(n, k, dtype=dtype, device=device)
        return lambda: F.linear(x, weight)

    return Probe(kind, dtype, size, make)


def _stream(kind: str, size: int, device: torch.device) -> Call:
    """``size`` bytes move in all: an add reads two tensors and writes one, a copy reads one."""
    count = size // 4 // (3 if kind == "add" else 2)
    x, y, out = (torch.ones(count, device=device) for _ in range(3))
    return (lambda: torch.add(x, y, out=out)) if kind == "add" else (lambda: out.copy_(x))


def _pointwise(tokens: int, width: int, device: torch.device) -> Call:
    """Forward and backward of ``x + gelu(norm(x))``."""
    x = torch.randn(tokens, width, device=device, requires_grad=True)
    weight, bias = (torch.ones(width, device=device, requires_grad=True) for _ in range(2))
    gradient = torch.ones_like(x)

    def run() -> None:
        y = x + F.gelu(F.layer_norm(x, (width,), weight, bias))
        torch.autograd.grad(y, (x, weight, bias), gradient)

    return run


def _attention(size: tuple[int, ...], device: torch.device) -> Call:
    query, key, value = (torch.randn(size, device=device, requires_grad=True) for _ in range(3))
    gradient = torch.ones_like(query)

    def run() -> None:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(mixed, (query, key, value), gradient)

    return run


def keeps_scores(device: torch.device) -> bool:
    """Whether autograd keeps the scores of causal attention on this device."""
    kept: list[int] = []
    x = torch.randn(1, 1, 64, 8, device=device, requires_grad=True)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.scaled_dot_product_attention(x, x, x, is_causal=True)
    return max(kept) >= 64 * 64


class Block(nn.Module):
    """A transformer's block and a loss over its result."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # b s d, b s
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # b h s e
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return F.cross_entropy(x.flatten(0, 1), labels.flatten())


def block(size: tuple[int, ...], device: torch.device) -> tuple[Block, dict[str, torch.Tensor]]:
    """A block of b, s, heads and width, and its batch."""
    b, s, heads, width = size
    labels = torch.zeros(b, s, dtype=torch.int64, device=device)
    return Block(heads, width).to(device), {"x": torch.randn(b, s, width, device=device), "labels": labels}


def _block(size: tuple[int, ...], device: torch.device) -> Call:
    """Forward and backward, gradients added up as in a step of many micro-batches."""
    module, batch = block(size, device)
    batch["x"].requires_grad_()
    return lambda: module(**batch).backward()


def _launches(device: torch.device) -> Call:
    x = torch.zeros(16, device=device, requires_grad=True)
    gradient = torch.ones_like(x)

    def run() -> None:
        y = x
        for _ in range(TINY):
            y = torch.sin(y)
        torch.autograd.grad(y, x, gradient)

    return run
