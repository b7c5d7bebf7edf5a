"""What an op makes a rank do: products as the rules count them, halves where divided, chains where fused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_plans import graph_of
from torch import fx

from partitioner import Cluster, trace
from partitioner.cost.kept_activations import Keeping
from partitioner.cost.op_work import Setting, op_flops, op_work, weight_work
from partitioner.cost.price_units import price_units
from partitioner.graph.graph import Graph
from partitioner.graph.saved_by_autograd import saved_bytes as saved_of_graph
from partitioner.graph.tied_blocks import Folded, fold
from partitioner.layouts.op_kinds import is_attention
from partitioner.layouts.solution import Solution
from partitioner.layouts.strategies import space
from partitioner.solve.choices import Prices
from partitioner.solve.solve import solve
from tools.models.plain_decoder import Dimensions, decoder

CLUSTER = Cluster.load("dgx-a100")


def solved(graph: Graph, tp: int = 1, cp: int = 1, attention: str = "flash", fused: bool = False) -> Solved:
    cluster = dataclasses.replace(
        CLUSTER, attention=attention, software=dataclasses.replace(CLUSTER.software, fused=fused)
    )
    folded = fold(graph)
    setting = Setting.of(folded, cluster, {"tp": tp, "cp": cp})
    return Solved(setting, solve(folded, space(folded, "tp", tp), Prices(cluster, setting, 8)), cluster)


@dataclasses.dataclass(frozen=True)
class Solved:
    setting: Setting
    solution: Solution
    cluster: Cluster

    @property
    def folded(self) -> Folded:
        return self.setting.folded

    def nodes(self) -> list[fx.Node]:
        return [n for g in range(len(self.folded.groups)) for n in self.folded.body(g)]

    def flops(self, phase: int) -> float:
        works = [op_work(self.setting, n, self.solution.strategies[n])[phase] for n in self.nodes()]
        return sum(part.flops for w in works for part in (*w.gemms, *w.attended))

    def streamed(self) -> float:
        works = [w for n in self.nodes() for w in op_work(self.setting, n, self.solution.strategies[n])]
        return sum(w.streamed_bytes for w in works)

    def saved(self) -> float:
        return sum(Keeping(self.setting, self.solution, g).bytes for g in range(len(self.folded.groups)))


def llama(written_out: bool = False, hidden: int = 256, seq: int = 128) -> Graph:
    size = Dimensions(2, hidden, 8, 8 if written_out else 4, 512, not written_out, 512, False, seq, written_out)
    return trace(*decoder(size, torch.bfloat16))


@pytest.mark.parametrize("name", ["gpt", "llama", "t5", "mixtral", "vit"])
def test_products_are_what_the_rules_count(name: str) -> None:
    found = solved(graph_of(name))
    counted = sum(op_flops(n) for n in found.nodes())
    assert counted > 0
    assert found.flops(0) == pytest.approx(counted)
    least = counted - sum(op_flops(n) for n in found.nodes() if str(n.target).startswith("aten.conv"))
    assert 2 * least * 0.8 < found.flops(1) < 2.5 * counted


def test_backward_of_a_product_is_its_two_gradients() -> None:
    found = solved(llama())
    head = [n for n in found.nodes() if str(n.target) == "aten.linear.default"][-1]
    forward, backward = op_work(found.setting, head, found.solution.strategies[head])
    (gemm,) = forward.gemms
    assert (gemm.m, gemm.n, gemm.k) == (2 * 128, 512, 256)
    assert [(g.m, g.n, g.k) for g in backward.gemms] == [(256, 256, 512), (256, 512, 256)]
    weight = weight_work(found.setting, head, found.solution.strategies[head])
    assert weight.gemms == backward.gemms[1:]
    assert weight.streamed_bytes == backward.streamed_bytes == 3 * 512 * 256 * 2
    assert weight.kernels == backward.kernels - 1


@pytest.mark.parametrize("name", ["gpt", "llama", "t5", "mixtral", "vit"])
def test_weights_gradients_are_a_part_of_backward(name: str) -> None:
    """As many FLOPs as forward's products by a weight; of other ops nothing."""
    found = solved(graph_of(name))
    by_weight = 0.0
    for node in found.nodes():
        strategy = found.solution.strategies[node]
        forward, backward = op_work(found.setting, node, strategy)
        weight = weight_work(found.setting, node, strategy)
        assert set(weight.gemms) <= set(backward.gemms)
        assert weight.streamed_bytes <= backward.streamed_bytes
        if weight.kernels:
            assert sum(g.flops for g in weight.gemms) == sum(g.flops for g in forward.gemms)
            by_weight += sum(g.flops for g in weight.gemms)
    assert 0.5 * found.flops(0) < by_weight <= found.flops(0)
    for cost in price_units(found.setting, found.solution, found.cluster).groups:
        seconds, backward = cost.weight_gradient_seconds, cost.compute.backward
        assert 0 <= seconds < backward or seconds == backward == 0


@pytest.mark.parametrize("axis", ["tp", "cp"])
def test_two_ranks_do_half(axis: str) -> None:
    one, two = (solved(llama(hidden=8192, seq=4096), **{axis: n}) for n in (1, 2))
    assert two.flops(0) == pytest.approx(one.flops(0) / 2)
    assert two.flops(1) == pytest.approx(one.flops(1) / 2)


def test_context_parallel_gathers_keys_and_values() -> None:
    one, two = (solved(llama(), cp=n) for n in (1, 2))
    costs = [price_units(s.setting, s.solution, s.cluster).groups for s in (one, two)]
    assert [cost.communication.total for cost in costs[0]] == [0, 0, 0]
    # of a block's keys and values each is gathered, for backward again, and its gradient scattered; all over cp
    assert [cost.collectives for cost in costs[1]] == [(0, 0), (2, 4), (0, 0)]
    assert [cost.axis_shares.get("cp", 0) for cost in costs[1]] == [0, 1, 0]


def test_a_fused_chain_streams_and_keeps_less() -> None:
    plain, fused = (solved(llama(), fused=f) for f in (False, True))
    assert fused.streamed() < 0.8 * plain.streamed()
    assert fused.saved() < plain.saved()
    assert fused.flops(0) == plain.flops(0)
    kept = {str(n.target) for n in fused.setting.internal}
    assert "aten.silu.default" in kept
    assert "aten.linear.default" not in kept


def test_what_is_kept_is_what_the_graph_keeps() -> None:
    found = solved(llama())
    body = saved_of_graph(found.folded.graph.module.graph, found.folded.differentiable)
    first = {n for g in range(len(found.folded.groups)) for n in found.folded.body(g)}
    assert found.saved() == pytest.approx(sum(size for n, size in body.items() if n in first), rel=0.02)


def test_attention_that_writes_its_scores_pays_for_them() -> None:
    flash, maths = (solved(llama(), attention=a) for a in ("flash", "math"))
    scores = 2 * 8 * 128 * 128 * 2
    assert maths.saved() - flash.saved() == pytest.approx(scores - 2 * 8 * 128 * 4)
    assert maths.flops(0) > flash.flops(0)
    assert maths.streamed() >= flash.streamed()


def test_the_core_of_attention_is_found_written_out_or_fused() -> None:
    written, fused = solved(llama(written_out=True)), solved(llama())
    block = next(g for g, units in enumerate(written.folded.groups) if units[0].is_block)
    core = [str(n.target).split(".")[1] for n in written.setting.core(block)]
    assert core[0] == core[-1] == "matmul"
    assert {"softmax", "dropout"} <= {*core}
    assert "linear" not in core
    block = next(g for g, units in enumerate(fused.folded.groups) if units[0].is_block)
    (core,) = fused.setting.core(block)
    assert is_attention(core)


def test_recomputing_the_core_drops_the_scores() -> None:
    found = solved(llama(written_out=True), fused=True)
    costs = price_units(found.setting, found.solution, found.cluster).groups
    block = next(c for c, units in zip(costs, found.folded.groups, strict=True) if units[0].is_block)
    scores = 2 * 8 * 128 * 128
    freed = block.stash["none"].bytes - block.stash["selective"].bytes
    assert freed == pytest.approx(scores * (2 + 2 + 1))  # the softmax, the product with the mask, the mask
    assert 0 < block.stash["selective"].compute < block.stash["full"].compute
    assert block.stash["full"].bytes < block.stash["operators"].bytes < block.stash["none"].bytes


class Einsums(torch.nn.Module):
    """Attention as einsum, by weights that are scaled before they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (torch.nn.functional.linear(x, weight * 0.5) for weight in self.weight.unbind())
        scores = torch.einsum("bqd,bkd->bqk", q, k).softmax(-1)
        return torch.einsum("bqk,bkd->bqd", scores, v).sum()


def test_an_equation_is_a_product_and_the_core_of_attention() -> None:
    """Priced by its FLOPs; a product by what is made of weights alone is no part of the core."""
    found = solved(trace(Einsums(), {"x": torch.randn(4, 6, 8)}))
    assert found.flops(0) == 3 * 2 * 4 * 6 * 8 * 8 + 2 * 2 * 4 * 6 * 6 * 8
    assert found.flops(1) == 3 * 2 * 4 * 6 * 8 * 8 + 2 * 2 * 2 * 4 * 6 * 6 * 8, "the samples have no gradient"
    core = [str(n.target).split(".")[1] for n in found.setting.core(0)]
    assert core == ["einsum", "softmax", "einsum"]
