"""What runs again in each way of recomputing, of blocks small enough to follow by eye."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import search, trace
from partitioner.graph.graph import Graph
from partitioner.graph.tied_blocks import Folded, fold
from partitioner.layouts.from_plan import recall
from partitioner.layouts.op_kinds import core
from partitioner.layouts.run_again import RunAgain, run_again
from partitioner.layouts.solution import Solution
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, OPERATORS, SELECTIVE, WAYS
from partitioner.sharding.layout import layout_word
from tools.verify.plan_families import cluster

WIDTH, HEADS, TOKENS = 32, 4, 16


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=n == 0) for n in range(4))
        self.fused = fused

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        rows = ((self.q, x), (self.k, source), (self.v, source))
        q, k, v = (f(t).unflatten(2, (HEADS, -1)).transpose(1, 2) for f, t in rows)
        if self.fused:
            made = F.scaled_dot_product_attention(q, k, v)
        else:
            made = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.out(made.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, fused: bool, twice: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH, bias=False)
        self.attention = Attention(fused)
        self.again = Attention(fused) if twice else None

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y)
        if self.again is not None:
            x = x + self.again(x, first)
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    def __init__(self, fused: bool = True, twice: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11)
        self.blocks = nn.ModuleList(Block(fused, twice) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first = hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden, first)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), y.flatten())


def traced(**options: bool) -> Graph:
    tokens = torch.zeros(2, TOKENS, dtype=torch.int64)
    return trace(Model(**options), {"x": tokens, "y": tokens}, compare=False)


def laid_out(graph: Graph, tp: int = 1) -> tuple[Folded, Solution]:
    pins: dict[str, str | int] = {"tp": tp, "pp": 1, "micro_batch": 2}
    rows = {"boundary": "sharded", "blocks.*.attention.out": "shard:1", "blocks.*.up": "shard:0"}
    plan = search(graph, cluster(tp), 2, pins | (rows if tp > 1 else {}))
    folded = fold(graph)
    return folded, recall(plan, folded)


def of_block(graph: Graph, way: str, tp: int = 1) -> tuple[RunAgain, list[torch.fx.Node]]:
    folded, solution = laid_out(graph, tp)
    group = next(g for g, units in enumerate(folded.groups) if units[0].is_block)
    return run_again(folded, solution, group, way), folded.body(group)


def words(nodes: object) -> list[str]:
    return [str(node.target).split(".")[1] for node in nodes]  # type: ignore[attr-defined]


def test_operators_keep_products_and_attention() -> None:
    """Of ``down`` nothing is needed; a bias is one op with its product; reshapes are views that run again."""
    row, body = of_block(traced(), OPERATORS)
    assert [(str(n.target).split(".")[1], kind) for (n, _), kind in row.kept.items()] == [
        ("add", "product"), ("linear", "product"), ("linear", "product"),  # q with its bias, k, v
        ("scaled_dot_product_attention", "attention"), ("linear", "product"), ("add", "product"),  # out, up
    ]  # fmt: skip
    computing = [w for w in words(row.again) if w not in ("reshape", "permute", "view", "transpose", "unflatten")]
    assert computing == ["layer_norm", "add", "gelu", "linear"]
    assert row.begun == {row.again[-1]}
    assert row.regions == (frozenset(body),)
    assert row.is_whole
    assert not row.sent_again


def test_scores_that_are_written_out_are_not_kept() -> None:
    """Not of operators, whose products by weights are; selective runs them again, and nothing else."""
    row, _ = of_block(traced(fused=False), OPERATORS)
    assert "attention" not in row.kept.values()
    assert words(row.again).count("matmul") == 2
    assert "softmax" in words(row.again)
    some, _ = of_block(traced(fused=False), SELECTIVE)
    assert not some.is_whole
    assert not some.kept
    computing = [w for w in words(some.again) if w in ("matmul", "softmax", "linear", "gelu")]
    assert computing == ["matmul", "softmax", "matmul"]
    (region,) = some.regions
    assert set(some.again) <= region
    assert words(some.begun) == ["matmul"]  # the last need only begin: torch stops there


@pytest.mark.parametrize("fused", [True, False])
def test_two_attentions_have_two_cores(fused: bool) -> None:
    """What lies between them, the products by weights and a sum, belongs to neither."""
    folded = fold(traced(fused=fused, twice=True))
    group = next(g for g, units in enumerate(folded.groups) if units[0].is_block)
    found = words(core(folded.body(group)))
    assert not {"linear", "layer_norm"} & {*found}
    wanted = ["scaled_dot_product_attention"] * 2 if fused else ["matmul", "softmax", "matmul"] * 2
    assert [w for w in found if w in ("matmul", "softmax", "scaled_dot_product_attention")] == wanted


def test_a_product_that_only_a_collective_reads_is_passed_on() -> None:
    """tp 2, boundaries divided: ``out`` is scattered; operators gather again, full sends all of it."""
    graph = traced()
    row, _ = of_block(graph, OPERATORS, 2)
    collectives = [node for (node, _), kind in row.kept.items() if kind == "collective"]
    passed = [node for node, _ in row.passed]
    assert any(node in passed for node in collectives)
    assert not set(passed) & set(row.again)
    full = of_block(graph, FULL_RECOMPUTE, 2)[0].sent_again
    assert {layout_word(move.target) for move, _ in row.sent_again} == {"R"}
    assert row.sent_again < full


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        return x + (weights.unsqueeze(-1) * self.experts[chosen] * x.unsqueeze(-2)).sum(-2)


class Router(Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(Routed()) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), y.flatten())


@pytest.mark.parametrize("way", [way for way, row in WAYS.items() if row.whole])
def test_a_choice_is_kept_so_that_it_is_the_same(way: str) -> None:
    tokens = torch.zeros(2, TOKENS, dtype=torch.int64)
    row, _ = of_block(trace(Router(), {"x": tokens, "y": tokens}, compare=False), way)
    (chosen,) = (node for (node, _), kind in row.kept.items() if kind == "choice")
    assert chosen.target == torch.ops.partitioner.top_indices.default
    assert chosen not in row.again
