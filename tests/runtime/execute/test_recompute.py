"""What is recomputed is what ran: the same gradients as with everything kept, and no product or choice twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import lower, search, trace
from partitioner.comparing.graph_float64 import promote
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, NO_RECOMPUTE, OPERATORS, SELECTIVE, WAYS
from partitioner.user_code.compiled import written_parameters
from runtime.verify.parity import engine_of, own_samples
from tests.runtime import plans
from tests.runtime.op_counts import counting
from tools.verify.plan_families import cluster

RANKS, BATCH, WIDTH = 2, 4, 16
Pins = dict[str, str | int]


class Block(nn.Module):
    """Attention, fused or written out, dropout, and experts that a router chooses."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.router, self.scales = nn.Linear(WIDTH, 4, bias=False), nn.Parameter(torch.randn(4, WIDTH))
        self.up, self.down, self.fused = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH, bias=False), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        if self.fused:
            made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            made = F.dropout(((q @ k.transpose(2, 3)) * 0.3).softmax(-1), 0.1) @ v
        x = x + F.dropout(self.out(made.transpose(1, 2).flatten(2)), 0.2)
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        x = x + (weights.unsqueeze(-1) * self.scales[chosen] * x.unsqueeze(-2)).sum(-2)
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(13, WIDTH), nn.Linear(WIDTH, 13)
        self.blocks = nn.ModuleList(Block(fused) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), y.flatten())


Ran = tuple[dict[str, Tensor], Counter[str], set[str]]


def gradients(make: Callable[[], nn.Module], pins: Pins, way: str) -> Ran:
    """Of a step under a plan; its ops, and by which collectives it communicates again."""
    torch.manual_seed(3)
    model = make()
    x, y = (torch.randint(13, (BATCH, 6), generator=torch.Generator().manual_seed(n)) for n in (4, 5))
    graph = promote(trace(model, {"x": x[:2], "y": y[:2]}, compare=False))
    plan = search(graph, cluster(RANKS), BATCH, {"micro_batch": 1, "recompute": way, **pins})
    program = lower(graph, plan)
    start = {n: p.detach().double() for n, p in written_parameters(model).items()}
    engine = engine_of(program, start)
    engine.groups.log.keep = True
    with counting() as ops:
        engine.gradients(own_samples(program, engine.groups, {"x": x, "y": y}))
    again = {row.kind for row in engine.groups.log.rows if row.phase == "recompute"}
    return {n: p.grad for n, p in engine.parameters.items() if p.grad is not None}, ops, again


class Table(nn.Module):
    """Its rows are looked up in a block: a Partial over a divided vocabulary, summed where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(13, WIDTH), nn.Linear(WIDTH, 13)
        self.blocks = nn.ModuleList(Looking() for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden, x)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), y.flatten())


class Looking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(14, WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH, bias=False)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.table(tokens))))


PLANS: dict[str, Pins] = {
    "dp": {"dp": 2}, "tp": {"tp": 2, "boundary": "whole"}, "tp, sharded": {"tp": 2, "boundary": "sharded"},
    "pp": {"pp": 2, "schedule": "1f1b"}, "ZeRO 3": {"dp": 2, "zero": 3},
}  # fmt: skip
PRODUCTS = ("mm", "addmm", "bmm")


def _same(rank: int, fused: bool) -> None:
    wrong: list[str] = []
    for name, pins in PLANS.items():
        wanted, plain, _ = gradients(lambda: Model(fused), pins, NO_RECOMPUTE)
        products = {None: sum(plain[op] for op in PRODUCTS)}
        for way in WAYS:
            found, ops, again = gradients(lambda: Model(fused), pins, way)
            differ = [n for n, grad in wanted.items() if not torch.allclose(found[n], grad, rtol=1e-12, atol=1e-14)]
            wrong += [f"{name}, {way}: {differ}"] if differ else []
            products[way] = sum(ops[op] for op in PRODUCTS)
            wrong += [f"{name}, {way}: chooses again"] if way != SELECTIVE and ops["topk"] != plain["topk"] else []
            if "tp" in pins and (way == FULL_RECOMPUTE) != bool(again - {"all_gather"}):
                wrong.append(f"{name}, {way}: sends again by {again}")
        if fused and not products[None] == products[OPERATORS] == products[SELECTIVE] < products[FULL_RECOMPUTE]:
            wrong.append(f"{name}: products {products}")
        if not fused and not products[None] < products[SELECTIVE] < products[OPERATORS] < products[FULL_RECOMPUTE]:
            wrong.append(f"{name}: products {products}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
def test_every_way_has_the_gradients_of_none(fused: bool) -> None:
    """To the last bits; dropout's masks and the router's choice are the same, and operators only gather again.

    Scores that are written out run again in all ways; of selective's core the last product need only begin.
    """
    plans.spawn(_same, RANKS, fused)


def _summed_where_it_lies(rank: int) -> None:
    pins: Pins = {"tp": 2, "boundary": "whole", "blocks.*.table": "shard:0", "blocks.*.up": "shard:0"}
    wanted, _, _ = gradients(Table, pins, NO_RECOMPUTE)
    for way in WAYS:
        found, _, _ = gradients(Table, pins, way)
        for name, grad in wanted.items():
            assert torch.allclose(found[name], grad, rtol=1e-12, atol=1e-14), (way, name)


def test_a_kept_sum_stands_where_what_it_sums_is_made_again() -> None:
    """A table's rows run again, their sum over ranks does not; blocks without attention have nothing selective."""
    plans.spawn(_summed_where_it_lies, RANKS)
