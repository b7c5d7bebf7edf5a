"""Plans in which two axes divide a layer, by the parts of tp: shapes legal, traffic as the plan and the program say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import Graph, Plan, lower, search, trace
from partitioner.errors import InputError
from partitioner.lowering.parameter_bytes import held_bytes
from partitioner.lowering.traffic import traffic
from partitioner.plan.sent_by_plan import volume
from partitioner.sharding.layout import layout_word, parse_layout
from runtime.dry_run.dry_run import run_ranks
from tools.models.load import load
from tools.verify.plan_families import cluster

Batch = dict[str, Tensor]


class Odd(nn.Module):
    """127 positions, 63 words: neither divides evenly by anything."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(63, 15), nn.Parameter(torch.randn(127, 15))
        self.up, self.head = nn.Linear(15, 64), nn.Linear(64, 63, bias=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids) * self.places.view(127, 3, 5).reshape(127, 15)
        return F.cross_entropy(self.head(F.gelu(self.up(x))).flatten(0, 1), labels.flatten())


class Narrow(nn.Module):
    """Blocks through two features, which one axis divides and the other can't."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(66, 64), nn.Linear(64, 66, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, sizes = nn.LayerNorm(64), (64, 2, 64, 66, 64)
        pairs = zip(sizes, sizes[1:], strict=False)
        self.a, self.b, self.c, self.d = (nn.Linear(n, m, bias=False) for n, m in pairs)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.d(F.gelu(self.c(self.b(F.gelu(self.a(self.norm(x)))))))


def text(words: int, length: int) -> Batch:
    return {name: torch.randint(0, words, (2, length)) for name in ("ids", "labels")}


def problems(graph: Graph, plan: Plan, batch: Batch) -> list[str]:
    rows = run_ranks(lower(graph, plan), batch, lambda place: held_bytes(graph, plan, place))
    return [problem for row in rows for problem in row.problems]


@pytest.mark.parametrize("pins", [{}, {"embed.weight": "replicate"}, {"up.weight": "replicate"}])
def test_sizes_that_two_axes_divide_unevenly(pins: dict[str, str]) -> None:
    batch = text(63, 127)
    graph = trace(Odd(), batch, compare=False)
    plan = search(graph, cluster(4), 2, {"tp": 4, "tp_kv": 2, "micro_batch": 2, **pins})
    assert problems(graph, plan, batch) == []


def test_what_conversions_by_several_collectives_send_again() -> None:
    batch = text(66, 17)
    graph = trace(Narrow(), batch, compare=False)
    plan = search(graph, cluster(6), 4, {"tp": 6, "tp_kv": 3, "micro_batch": 2, "recompute": "operators"})
    hops = Counter((c.value, c.source, c.target) for row in plan.blocks for op in row.ops for c in op.collectives)
    assert max(hops.values()) > 1, "some value takes two collectives"
    said, sent = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for row in volume(plan, 0):
        said[row.axis, row.kind, row.phase] += round(row.bytes)
    for one in traffic(lower(graph, plan)):
        if one.phase in ("forward", "backward", "recompute"):
            sent[one.axis, one.kind, one.phase] += int(one.bytes)
    assert any(phase == "recompute" for *_, phase in sent)
    assert {key: size for key, size in said.items() if key[2] != "sync"} == sent
    assert problems(graph, plan, batch) == []


LLAMA = {
    "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 128,
}  # fmt: skip
GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 51}
T5 = {"num_layers": 2, "d_model": 64, "d_ff": 128, "num_heads": 4, "d_kv": 16, "vocab_size": 51}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("llama", {**LLAMA, "num_hidden_layers": 1}), ("llama", {**LLAMA, "num_hidden_layers": 2}), ("gpt2", GPT2),
     ("t5", T5)],
)  # fmt: skip
def test_what_enters_a_block_is_divided_by_both(name: str, settings: dict[str, object]) -> None:
    source = load(f"hf:{name}", settings, seq=16, batch=2)
    graph = trace(source.module, source.batch, compare=False)
    plan = search(graph, cluster(4), 8, {"tp": 4, "tp_kv": 2, "boundary": "sharded", "recompute": "operators"})
    ports = [layout_word(parse_layout(words)) for row in plan.blocks if row.is_block for words in row.ports]
    assert any(word.count("S(") == 2 for word in ports)
    assert problems(graph, plan, source.batch) == []


def _smaller(plan: Plan) -> Plan:
    """A port's inner part divides fewer elements than the outer one leaves."""
    n, row = next((n, row) for n, row in enumerate(plan.blocks) if row.is_block)
    outer, (dim, ((repeat, units, granule),)) = row.ports[0]
    port = [outer, [dim, [[repeat, units, granule // 2]]]]
    blocks = (*plan.blocks[:n], replace(row, ports=(port, *row.ports[1:])), *plan.blocks[n + 1 :])
    return replace(plan, blocks=blocks)


def _turned(plan: Plan) -> Plan:
    """A port that no collectives make of what is made."""
    n, row = next((n, row) for n, row in enumerate(plan.blocks) if row.is_block)
    blocks = (*plan.blocks[:n], replace(row, ports=(["P", "P"], *row.ports[1:])), *plan.blocks[n + 1 :])
    return replace(plan, blocks=blocks)


@pytest.mark.parametrize(("change", "told"), [(_smaller, "finds .* there"), (_turned, "which no collectives do")])
def test_layouts_that_do_not_go_together_are_refused(change: Callable[[Plan], Plan], told: str) -> None:
    source = load("hf:gpt2", GPT2, seq=16, batch=2)
    graph = trace(source.module, source.batch, compare=False)
    plan = search(graph, cluster(4), 8, {"tp": 4, "tp_kv": 2, "boundary": "sharded"})
    lower(graph, plan)
    with pytest.raises(InputError, match=told):
        lower(graph, change(plan))
