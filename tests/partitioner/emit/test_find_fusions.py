"""Chains that grow from products in every model, the same numbers after they are fused, and where a chain must end."""

from __future__ import annotations

import functools
from dataclasses import replace

import models
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cutlass_ops.linear import layer
from partitioner import Cluster, Graph, Plan, lower, search, trace
from partitioner.comparing.graph_float64 import promote
from partitioner.emit.find_fusions import LINEAR
from partitioner.emit.write_fusions import FUSED
from partitioner.plan.derived_rows import ProductRow

BIAS = "bias: n | v0 = add(acc, bias)"
PLAIN = " |  | acc"
KEYS = {"all": ("k", "k", "k"), "forward": ("k", "", ""), "gradients": ("", "k", "k")}


@functools.cache
def graph_of(name: str) -> Graph:
    return promote(trace(*models.make(name, 2), compare=False))


def searched(graph: Graph) -> Plan:
    return search(graph, Cluster.load("local-cpu", devices=1), 2, {"micro_batch": 2})


@functools.cache
def plan_of(name: str) -> Plan:
    return searched(graph_of(name))


def rows_of(plan: Plan) -> dict[str, ProductRow]:
    return {row.module: row for block in plan.blocks for row in block.products}


def with_keys(plan: Plan, keys: tuple[str, str, str], every: int = 1) -> Plan:
    """The plan with these kernels chosen for every so manieth product."""
    blocks = []
    for block in plan.blocks:
        rows = [replace(r, kernels=keys) if n % every == 0 else r for n, r in enumerate(block.products)]
        blocks.append(replace(block, products=tuple(rows)))
    return replace(plan, blocks=tuple(blocks))


EXPECTED = {
    ("gpt", "blocks.0.up"): f"{BIAS}; v1 = gelu(v0) | v1, v0",
    ("gpt", "blocks.0.down"): "bias: n, t0: m n | v0 = add(acc, bias); v1 = add(t0, v0) | v1",
    ("llama", "model.layers.0.mlp.gate_proj"): PLAIN,
    ("llama", "model.layers.0.mlp.up_proj"): "t0: m n | v0 = silu(t0); v1 = mul(v0, acc) | v1, acc",
    ("llama", "model.layers.0.mlp.down_proj"): "t0: m n | v0 = add(t0, acc) | v0",
    ("llama", "model.layers.0.self_attn.q_proj"): PLAIN,
    ("llama", "model.layers.0.self_attn.o_proj"): "t0: m n | v0 = add(t0, acc) | v0",
    ("gpt2", "transformer.h.0.mlp.c_fc"): (
        f"{BIAS}; v1 = mul(v0, 0.5); v2 = mul(v0, v0); v3 = mul(v2, v0); v4 = mul(v3, 0.044715); v5 = add(v0, v4); "
        "v6 = mul(v5, 0.7978845608028654); v7 = tanh(v6); v8 = add(v7, 1.0); v9 = mul(v1, v8) | v9, v0"
    ),
    ("neox", "gpt_neox.layers.0.mlp.dense_4h_to_h"): (
        "bias: n, t0: m n, t1: m n | v0 = add(acc, bias); v1 = add(v0, t0); v2 = add(v1, t1) | v2"
    ),
    ("phi3", "model.layers.0.mlp"): PLAIN,  # the gate, then what it gates
    ("phi3", "model.layers.0.mlp.down_proj"): "t0: m n | v0 = add(t0, acc) | v0",
    ("opt", "model.decoder.layers.0.fc1"): f"{BIAS}; v1 = relu(v0) | v1, v0",
    ("opt", "model.decoder.layers.0.self_attn.q_proj"): f"{BIAS}; v1 = mul(v0, 0.3535533905932738) | v1",
    ("gemma2", "model.layers.0.mlp.up_proj"): "t0: m n | v0 = gelu_tanh(t0); v1 = mul(v0, acc) | v1, acc",
    ("gemma2", "model.layers.0.mlp.down_proj"): PLAIN,  # a norm reads it twice
    ("bert", "bert.encoder.layer.0.intermediate.dense"): f"{BIAS}; v1 = gelu(v0) | v1, v0",
}


@pytest.mark.parametrize(("name", "module"), EXPECTED)
def test_chain(name: str, module: str) -> None:
    rows = [r for b in plan_of(name).blocks for r in b.products if r.module == module]
    assert rows, sorted(rows_of(plan_of(name)))
    assert EXPECTED[name, module] in [row.line for row in rows]
    assert all(row.m == 2 * models.TOKENS for row in rows)


BIASED_GELU = "bias: n | v0 = add(acc, bias); v1 = gelu(v0) | v1, v0"
TANH_GELU = (
    "bias: n | v0 = add(acc, bias); v1 = mul(v0, 0.5); v2 = mul(v0, v0); v3 = mul(v2, v0); v4 = mul(v3, 0.044715); "
    "v5 = add(v0, v4); v6 = mul(v5, 0.7978845608028654); v7 = tanh(v6); v8 = add(v7, 1.0); v9 = mul(v1, v8) | v9, v0"
)
RIDES = {
    "gpt": ("blocks.0.down", BIASED_GELU),
    "llama": ("model.layers.0.mlp.down_proj", "t0: m n | v0 = silu(t0); v1 = mul(v0, acc) | v1, acc"),
    "gpt2": ("transformer.h.0.mlp.c_proj", TANH_GELU),
    "neox": ("gpt_neox.layers.0.mlp.dense_4h_to_h", BIASED_GELU),
    "phi3": ("model.layers.0.mlp.down_proj", "t0: m n | v0 = silu(t0); v1 = mul(acc, v0) | v1, acc"),
    "t5": ("encoder.block.0.layer.1.DenseReluDense.wo", " | v0 = relu(acc) | v0, acc"),
    "whisper": ("model.encoder.layers.0.fc2", BIASED_GELU),
}


@pytest.mark.parametrize("name", RIDES)
def test_gradient_rides_on_the_next_dgrad(name: str) -> None:
    module, inner = RIDES[name]
    row = rows_of(plan_of(name))[module]
    assert row.inner == inner
    op = layer.layer(row.line, row.inner, row.transposed, row.dtype, ("", "", ""))
    assert len(layer.dgrad(op).stores) == len(layer.leaves(op.inner, 0))  # type: ignore[arg-type]


def _fused_equal(graph: Graph, plan: Plan, keys: tuple[str, str, str], every: int = 1) -> int:
    """How many products are fused where these kernels are chosen; every block computes what it did, gradients too."""
    count, seen = 0, set[object]()
    before, after = (lower(graph, p).stages[0].calls for p in (plan, with_keys(plan, keys, every)))
    for plain, fused in zip(before, after, strict=True):
        fresh = [n for n in fused.module.graph.nodes if n.target == FUSED]
        if not fresh or fused.module in seen:
            assert fresh or plain.module.code == fused.module.code
            continue
        seen.add(fused.module)
        count += len(fresh)
        assert every > 1 or all(n.target != LINEAR for n in fused.module.graph.nodes)
        for wanted, found in zip(_numbers(plain.module), _numbers(fused.module), strict=True):
            assert (found - wanted).norm() <= 1e-12 * wanted.norm()
    return count


def _numbers(module: object) -> list[torch.Tensor]:
    """What a block's module makes of random operands, and their gradients."""
    generator = torch.Generator().manual_seed(0)
    inputs: list[torch.Tensor] = []
    for node in module.graph.nodes:  # type: ignore[attr-defined]
        if node.op == "placeholder":
            value = node.meta["val"]
            x = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            whole = x > 0 if value.dim() else x.abs().ceil()  # a count divides
            inputs.append(x.requires_grad_() if value.is_floating_point() else whole.to(value.dtype))
    made = [y for y in module(*inputs) if y.is_floating_point()]  # type: ignore[operator]
    trained = [x for x in inputs if x.requires_grad]
    seeds = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in made]
    grads = torch.autograd.grad(made, trained, seeds, allow_unused=True)
    return [*made, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("name", models.SWEEP)
def test_fused_blocks_compute_the_same(name: str) -> None:
    """All kernels chosen, forward or gradients alone, and every second product: then some chains go by torch."""
    for keys, every in [*((keys, 1) for keys in KEYS.values()), (KEYS["all"], 2)]:
        assert _fused_equal(graph_of(name), plan_of(name), keys, every) >= 2


def _lines(forward: object) -> list[str]:
    """The epilogues of a small module's products, which compute the same when they are fused."""
    width = 16

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
            self.norm = nn.LayerNorm(width)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(forward(self, x).flatten(0, 1), y.flatten())  # type: ignore[operator]

    batch = {"x": torch.randn(2, 8, width), "y": torch.randint(width, (2, 8))}
    graph = promote(trace(Model(), batch))
    plan = searched(graph)
    assert _fused_equal(graph, plan, KEYS["all"])
    return [row.line for block in plan.blocks for row in block.products]


def test_a_value_that_several_read_ends_the_chain_and_is_stored() -> None:
    lines = _lines(lambda m, x: F.relu(h := F.gelu(m.a(x)) + x) * m.norm(h))
    assert lines == ["t0: m n | v0 = gelu(acc); v1 = add(v0, t0) | v1, acc"]


def test_what_waits_for_the_product_in_another_way_is_not_joined() -> None:
    assert _lines(lambda m, x: (h := m.a(x)) * m.norm(h)) == [PLAIN]
    assert _lines(lambda m, x: (h := m.a(x)) + m.b(F.relu(h))) == [PLAIN, "t0: m n | v0 = add(t0, acc) | v0"]


def test_what_is_read_before_the_chain_ends_is_left_alone() -> None:
    """The kernel stands where its last op stood: what reads an earlier op before that would come too late."""
    assert _lines(lambda m, x: m.norm(F.relu(h := m.a(x))) + F.gelu(h)) == [PLAIN]
    lines = _lines(lambda m, x: (relu := F.relu(h := m.a(x))) * (gelu := F.gelu(h)) + m.norm(relu) + m.norm(gelu))
    assert lines == [" | v0 = relu(acc); v1 = gelu(acc) | v1, v0, acc"]


def test_what_was_made_before_is_loaded() -> None:
    lines = _lines(lambda m, x: m.a(x) * m.norm(m.b(x)))
    assert sorted(lines) == [PLAIN, "t0: m n | v0 = mul(acc, t0) | v0, acc"]


def test_another_dtype_or_shape_is_not_joined() -> None:
    assert _lines(lambda m, x: m.a(x) * m.norm.weight) == [PLAIN]
    assert _lines(lambda m, x: m.a(x) * x.mean(-1, keepdim=True)) == [PLAIN]
    assert _lines(lambda m, x: F.softmax(m.a(x), -1)) == [PLAIN]


def test_negation_powers_and_numbers() -> None:
    lines = _lines(lambda m, x: -(m.a(x) ** 3) * 2)
    assert lines == [" | v0 = mul(acc, acc); v1 = mul(v0, acc); v2 = mul(v1, -1.0); v3 = mul(v2, 2.0) | v3, acc"]


def _on_a100(graph: Graph, tp: int) -> Plan:
    return search(graph, Cluster.load("dgx-a100", nodes=1), 64, {"tp": tp, "pp": 1, "dp": 8 // tp, "micro_batch": 8})


SILU = "t0: m n | v0 = silu(t0); v1 = mul(v0, acc) | v1, acc"
GELU = " | v0 = gelu(acc) | v0, acc"
RESIDUAL = "t0: m n | v0 = add(acc, t0) | v0"
SMALL = {
    "the other way round": (lambda m, x: x - m.a(x), ["t0: m n | v0 = sub(t0, acc) | v0"]),
    "twice itself": (lambda m, x: (h := m.a(x)) * h, [" | v0 = mul(acc, acc) | v0, acc"]),
    "one weight twice": (lambda m, x: m.a(F.gelu(m.a(x))), [GELU, PLAIN]),
    "a gate of its own": (lambda m, x: m.b(F.silu(m.a(x)) * m.b(x)) + x, [PLAIN, SILU, RESIDUAL]),
    "an operand that is added too": (lambda m, x: m.b(h := F.gelu(m.a(x))) + h, [GELU, RESIDUAL]),
    "rows flattened between": (
        lambda m, x: m.b(F.gelu(m.a(x)).reshape(-1, 16)).reshape(len(x), 8, 16) + x,
        [GELU, RESIDUAL],
    ),
    "columns folded": (lambda m, x: F.gelu(m.a(x).reshape(len(x), 16, 8)).reshape(len(x), 8, 16), [PLAIN]),
    "whole numbers": (lambda m, x: 2 * m.a(x) + 1, [" | v0 = mul(acc, 2.0); v1 = add(v0, 1.0) | v1"]),
    "one residual twice": (lambda m, x: m.a(x) + x + x, ["t0: m n | v0 = add(acc, t0); v1 = add(v0, t0) | v1"]),
    "two activations": (
        lambda m, x: F.gelu(m.a(x)) * torch.tanh(m.b(x)),
        [PLAIN, "t0: m n | v0 = gelu(t0); v1 = tanh(acc); v2 = mul(v0, v1) | v2, acc"],
    ),
    "halves of one weight": (
        lambda m, x: torch.cat([F.silu((p := m.a(x).chunk(2, -1))[0]) * p[1]] * 2, -1),
        [PLAIN, SILU],
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_modules(name: str) -> None:
    forward, expected = SMALL[name]
    assert _lines(forward) == expected


def test_a_collective_ends_the_chain() -> None:
    """Row-parallel, the sum over ranks stands between the product and its residual."""
    _, batch = models.make("gpt", 2)
    graph = trace(models.Gpt(width=1024, heads=8, layers=2), batch)
    whole, row = (rows_of(_on_a100(graph, tp))["blocks.0.down"] for tp in (1, 2))
    assert row.k * 2 == whole.k
    assert row.line == PLAIN
    assert row.inner == whole.inner == BIASED_GELU
    assert whole.line == "bias: n, t0: m n | v0 = add(acc, bias); v1 = add(t0, v0) | v1"
