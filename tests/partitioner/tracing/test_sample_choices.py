"""Tables as long as the batch are told from samples; the graph is the eager module in micro-batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from partitioner.comparing.graph_float64 import promote
from partitioner.graph.graph import Graph
from partitioner.graph.interpret import interpret
from partitioner.graph.resize_batch import resize
from partitioner.tracing.trace import trace

CLASSES, WIDTH, HEADS = 11, 8, 2
Batch = dict[str, torch.Tensor]


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Decoder(nn.Module):
    """One attention that reads what tables its batch has; ``rows`` says how it takes the rows of one."""

    def __init__(self, rows: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(CLASSES, WIDTH), nn.Embedding(64, WIDTH)
        self.qkv, self.out, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.rows = rows

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, cos: torch.Tensor | None = None, sin: torch.Tensor | None = None,
        at: torch.Tensor | None = None, mask: torch.Tensor | None = None, weight: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        h = self.embed(x)
        h = h if at is None else h + self.positions(self.rows(at, x))
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        if cos is not None and sin is not None:
            q, k = (_turned(t, self.rows(cos, x), self.rows(sin, x)) for t in (q, k))
        if mask is not None:
            mask = self.rows(self.rows(mask, x).T, x).T
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        z = self.head(h + self.out(a.transpose(1, 2).flatten(2)))
        each = F.cross_entropy(z.transpose(1, 2), y, reduction="none")
        return each.mean() if weight is None else (each * self.rows(weight, x)).mean()


ROWS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "whole": lambda table, x: table,
    "the first": lambda table, x: table[: x.shape[1]],
    "picked": lambda table, x: table[torch.arange(x.shape[1])],
    "selected": lambda table, x: table.index_select(0, torch.arange(x.shape[1])),
}
TABLES = (("cos", "sin"), ("at",), ("mask",), ("cos", "sin", "at"), ("cos", "sin", "at", "mask", "weight"))


def _batch(samples: int, tokens: int, tables: tuple[str, ...], length: int = 0) -> Batch:
    """``tables`` have ``length`` rows, or as many as there are tokens."""
    rows = torch.arange(length or tokens)
    turns = rows[:, None] * torch.linspace(0.5, 1.5, WIDTH // HEADS)[None]
    made = {
        "cos": turns.cos(), "sin": turns.sin(), "at": rows, "weight": torch.linspace(0.5, 1.5, len(rows)),
        "mask": (rows[:, None] >= rows[None]) & (rows[:, None] + rows[None] != 3),
    }  # fmt: skip
    x = torch.randint(CLASSES, (samples, tokens), generator=torch.Generator().manual_seed(samples))
    return {"x": x, "y": x.roll(-1, 1)} | {name: made[name] for name in tables}


def _differ(model: nn.Module, graph: Graph, batch: Batch) -> float:
    """Of two micro-batches of three samples and the module, in float64: losses here are means over samples."""
    model, graph = model.double(), resize(promote(graph), 3)
    batch = {n: t.double() if t.is_floating_point() else t for n, t in batch.items()}
    own = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    for part in (slice(0, 3), slice(3, 6)):
        rows = {n: t[part] if n in graph.batched else t for n, t in batch.items()}
        (interpret(graph, own, rows) / 2).backward()
    model(**batch).backward()
    pairs = [(own[n].grad, p.grad) for n, p in model.named_parameters()]
    return max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None)


_FEW = {*(("whole", tables) for tables in TABLES), *((rows, ("cos", "sin")) for rows in ROWS)}
_EVERY = [  # all pairs; but for a few with the sweep
    pytest.param(rows, tables, id=f"{rows}-{'-'.join(tables)}",
                 marks=() if (rows, tables) in _FEW else pytest.mark.parity)
    for rows in ROWS for tables in TABLES
]  # fmt: skip


@pytest.mark.parametrize(("rows", "tables"), _EVERY)
def test_tables_as_long_as_the_batch_carry_no_samples(rows: str, tables: tuple[str, ...]) -> None:
    model = Decoder(ROWS[rows])
    graph = trace(model, _batch(4, 4, tables))
    assert (graph.batched, graph.inseparable) == (("x", "y"), None)
    assert any(all(name in note for name in tables) for note in graph.notes)
    assert _differ(model, graph, _batch(6, 4, tables)) < 1e-12


def test_a_table_longer_than_its_samples_and_as_long_as_the_batch_carries_none() -> None:
    model, tables = Decoder(ROWS["the first"]), ("cos", "sin")
    graph = trace(model, _batch(8, 4, tables, 8))
    assert (graph.batched, graph.inseparable) == (("x", "y"), None)
    assert _differ(model, graph, _batch(6, 4, tables, 8)) < 1e-12


@pytest.mark.parametrize("samples", [1, 3])
def test_more_tables_than_tensors_of_samples(samples: int) -> None:
    model, tables = Decoder(ROWS["whole"]), ("cos", "sin", "at", "mask", "weight")
    graph = trace(model, _batch(samples, 4, tables))
    assert (graph.batched, graph.inseparable) == (("x", "y"), None)
    assert _differ(model, graph, _batch(6, 4, tables)) < 1e-12


class Looked(Decoder):
    """Turns by a table at positions that each sample has."""

    def __init__(self) -> None:
        super().__init__(lambda table, x: table[x % 4][:, None])


def test_a_table_that_samples_look_up_carries_none() -> None:
    model, tables = Looked(), ("cos", "sin")
    graph = trace(model, _batch(4, 4, tables))
    assert (graph.batched, graph.inseparable) == (("x", "y"), None)
    assert _differ(model, graph, _batch(6, 4, tables)) < 1e-12


class Weighted(nn.Module):
    """Each sample's loss by its weight, or all by the weights' deviation; ``unread`` are others."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.linear, self.mixes = nn.Linear(5, 7), mixes

    def forward(self, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, unread: torch.Tensor) -> torch.Tensor:
        each = F.cross_entropy(self.linear(x), y, reduction="none")
        return each.mean() * w.std() if self.mixes else (each * w).sum() / w.sum()


@pytest.mark.parametrize("mixes", [True, False])
def test_what_carries_samples_stays_so(mixes: bool) -> None:
    """Also where the loss mixes them, and an input at the side would not."""
    batch = {"x": torch.randn(4, 5), "y": torch.arange(4), "w": torch.rand(4), "unread": torch.rand(4)}
    graph = trace(Weighted(mixes), batch)
    assert (graph.inseparable is not None) == mixes
    assert {"x", "y", "w"} <= {*graph.batched}
