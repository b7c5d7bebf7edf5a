"""Gradients of epilogues against autograd through the reference's own ops, in float64."""

from __future__ import annotations

import pytest
import torch

from cutlass_ops.printers.reference import reference
from cutlass_ops.spec.elementwise import OPS
from cutlass_ops.spec.gradient import PRODUCT, gradient
from cutlass_ops.spec.spec import Gemm, Load, Op, Store

F64 = "float64"
UNARY = [name for name, row in OPS.items() if row.arity == 1]


def _gemm(ops: tuple[Op, ...], loads: tuple[str, ...], stores: tuple[str, ...]) -> Gemm:
    rows = tuple(Load(name, "m n", F64) for name in loads)
    return Gemm("linear", F64, loads=rows, ops=ops, stores=tuple(Store(s, F64) for s in stores))


# the epilogue, the value that the next product reads, the leaves
CASES = {
    **{
        op: (_gemm((Op("z", "mul", ("acc", 2.0)), Op("h", op, ("z",))), (), ("h", "z")), "h", ("z",)) for op in UNARY
    },
    "gate": (
        _gemm((Op("v0", "silu", ("gate",)), Op("h", "mul", ("v0", "acc"))), ("gate",), ("h", "acc")),
        "h",
        ("gate", "acc"),
    ),
    "residual": (
        _gemm((Op("v0", "gelu", ("acc",)), Op("h", "sub", ("v0", "x"))), ("x",), ("h", "acc")),
        "h",
        ("acc", "x"),
    ),
    # GPT-2's gelu written out: 0.5 z (1 + tanh(0.79788 (z + 0.044715 z z z)))
    "written out": (
        _gemm(
            (
                Op("z", "mul", ("acc", 1.0)),
                Op("v0", "mul", ("z", "z")),
                Op("v1", "mul", ("v0", "z")),
                Op("v2", "mul", ("v1", 0.044715)),
                Op("v3", "add", ("z", "v2")),
                Op("v4", "mul", ("v3", 0.79788456)),
                Op("v5", "tanh", ("v4",)),
                Op("v6", "add", ("v5", 1.0)),
                Op("v7", "mul", ("z", 0.5)),
                Op("h", "mul", ("v7", "v6")),
            ),
            (),
            ("h", "z"),
        ),
        "h",
        ("z",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_autograd(name: str) -> None:
    gemm, value, leaves = CASES[name]
    backward = gradient(gemm, value, leaves)
    dy, w2 = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(6, 7, dtype=torch.float64)
    loads = {load.name: torch.randn(2, 5, 7, dtype=torch.float64) for load in backward.loads}
    found = reference(backward)(dy, w2, *loads.values())
    names = [PRODUCT if leaf == "acc" else leaf for leaf in leaves]
    inputs = {leaf: loads.get(leaf, torch.randn(2, 5, 7, dtype=torch.float64)).requires_grad_() for leaf in names}
    values = {**loads, **inputs}
    for op in gemm.ops:
        if op.value not in values:
            args = [PRODUCT if arg == "acc" else arg for arg in op.args]
            if all(arg in values for arg in args if isinstance(arg, str)):
                values[op.value] = OPS[op.op].torch(*(values[a] if isinstance(a, str) else a for a in args))
    expected = torch.autograd.grad(values[value], tuple(inputs.values()), dy @ w2)
    for grad, wanted in zip(found, expected, strict=True):
        assert wanted.norm() > 0
        torch.testing.assert_close(grad, wanted)


def test_nothing_dead_and_nothing_twice() -> None:
    gemm, value, leaves = CASES["gate"]
    backward = gradient(gemm, value, leaves)
    assert [load.name for load in backward.loads] == ["gate", PRODUCT]
    assert [op.op for op in backward.ops] == ["silu", "mul", "mul", "silu_backward"]


@pytest.mark.parametrize(
    ("value", "leaves", "message"),
    [
        ("h", ("x",), "needs the accumulator, which is no leaf"),
        ("x", ("z", "x"), "x does not depend on z"),
    ],
)
def test_refuses(value: str, leaves: tuple[str, ...], message: str) -> None:
    gemm = _gemm((Op("z", "relu", ("acc",)), Op("h", "add", ("z", "x"))), ("x",), ("h", "z"))
    with pytest.raises(ValueError, match=message):
        gradient(gemm, value, leaves)


def test_no_second_derivative() -> None:
    gemm = _gemm((Op("h", "silu_backward", ("acc", "x")),), ("x",), ("h", "acc"))
    with pytest.raises(ValueError, match="silu_backward has no gradient"):
        gradient(gemm, "h", ("acc", "x"))
