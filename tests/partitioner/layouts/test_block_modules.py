"""The modules that are found in blocks whose authors name nothing alike, and what recomputing them keeps and takes."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import Cluster, search, trace
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import op_name
from partitioner.graph.tied_blocks import fold
from partitioner.layouts.block_modules import BlockModules
from partitioner.plan.plan import Plan
from partitioner.plan.recompute_ways import MLP, MODULES, SELECTIVE, WAYS, of_modules
from tools.models.load import load

WIDTH, HEADS, TOKENS, BATCH = 32, 4, 16, 2
VALUE = BATCH * TOKENS * WIDTH * 4  # bytes


class Part(nn.Module):
    """A block that is parallel, or not, with a hand-written norm; its attention has a gate, or not."""

    def __init__(self, parallel: bool, gated: bool) -> None:
        super().__init__()
        self.parallel, self.one, self.two = parallel, nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.gate = nn.Linear(WIDTH, WIDTH, bias=False) if gated else None
        self.a, self.b = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.c, self.d = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scaled(x, self.one)
        q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in self.a(y).chunk(3, 2))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        mixed = self.b(mixed if self.gate is None else mixed * torch.sigmoid(self.gate(y)))
        if self.parallel:
            return 0.5 * x + (mixed + self.d(torch.sigmoid(self.c(y))))
        x = x + mixed
        return x + self.d(torch.sigmoid(self.c(self.scaled(x, self.two))))

    @staticmethod
    def scaled(x: Tensor, by: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred * centred).mean(-1, keepdim=True).add(1e-5).rsqrt() * (1 + by)


class Stack(nn.Module):
    def __init__(self, parallel: bool, gated: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11)
        self.blocks = nn.ModuleList(Part(parallel, gated) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), y.flatten())


def traced(parallel: bool = False, gated: bool = False) -> Graph:
    tokens = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    return trace(Stack(parallel, gated), {"x": tokens, "y": tokens}, compare=False)


def found(graph: Graph, fused: bool = False) -> dict[str, list[list[str]]]:
    """By module, of the first block: the ops of each region, in order."""
    folded = fold(graph)
    group = next(g for g, units in enumerate(folded.groups) if units[0].is_block)
    modules, body = BlockModules(folded, group, fused), folded.body(group)
    return {m: [[_word(n) for n in body if n in part] for part in modules.regions([m])] for m in MODULES}


def _word(node: torch.fx.Node) -> str:
    return op_name(node.target).split(".")[1]


PLAIN_MLP = ["linear", "sigmoid", "linear"]


@pytest.mark.parametrize("options", [{}, {"parallel": True}, {"gated": True}], ids=str)
def test_of_a_block_by_hand(options: dict[str, bool]) -> None:
    """A gate of attention leads to its projection, and is none of the MLP; a stream may be scaled."""
    assert found(traced(**options)) == {SELECTIVE: [["scaled_dot_product_attention"]], MLP: [PLAIN_MLP]}


@pytest.mark.parametrize("parallel", [False, True])
def test_a_norm_that_is_one_with_its_product_is_the_mlp_s(parallel: bool) -> None:
    """Unless attention reads it too."""
    norm = [] if parallel else ["mean", "sub", "mul", "mean", "add", "rsqrt", "mul", "mul"]
    assert found(traced(parallel), fused=True)[MLP] == [[*norm, *PLAIN_MLP]]


TINY = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
GATED = TINY | {"intermediate_size": 64, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("name", "sizes", "mlp"),
    [
        ("llama", GATED, [["linear", "silu", "linear", "mul", "linear"]]),
        ("gemma2", GATED, [["linear", "gelu", "linear", "mul", "linear"]]),
        ("bert", TINY | {"intermediate_size": 64}, [["linear", "add", "gelu", "linear", "add"]]),
        ("t5", {"num_layers": 2, "d_model": 32, "d_ff": 64, "num_heads": 4, "d_kv": 8, "vocab_size": 64},
         [["linear", "relu", "dropout", "linear"]]),
        ("mixtral", GATED | {"num_local_experts": 4}, []),  # a router chooses
    ],
)  # fmt: skip
def test_of_known_models(name: str, sizes: Mapping[str, object], mlp: list[list[str]]) -> None:
    source = load(f"hf:{name}", dict(sizes), seq=TOKENS, meta=True)
    assert found(trace(source.module, source.batch, compare=False))[MLP] == mlp


@functools.cache
def planned(way: str, software: str = "megatron") -> Plan:
    cluster = Cluster.load("dgx-h100", devices=1, software=software)
    return search(traced(), cluster, BATCH, {"recompute": way, "micro_batch": BATCH}, plan_only=True)


def test_what_is_not_kept() -> None:
    """Of each of two blocks: what the MLP's activation made, as wide as four; where kernels are fused, also what its
    products read of the norm."""
    off, mlp = (planned(way).cost.stages[0].kept_bytes for way in ("off", MLP))
    assert off - mlp == 2 * (4 + 1) * VALUE
    off, mlp = (planned(way, "own").cost.stages[0].kept_bytes for way in ("off", MLP))
    assert off - mlp == 2 * 4 * VALUE


def test_what_runs_again_takes_time() -> None:
    seconds = {way: planned(way).cost.stages[0].backward_seconds for way in ("off", MLP, "full")}
    assert seconds["off"] < seconds[MLP] < seconds["full"]


def test_ways_of_modules_are_all_of_them_together() -> None:
    assert [row.modules for row in WAYS.values() if row.modules] == [(SELECTIVE,), (MLP,), (SELECTIVE, MLP)]
    assert of_modules(MLP, SELECTIVE) == "selective+mlp"
    assert not any(row.whole for row in WAYS.values() if row.modules)
