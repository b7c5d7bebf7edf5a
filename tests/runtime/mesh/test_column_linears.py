"""Column-parallel linears behind one collective on two ranks, fused epilogues among them, against one process.

Each rank has its columns of the weights; the graphs are as ``lower`` writes them, with a plain linear beside a gated
pair whose second epilogue loads what the first made.
"""

from __future__ import annotations

import operator

import plans
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from cutlass_ops.linear import fused, gemm
from partitioner.ops.cut_tensors import take
from partitioner.sharding.layout import Shard, flat, shard_whole
from runtime.mesh.bind import bind
from runtime.mesh.groups import Groups

own = torch.ops.partitioner
GATE = "gate: m n | v0 = silu(gate); v1 = mul(v0, acc) | v1, acc"
GELU = "bias: n | v0 = add(acc, bias); v1 = gelu(v0) | v1, v0"
PLAIN = " |  | acc"
SHAPES = {"x": (2, 4, 6), "q": (8, 6), "bias": (8,), "gate": (8, 6), "up": (8, 6), "down": (6, 8)}
KEYS = ["k", "k", "k"]
RANKS = 2


def draw(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sorted(SHAPES).index(name))
    return torch.randn(SHAPES[name], generator=generator, dtype=torch.float64)


def _module(source: str, rides: bool) -> fx.GraphModule:
    """x --source--> q (gelu), gated up --> down, summed over ranks; the gate's gradient rides on down, or does not."""
    graph = fx.Graph()
    x, q, bias, gate, up, down = (graph.placeholder(name) for name in SHAPES)
    shard = shard_whole(1, 4, RANKS)
    row = (flat(shard.segments), True) if source == "all_gather" else ()
    h = graph.call_function(getattr(own, source).default, (x, "tp", *((1,) if row else ()), *row))

    def linear(x: fx.Node, w: fx.Node, loads: list[fx.Node], line: str, inner: object = (), of: str = "") -> fx.Node:
        return graph.call_function(fused.ops.fused_linear.default, (x, w, loads, inner, line, of, False, KEYS))

    first = graph.call_function(operator.getitem, (linear(h, q, [bias], GELU), 0))
    made = graph.call_function(gemm.ops.linear.default, (h, gate, None, False))
    pair = linear(h, up, [made], GATE)
    hidden, raw = (graph.call_function(operator.getitem, (pair, n)) for n in range(2))
    inner = ([raw, made], GATE) if rides else ()
    mixed = graph.call_function(torch.ops.aten.add.Tensor, (first, hidden)) if not rides else hidden
    y = graph.call_function(operator.getitem, (linear(mixed, down, [], PLAIN, *inner), 0))
    graph.output((graph.call_function(own.all_reduce.default, (y, "tp", False)), first))
    return fx.GraphModule(nn.Module(), graph)


def _whole(rides: bool) -> list[torch.Tensor]:
    """The result, the columns of q, and the gradients of all operands."""
    t = {name: draw(name).requires_grad_() for name in SHAPES}
    first = F.gelu(F.linear(t["x"], t["q"], t["bias"]))
    hidden = F.silu(F.linear(t["x"], t["gate"])) * F.linear(t["x"], t["up"])
    y = F.linear(hidden if rides else first + hidden, t["down"])
    loss = (y * torch.arange(y.numel()).view_as(y)).sum() + (first**2).sum()
    return [y.detach(), first.detach(), *torch.autograd.grad(loss, list(t.values()))]


def _rank(rank: int, source: str, rides: bool) -> None:
    groups = Groups(plans.program(tp=RANKS))
    module = bind(_module(source, rides), groups)
    names = [getattr(node.target, "__name__", "") for node in module.graph.nodes]
    assert names.count("columns") == 1
    assert names.count("fused_linear") == 1  # down alone
    places = {name: shard_whole(1 if name == "down" else 0, 8, RANKS) for name in SHAPES if name != "x"}
    if source == "all_gather":
        places["x"] = shard_whole(1, 4, RANKS)
    t = {n: _part(draw(n), places.get(n), rank).clone().requires_grad_() for n in SHAPES}
    y, first = module(*t.values())
    weights = torch.arange(y.numel()).view_as(y)
    grads = torch.autograd.grad((y * weights).sum() + (first**2).sum(), list(t.values()))
    expected = _whole(rides)
    torch.testing.assert_close(y, expected[0])
    torch.testing.assert_close(first, take(expected[1], shard_whole(2, 8, RANKS), rank, RANKS))
    for name, grad, whole in zip(SHAPES, grads, expected[2:], strict=True):
        assert whole.norm() > 0
        torch.testing.assert_close(grad, _part(whole, places.get(name), rank))
    assert sum(groups.kernels.values()) == 9  # forward, dgrad and wgrad of q, up and down


def _part(whole: torch.Tensor, place: Shard | None, rank: int) -> torch.Tensor:
    return whole if place is None else take(whole, place, rank, RANKS)


def _all(rank: int) -> None:
    for source in ("copy", "all_gather"):
        for rides in (False, True):
            _rank(rank, source, rides)


def test_fused_columns_equal_the_whole() -> None:
    plans.spawn(_all, RANKS)


def _waits(rank: int) -> None:
    """An epilogue that loads what an op made of another's result can't be in one node: each alone, and still right."""
    graph = fx.Graph()
    x, gate, up = (graph.placeholder(name) for name in ("x", "gate", "up"))
    h = graph.call_function(own.copy.default, (x, "tp"))
    made = graph.call_function(gemm.ops.linear.default, (h, gate, None, False))
    again = graph.call_function(torch.ops.aten.mul.Tensor, (made, 2.0))
    pair = graph.call_function(fused.ops.fused_linear.default, (h, up, [again], [], GATE, "", False, KEYS))
    graph.output(graph.call_function(operator.getitem, (pair, 0)))
    groups = Groups(plans.program(tp=RANKS))
    module = bind(fx.GraphModule(nn.Module(), graph), groups)
    assert "columns" not in [getattr(node.target, "__name__", "") for node in module.graph.nodes]
    x, gate, up = draw("x"), draw("gate"), draw("up")
    torch.testing.assert_close(module(x, gate, up), F.silu(F.linear(x, gate) * 2.0) * F.linear(x, up))


def test_what_waits_for_another_stays_alone() -> None:
    plans.spawn(_waits, RANKS)


@pytest.mark.parametrize("rides", [False, True])
def test_the_whole_is_not_zero(rides: bool) -> None:
    assert all(t.norm() > 0 for t in _whole(rides))
