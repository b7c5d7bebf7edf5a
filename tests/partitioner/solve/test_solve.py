"""Layouts found by search: Megatron-LM's, without being told, and the exhaustive optimum of an unknown block."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from enumerator import Enumerator
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner.cluster import Cluster
from partitioner.cost.op_work import Setting
from partitioner.emit.block_code import emit
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.resize_batch import resize
from partitioner.graph.tied_blocks import Folded, Port, fold
from partitioner.layouts.exports import exports
from partitioner.layouts.solution import Solution
from partitioner.layouts.strategies import space
from partitioner.ops.collectives import OPS
from partitioner.searching.search import search
from partitioner.sharding.layout import REPLICATE, WHOLE, Placement, Shard, parse_layout, shard_whole
from partitioner.solve.choices import Prices
from partitioner.solve.solve import solve
from partitioner.tracing.trace import trace

HIDDEN, SEQ, VOCAB, HEADS = 4096, 2048, 51200, 32


class Block(nn.Module):
    """A GPT block; ``parallel`` adds attention and MLP of the same input, as GPT-NeoX does."""

    def __init__(self, hidden: int, heads: int, parallel: bool = False, kv: int | None = None) -> None:
        super().__init__()
        self.heads, self.kv, self.width, self.parallel = heads, kv or heads, hidden // heads, parallel
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, (heads + 2 * self.kv) * self.width)
        self.out, self.up, self.down = (
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, 4 * hidden),
            nn.Linear(4 * hidden, hidden),
        )

    def attend(self, x: Tensor) -> Tensor:
        sizes = [self.heads * self.width, self.kv * self.width, self.kv * self.width]
        q, k, v = (t.unflatten(-1, (-1, self.width)).transpose(1, 2) for t in self.qkv(x).split(sizes, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv != self.heads)
        return self.out(y.transpose(1, 2).flatten(-2))

    def forward(self, x: Tensor) -> Tensor:
        if self.parallel:
            return x + self.attend(self.norm1(x)) + self.down(F.gelu(self.up(self.norm2(x))))
        x = x + self.attend(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(
        self, block: type[nn.Module] | None = None, tied: bool = False, layers: int = 3, **options: object
    ) -> None:
        super().__init__()
        hidden, heads = int(options.pop("hidden", HIDDEN)), int(options.pop("heads", HEADS))  # type: ignore[call-overload]
        vocab = int(options.pop("vocab", VOCAB))  # type: ignore[call-overload]
        self.tokens = nn.Embedding(vocab, hidden)
        self.blocks = nn.ModuleList((block or Block)(hidden, heads, **options) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, vocab, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


def graph_of(seq: int = SEQ, dtype: torch.dtype = torch.bfloat16, **options: object) -> Graph:
    with torch.device("meta"):
        model = Model(**options).to(dtype)  # type: ignore[arg-type]
    tokens = torch.zeros(2, seq, dtype=torch.int64)
    return trace(model, {"tokens": tokens, "labels": tokens.clone()})


def solved(graph: Graph, tp: int, micro_batch: int = 1, scarcity: float = 1.0) -> tuple[Folded, Solution]:
    folded = fold(resize(graph, micro_batch))
    cluster = Cluster.load("dgx-a100")
    prices = Prices(cluster, Setting.of(folded, cluster, {"tp": tp}), 8, scarcity)
    return folded, solve(folded, space(folded, "tp", tp), prices)


def block_collectives(folded: Folded, solution: Solution, tp: int) -> Counter[str]:
    """What one block's emitted module communicates forward."""
    group = next(g for g, units in enumerate(folded.groups) if units[0].is_block)
    unit = folded.groups[group][1]
    wanted = tuple((unit.nodes.index(e.node.name), e.layout) for e in exports(folded, solution)[unit])
    module = emit(folded, solution, group, wanted).module
    names = [str(n.target).split(".")[1] for n in module.graph.nodes if str(n.target).startswith("partitioner.")]
    return Counter(n for n in names if n in OPS and n not in ("copy", "shard", "on_first"))


def parameters(solution: Solution) -> dict[str, Placement]:
    return {n.meta["source"]: p for n, (p,) in solution.parameters.items()}


MEGATRON = ({"all_reduce": 2}, {"all_gather": 2, "reduce_scatter": 2})


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_a_gpt_block_is_divided_as_megatron_divides_it(tp: int) -> None:
    folded, solution = solved(graph_of(), tp)
    assert dict(block_collectives(folded, solution, tp)) in MEGATRON
    found = parameters(solution)
    dims = {n.split(".")[-2] + "." + n.split(".")[-1]: p.dim for n, p in found.items() if isinstance(p, Shard)}
    assert {k: dims[k] for k in ("qkv.weight", "out.weight", "up.weight", "down.weight")} == {
        "qkv.weight": 0, "out.weight": 1, "up.weight": 0, "down.weight": 1,
    }  # fmt: skip
    assert found["blocks.0.qkv.weight"] == Shard(0, found["blocks.0.qkv.weight"].segments)  # type: ignore[union-attr]
    assert len(found["blocks.0.qkv.weight"].segments) == 3  # type: ignore[union-attr]


def test_parallel_attention_and_mlp_need_one_pair() -> None:
    folded, solution = solved(graph_of(parallel=True), 4)
    assert block_collectives(folded, solution, 4) == {"all_reduce": 1}


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_and_its_loss_are_vocabulary_parallel(tied: bool) -> None:
    folded, solution = solved(graph_of(tied=tied), 8)
    found = parameters(solution)
    head = "tokens.weight" if tied else "head.weight"
    assert found[head] == shard_whole(0, 51200, 8)
    loss = next(n for n in solution.strategies if "cross_entropy" in str(n.target))
    assert solution.strategies[loss].operands == ((shard_whole(1, 51200, 8),), (REPLICATE,))


def test_norm_gradients_are_partial_once_a_step_under_sequence_parallel() -> None:
    """Of links that send as fast whatever is sent among however many."""
    folded, cluster = fold(resize(graph_of(), 1)), Cluster.load("dgx-a100")
    cluster = dataclasses.replace(cluster, node=dataclasses.replace(cluster.node, ring=None, direct=None))
    prices = Prices(cluster, Setting.of(folded, cluster, {"tp": 4}), 8)
    options = space(folded, "tp", 4)
    solution = solve(folded, options, prices, lambda v, p: not isinstance(v, Port) or isinstance(p, Shard))
    found = parameters(solution)
    assert [p.dim for (p,) in solution.ports.values() if isinstance(p, Shard)] == [1, 1]
    assert dict(block_collectives(folded, solution, 4)) == {"all_gather": 2, "reduce_scatter": 2}
    assert found["blocks.0.norm1.weight"] == REPLICATE
    assert found["blocks.0.norm2.bias"] == REPLICATE


def test_the_batch_is_never_divided_over_tp() -> None:
    graph = graph_of(hidden=64, heads=4, vocab=128, seq=16)
    folded = fold(graph)
    for node, rows in space(folded, "tp", 2).strategies.items():
        batch = graph.batch_layout.get(node.name)
        for row in rows:
            if batch and isinstance(row.result, Shard) and row.result.dim == batch.dim:
                whole = batch.segments[0].repeat * batch.segments[0].units
                assert all(s.repeat % whole == 0 for s in row.result.segments), node.name


def test_fused_q_k_v_of_unequal_sizes_is_divided_by_segments() -> None:
    folded, solution = solved(graph_of(kv=8), 8)
    weight = parameters(solution)["blocks.0.qkv.weight"]
    assert isinstance(weight, Shard)
    assert [s.size for s in weight.segments] == [4096, 1024, 1024]
    assert dict(block_collectives(folded, solution, 8)) in MEGATRON


def test_replicated_parameters_pay_for_their_memory() -> None:
    """At micro-batch 8, with bytes for nothing, heads move to the sequence and attention's projection is replicated."""
    graph = graph_of()
    free, dear = (parameters(solved(graph, 8, 8, scarcity)[1]) for scarcity in (0.0, 30.0))
    names = [f"blocks.0.{n}.weight" for n in ("qkv", "out", "up", "down")]
    assert not all(isinstance(free[n], Shard) for n in names)
    assert all(isinstance(dear[n], Shard) for n in names)


class Odd(nn.Module):
    """A block that no model has: keys are the values, and a low-rank branch beside the gate."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.shared, self.a = (nn.Linear(hidden, n, bias=False) for n in (hidden, 2))
        self.b = nn.Linear(2, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.shared(x))
        return x + y * y + self.b(self.a(x))


@pytest.mark.parametrize("links", ["as they are", pytest.param("free", marks=pytest.mark.parity)])
def test_the_optimum_of_an_unknown_block_is_the_exhaustive_one(links: str) -> None:
    graph = graph_of(seq=64, dtype=torch.float32, block=Odd, hidden=256, heads=1, vocab=512, layers=2)
    cluster = Cluster.load("dgx-a100")
    if links == "free":
        free = dataclasses.replace(cluster.node, bytes_per_second=1e18, latency_seconds=0.0, ring=None)
        cluster = dataclasses.replace(cluster, node=free)
    folded = fold(graph)
    options, prices = space(folded, "tp", 2), Prices(cluster, Setting.of(folded, cluster, {"tp": 2}), 4)
    solution = solve(folded, options, prices)
    assert solution.seconds == pytest.approx(Enumerator(folded, options, prices).best(), rel=1e-6)


def test_free_links_change_the_answer() -> None:
    graph = graph_of(seq=64, dtype=torch.float32, block=Odd, hidden=256, heads=1, vocab=512, layers=2)
    cluster = Cluster.load("dgx-a100")
    free = dataclasses.replace(
        cluster, node=dataclasses.replace(cluster.node, bytes_per_second=1e18, latency_seconds=0.0, ring=None)
    )
    folded = fold(graph)
    settings = ((c, Setting.of(folded, c, {"tp": 2})) for c in (cluster, free))
    one, two = (solve(folded, space(folded, "tp", 2), Prices(c, setting, 4)) for c, setting in settings)
    assert one.parameters != two.parameters or one.ports != two.ports


def test_the_same_inputs_give_the_same_plan_byte_for_byte() -> None:
    texts = {
        search(graph_of(hidden=64, heads=4, vocab=128, seq=16), Cluster.load("local-cpu"), 8).to_json()
        for _ in range(2)
    }
    assert len(texts) == 1


def test_pins_override_and_the_rest_is_solved_again() -> None:
    graph = graph_of(hidden=64, heads=4, vocab=128, seq=16)
    pins = {"tp": 2, "pp": 1, "blocks.*.up": "replicate", "blocks.*.down.weight": "shard:1"}
    plan = search(graph, Cluster.load("local-cpu"), 8, pins)
    assert plan.parallelism.mesh == {"pp": 1, "dp": 2, "tp": 2}
    assert parse_layout(plan.parameters["blocks.1.up.weight"]) == (WHOLE,)
    assert parse_layout(plan.parameters["blocks.2.down.weight"]) == (shard_whole(1, 256, 2),)


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        ({"tq": 2}, "nearest name is tp"),
        ({"blocks.*.upp": "replicate"}, "nearest name is blocks"),
        ({"pp": 4}, "3 blocks"),
        ({"tp": 3}, "does not divide 4"),
        ({"schedule": "fifo"}, "1f1b, gpipe"),
        ({"schedule": "zbv"}, "schedule=zbv asks for what can't be executed yet: add --plan-only"),
        ({"tp": 0}, "positive"),
    ],
)
def test_a_wrong_pin_is_named(pins: dict[str, str | int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        search(graph_of(hidden=64, heads=4, vocab=128, seq=16), Cluster.load("local-cpu"), 8, pins)


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        ({"schedule": "zbv", "virtual": 3}, "zbv has 2 stages a rank"),
        ({"schedule": "zero_bubble", "virtual": 2}, "only interleaved and zbv have more"),
        ({"schedule": "zbv", "pp": 2}, "4 stages, the model has 3 blocks"),
        ({"schedule": "zero_bubble", "pp": 1}, "pin pp to at least 2"),
    ],
)
def test_a_wrong_pin_of_a_plan_to_look_at_is_named(pins: dict[str, str | int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        search(graph_of(hidden=64, heads=4, vocab=128, seq=16), Cluster.load("local-cpu"), 8, pins, plan_only=True)
