"""Fused linears against plain torch in float64, values and every gradient; the registered ops checked and exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cutlass_ops.linear import (
    fused,
    gemm,  # noqa: F401 (gemm defines the library that fused extends)
)

ops = torch.ops.cutlass_ops
NONE = ["", "", ""]
Run = Callable[..., list[torch.Tensor]]
RUNS = [ops.fused_linear, fused.eager]
GELU = "bias: n | v0 = add(acc, bias); v1 = gelu(v0) | v1, v0"
GATE = "gate: m n | v0 = silu(gate); v1 = mul(v0, acc) | v1, acc"
RESIDUAL = "bias: n, residual: m n | v0 = add(acc, bias); v1 = mul(v0, 0.5); v2 = add(v1, residual) | v2"
PLAIN = " |  | acc"


def _tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def _same(found: list[torch.Tensor], expected: list[torch.Tensor], inputs: list[torch.Tensor]) -> None:
    """Values and the gradients of all inputs, for random gradients of all outputs."""
    seeds = [torch.randn_like(y) for y in expected]
    torch.testing.assert_close(list(found), list(expected))
    rows = [torch.autograd.grad(ys, inputs, seeds) for ys in (found, expected)]
    for grad, wanted in zip(*rows, strict=True):
        assert wanted.norm() > 0
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("m", [(4,), (2, 3)])
def test_gelu_with_its_argument(run: Run, m: tuple[int, ...], transposed: bool) -> None:
    x, weight, bias = inputs = _tensors((*m, 5), (5, 7) if transposed else (7, 5), (7,))
    z = F.linear(x, weight.T if transposed else weight, bias)
    _same(run(x, weight, [bias], [], GELU, "", transposed, NONE), [F.gelu(z), z], inputs)


@pytest.mark.parametrize("run", RUNS)
def test_residual_and_scale(run: Run) -> None:
    x, weight, bias, residual = inputs = _tensors((2, 3, 5), (7, 5), (7,), (2, 3, 7))
    expected = F.linear(x, weight, bias) * 0.5 + residual
    _same(run(x, weight, [bias, residual], [], RESIDUAL, "", False, NONE), [expected], inputs)


@pytest.mark.parametrize("run", RUNS)
def test_gate(run: Run) -> None:
    x, weight, gate = inputs = _tensors((2, 3, 5), (7, 5), (2, 3, 7))
    up = F.linear(x, weight)
    _same(run(x, weight, [gate], [], GATE, "", False, NONE), [F.silu(gate) * up, up], inputs)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("transposed", [False, True])
def test_mlp_whose_gradient_rides_on_the_second_dgrad(run: Run, transposed: bool) -> None:
    x, w1, b1, w2, residual = inputs = _tensors((2, 3, 5), (7, 5), (7,), (7, 5) if transposed else (5, 7), (2, 3, 5))
    hidden, z = run(x, w1, [b1], [], GELU, "", False, NONE)
    line = "residual: m n | v0 = add(acc, residual) | v0"
    found = run(hidden, w2, [residual], [z], line, GELU, transposed, NONE)
    expected = F.linear(F.gelu(F.linear(x, w1, b1)), w2.T if transposed else w2) + residual
    _same(found, [expected], inputs)


@pytest.mark.parametrize("run", RUNS)
def test_gated_mlp_whose_gradient_rides_on_down(run: Run) -> None:
    x, wg, wu, wd = inputs = _tensors((2, 3, 5), (7, 5), (7, 5), (5, 7))
    (gate,) = run(x, wg, [], [], PLAIN, "", False, NONE)
    hidden, up = run(x, wu, [gate], [], GATE, "", False, NONE)
    found = run(hidden, wd, [], [up, gate], PLAIN, GATE, False, NONE)
    _same(found, [F.linear(F.silu(F.linear(x, wg)) * F.linear(x, wu), wd)], inputs)


@pytest.mark.parametrize("run", RUNS)
def test_only_what_needs_a_gradient_gets_one(run: Run) -> None:
    x, weight, bias = _tensors((4, 5), (7, 5), (7,))
    for kept in (x, weight, bias):
        for other in (x, weight, bias):
            other.requires_grad_(other is kept)
        y = run(x, weight, [bias], [], GELU, "", False, NONE)[0]
        expected = F.gelu(F.linear(x, weight, bias))
        seed = torch.randn_like(expected)
        torch.testing.assert_close(
            torch.autograd.grad(y, kept, seed), torch.autograd.grad(expected, kept, seed)
        )


CASES = {
    "gelu": ([(2, 3, 5), (7, 5)], [(7,)], [], GELU, ""),
    "gate": ([(2, 3, 5), (7, 5)], [(2, 3, 7)], [], GATE, ""),
    "plain": ([(4, 5), (7, 5)], [], [], PLAIN, ""),
    "residual": ([(4, 5), (7, 5)], [(7,), (4, 7)], [], RESIDUAL, ""),
    "inner": ([(4, 7), (5, 7)], [], [(4, 7), (4, 7)], PLAIN, GATE),
}


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str) -> None:
    shapes, loads, inner, line, inner_line = CASES[case]
    x, weight = _tensors(*shapes)
    if inner_line:
        x = x.detach()
    torch.library.opcheck(
        ops.fused_linear.default,
        (x, weight, _tensors(*loads), _tensors(*inner), line, inner_line, False, NONE),
    )


def test_opcheck_of_the_product() -> None:
    a, b, bias = (x.detach() for x in _tensors((4, 5), (4, 7), (7,)))
    line = "bias: n | v0 = add(acc, bias); v1 = relu(v0) | v1, v0"
    torch.library.opcheck(ops.gemm.default, (a, b, [bias], line, "mm", "k m", "k n", ""))


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1, self.w2 = (nn.Parameter(x.detach()) for x in _tensors((7, 5), (7,), (5, 7)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, z = ops.fused_linear(x, self.w1, [self.b1], [], GELU, "", False, NONE)
        return ops.fused_linear(hidden, self.w2, [], [z], PLAIN, GELU, False, NONE)[0]


def test_export_with_a_dynamic_batch() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    module = _Mlp()
    exported = torch.export.export(
        module, (torch.randn(4, 5, dtype=torch.float64),), dynamic_shapes=({0: batch},)
    ).module()
    for rows in (1, 3, 17):
        x = torch.randn(rows, 5, dtype=torch.float64)
        expected = F.linear(F.gelu(F.linear(x, module.w1, module.b1)), module.w2)
        torch.testing.assert_close(exported(x), expected)


def test_the_log_counts_products() -> None:
    log: Counter[str] = Counter()
    x, weight, bias = _tensors((4, 5), (7, 5), (7,))
    fused.eager(x, weight, [bias], [], GELU, "", False, NONE, log)[0].sum().backward()
    assert log == {"torch was chosen": 3}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bias: n | v0 = add(acc, bias)", "an epilogue is 'loads | ops | stores'"),
        (" | v0 := relu(acc) | v0", "an op is 'value = op\\(arguments\\)'"),
        ("scale: | v0 = mul(acc, scale) | v0", "scale: a fused linear loads a bias, added first"),
        ("rows: m | v0 = mul(acc, rows) | v0", "rows: a fused linear loads a bias, added first"),
        ("bias: n | v0 = mul(acc, bias) | v0", "bias: a fused linear loads a bias, added first"),
        ("bias: n | v0 = add(acc, bias); v1 = gelu(v0) | v1", "the gradient reads v0, which is not stored"),
    ],
)
def test_refuses(line: str, message: str) -> None:
    x, weight, bias = _tensors((4, 5), (7, 5), (7,))
    with pytest.raises(ValueError, match=message):
        fused.eager(x, weight, [bias], [], line, "", False, NONE)
