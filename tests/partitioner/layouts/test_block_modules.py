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
from partitioner.plan.recompute_ways import MLP, MODULES, NORMS, SELECTIVE, WAYS, of_modules
from tools.models.load import load

WIDTH, HEADS, TOKENS, BATCH = 32, 4, 16, 2
VALUE = BATCH * TOKENS * WIDTH * 4  # bytes


class Part(nn.Module):
    """A block that is parallel, or not, its norm a hand-written one of which only a part may be left out."""

    def __init__(self, parallel: bool) -> None:
        super().__init__()
        self.parallel, self.one, self.two = parallel, nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.a, self.b = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.c, self.d = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scaled(x, self.one)
        q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in self.a(y).chunk(3, 2))
        mixed = self.b(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        if self.parallel:
            return 0.5 * x + (mixed + self.d(torch.sigmoid(self.c(y))))
        x = x + mixed
        return x + self.d(torch.sigmoid(self.c(self.scaled(x, self.two))))

    @staticmethod
    def scaled(x: Tensor, by: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred * centred).mean(-1, keepdim=True).add(1e-5).rsqrt() * (1 + by)


class Stack(nn.Module):
    def __init__(self, parallel: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11)
        self.blocks = nn.ModuleList(Part(parallel) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), y.flatten())


def traced(parallel: bool) -> Graph:
    tokens = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    return trace(Stack(parallel), {"x": tokens, "y": tokens}, compare=False)


def found(graph: Graph) -> dict[str, list[list[str]]]:
    """By module, of the first block: the ops of each region, in order."""
    folded = fold(graph)
    group = next(g for g, units in enumerate(folded.groups) if units[0].is_block)
    modules, body = BlockModules(folded, group), folded.body(group)
    return {m: [[_word(n) for n in body if n in part] for part in modules.regions([m])] for m in MODULES}


def _word(node: torch.fx.Node) -> str:
    return op_name(node.target).split(".")[1]


NORM = ["mean", "sub", "mul", "mean", "add", "rsqrt", "mul", "mul"]


def test_of_a_block_by_hand() -> None:
    assert found(traced(parallel=False)) == {
        SELECTIVE: [["scaled_dot_product_attention"]], NORMS: [NORM, NORM], MLP: [["linear", "sigmoid", "linear"]],
    }  # fmt: skip


def test_of_a_parallel_block_whose_stream_is_scaled() -> None:
    """What is scaled on its way to the sum alone is no norm; the norm that both read is one."""
    assert found(traced(parallel=True)) == {
        SELECTIVE: [["scaled_dot_product_attention"]], NORMS: [NORM], MLP: [["linear", "sigmoid", "linear"]],
    }  # fmt: skip


TINY = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
GATED = TINY | {"intermediate_size": 64, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("name", "sizes", "norms", "mlp"),
    [
        ("llama", GATED, [6, 6], [["linear", "silu", "linear", "mul", "linear"]]),
        ("gemma2", GATED, [6, 6], [["linear", "gelu", "linear", "mul", "linear"]]),  # not those behind its sublayers
        ("bert", TINY | {"intermediate_size": 64}, [1], [["linear", "add", "gelu", "linear"]]),  # not what is sent
        ("t5", {"num_layers": 2, "d_model": 32, "d_ff": 64, "num_heads": 4, "d_kv": 8, "vocab_size": 64},
         [6, 6], [["linear", "relu", "dropout", "linear"]]),  # nor its bias of positions
    ],
)  # fmt: skip
def test_of_known_models(name: str, sizes: Mapping[str, object], norms: list[int], mlp: list[list[str]]) -> None:
    source = load(f"hf:{name}", dict(sizes), seq=TOKENS, meta=True)
    rows = found(trace(source.module, source.batch, compare=False))
    assert [len(region) for region in rows[NORMS]] == norms
    assert rows[MLP] == mlp


@functools.cache
def planned(way: str, software: str = "megatron") -> Plan:
    cluster = Cluster.load("dgx-h100", devices=1, software=software)
    return search(traced(parallel=False), cluster, BATCH, {"recompute": way, "micro_batch": BATCH}, plan_only=True)


def test_what_is_not_kept() -> None:
    """Of each of two blocks what products read of two norms, and what the MLP's activation made, as wide as four."""
    kept = {way: planned(way).cost.stages[0].kept_bytes for way in ("off", NORMS, MLP, of_modules(MLP, NORMS))}
    assert kept["off"] - kept[NORMS] == 2 * 2 * VALUE
    assert kept["off"] - kept[MLP] == 2 * 4 * VALUE
    assert kept["off"] - kept["norms+mlp"] == 2 * 6 * VALUE


def test_what_runs_again_takes_time() -> None:
    seconds = {way: planned(way).cost.stages[0].backward_seconds for way in ("off", NORMS, MLP, "norms+mlp", "full")}
    assert seconds["off"] < min(seconds[NORMS], seconds[MLP])
    assert seconds["norms+mlp"] - seconds["off"] == pytest.approx(
        seconds[NORMS] + seconds[MLP] - 2 * seconds["off"], rel=1e-6
    )
    assert seconds["norms+mlp"] < seconds["full"]


def test_such_a_plan_is_looked_at_only() -> None:
    """Of this project's own runtime; its plans of attention's core alone are executed."""
    assert planned("selective", "own").decisions.plan_only == ()
    assert planned("norms+mlp", "own").decisions.plan_only == ("norms+mlp recompute",)


def test_ways_of_modules_are_all_of_them_together() -> None:
    assert {row.modules for row in WAYS.values() if row.modules} == {
        (SELECTIVE,), (NORMS,), (MLP,), (SELECTIVE, NORMS), (SELECTIVE, MLP), (NORMS, MLP), MODULES,
    }  # fmt: skip
    assert of_modules(MLP, SELECTIVE) == "selective+mlp"
    assert not any(row.whole for row in WAYS.values() if row.modules)
