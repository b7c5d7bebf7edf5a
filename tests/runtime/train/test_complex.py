"""Complex values have gradients, are divided, and cross ranks and stages."""

from __future__ import annotations

import pytest
import torch
from eager import PINS, Batch, Make, check, traced
from torch import nn
from torch.nn import functional as F

from partitioner import search
from partitioner.comparing.graph_float64 import promote
from tools.verify.plan_families import cluster

VOCAB, WIDTH, SEQ, HEADS = 16, 16, 6, 4


def turns() -> torch.Tensor:
    angles = torch.outer(torch.arange(SEQ).float(), 1.0 / 100.0 ** (torch.arange(0, 4, 2) / 4))
    return torch.polar(torch.ones_like(angles), angles)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        q, k, v = (part(x).view(b, s, HEADS, -1) for part in (self.query, self.key, self.value))
        q, k = (self.turned(t, table) for t in (q, k))
        found = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        return self.out(found.transpose(1, 2).reshape(b, s, -1))

    def turned(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * table[None, :, None]).flatten(3)


class Turned(nn.Module):
    """``kept``: the table is a buffer, else a plain attribute."""

    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.blocks = nn.ModuleList(Attention() for _ in range(4))
        if kept:
            self.register_buffer("table", turns())
        else:
            self.table = turns()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(F.rms_norm(h, (WIDTH,)), self.table)
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


class Phases(nn.Module):
    """A complex state handed from block to block, of learned sizes and angles; conjugates, and parts read off it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.size, self.angle = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)) for _ in range(2))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        state = torch.complex(h, torch.tanh(h))
        for size, angle in zip(self.size, self.angle, strict=True):
            state = state + torch.polar(F.softplus(size(state.real)), angle(state.imag)) * state.conj().resolve_conj()
        return F.cross_entropy(self.head(state.abs() + state.angle()).flatten(0, 1), y.flatten())


def tokens(samples: int) -> Batch:
    return {"x": torch.randint(VOCAB, (samples, SEQ)), "y": torch.randint(VOCAB, (samples, SEQ))}


def as_buffer(samples: int) -> tuple[nn.Module, Batch]:
    return Turned(True), tokens(samples)


def as_attribute(samples: int) -> tuple[nn.Module, Batch]:
    return Turned(False), tokens(samples)


def phases(samples: int) -> tuple[nn.Module, Batch]:
    return Phases(), tokens(samples)


CASES: dict[str, Make] = {f.__name__: f for f in (as_buffer, as_attribute, phases)}


def test_complex_values_under_every_plan() -> None:
    check(CASES, PINS)


@pytest.mark.parametrize("make", [as_buffer, as_attribute])
def test_heads_stay_divided(make: Make) -> None:
    plan = search(traced(make), cluster(2), 4, {"tp": 2})
    turning = [op for block in plan.blocks for op in block.ops if "view_as" in op.op]
    assert turning
    assert all(isinstance(op.result, list) for op in turning)
    assert not plan.notes


def test_promoted_complex_values_are_twice_as_wide() -> None:
    graph = promote(traced(as_buffer))
    kinds = {n.meta["val"].dtype for n in graph.nodes.values() if n.op != "output"}
    assert kinds <= {torch.float64, torch.complex128, torch.int64}
    assert graph.buffers["table"].dtype == torch.complex128
