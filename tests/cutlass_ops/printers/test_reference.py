"""The torch reference of each spec against eager torch written by hand, and what a spec may not say."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from specs import EAGER, operands, specs

from cutlass_ops.printers.cpp import INCLUDE
from cutlass_ops.printers.reference import reference
from cutlass_ops.spec.elementwise import OPS
from cutlass_ops.spec.spec import Gemm, Load, Op, Store, from_json, to_json

# Relative error in the 2-norm. The reference rounds once; eager rounds its product and each op behind it, at most five
# times, each by at most half a unit in the last place (2^-9 of bfloat16, 2^-12 of float16); float32 sums in another
# order.
BOUNDS = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 5 * 2**-9, "float16": 5 * 2**-12}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", EAGER)
def test_equals_eager(name: str, dtype: str) -> None:
    gemm = specs(dtype)[name]
    inputs = operands(gemm)
    expected = EAGER[name](*inputs)
    found = reference(gemm)(*inputs)
    assert len(found) == len(expected) == len(gemm.stores)  # type: ignore[arg-type]
    for y, wanted, store in zip(found, expected, gemm.stores, strict=True):  # type: ignore[call-overload]
        assert y.dtype == getattr(torch, store.dtype)
        assert y.shape == wanted.shape
        assert wanted.double().norm() > 0
        bound = max(BOUNDS[dtype], BOUNDS[store.dtype])
        assert (y.double() - wanted.double()).norm() <= bound * wanted.double().norm()


def test_one_rounding() -> None:
    """1 + 2^-9 is no bfloat16: rounded in between, the sum would lose it twice."""
    gemm = Gemm(
        "mm",
        "bfloat16",
        b="k n",
        loads=(Load("residual", "m n", "bfloat16"),),
        ops=(Op("v0", "add", ("acc", "residual")),),
        stores=(Store("v0", "bfloat16"),),
    )
    a = torch.tensor([[1.0, 2.0**-9]]).bfloat16()
    b = torch.ones(2, 1).bfloat16()
    found = reference(gemm)(a, b, torch.tensor([[-1.0]]).bfloat16())[0]
    assert found.item() == 2.0**-9
    assert (a @ b - 1).item() == 0


def test_float8_operands() -> None:
    gemm = dataclasses.replace(
        specs()["scaled"],
        dtype="float8_e4m3fn",
        stores=(Store("v1", "bfloat16"),),
        loads=(Load("scale", "", "float32"),),
    )
    a, b, scale = operands(gemm)
    expected = torch.relu(a.float() @ b.float().T * scale).bfloat16()
    assert expected.float().norm() > 0
    torch.testing.assert_close(reference(gemm)(a, b, scale)[0], expected)


@pytest.mark.parametrize("name", EAGER)
def test_json_both_ways(name: str) -> None:
    gemm = specs()[name]
    assert from_json(to_json(gemm)) == gemm
    assert hash(from_json(to_json(gemm))) == hash(gemm)


def test_digest_is_stable() -> None:
    """Databases and caches hold it: a change here throws away everything that was built and measured."""
    assert specs()["gelu"].digest == "9e279d518ff97e850f93a5d4e8d56948751709226bf478bf11a2407aa50c0692"
    assert len({gemm.digest for dtype in BOUNDS for gemm in specs(dtype).values()}) == len(BOUNDS) * len(EAGER)


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "conv"}, "kind 'conv' is none of: 'mm'"),
    ({"dtype": "int8"}, "dtype 'int8' is none of"),
    ({"a": "k n"}, "a 'k n' is none of"),
    ({"loads": (Load("bias", "k", "bfloat16"),)}, "load bias: over 'k' is none of"),
    ({"loads": (Load("acc", "n", "bfloat16"),)}, "'acc' is no free identifier"),
    ({"loads": (Load("c", "n", "bfloat16"),)}, "'c' is no free identifier"),
    ({"loads": (Load("if", "n", "bfloat16"),)}, "'if' is no free identifier"),
    ({"loads": (Load("x);", "n", "bfloat16"),)}, "'x\\);' is no free identifier"),
    ({"loads": (Load("bias", "n", "bfloat16"),)}, "bias is read by no op and stored by none"),
    ({"ops": (Op("v0", "softmax", ("acc",)),)}, "v0: op 'softmax' is none of"),
    ({"ops": (Op("v0", "add", ("acc",)),)}, "v0: add takes 2 arguments, got 1"),
    ({"ops": (Op("v0", "add", (1.0, 2.0)),)}, "v0: add of numbers alone"),
    ({"ops": (Op("v0", "mul", ("acc", float("inf"))),)}, "v0: mul of a number that is not finite"),
    ({"ops": (Op("v0", "add", ("acc", "v1")), Op("v1", "relu", ("acc",)))}, "v0: argument 'v1' is none of"),
    ({"stores": ()}, "a GEMM stores at least one value"),
    ({"stores": (Store("acc", "bfloat16"), Store("v9", "bfloat16"))}, "store 'v9' is none of"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(specs()["plain"], **change)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "mm"}', json.dumps({"loads": 1, "ops": 2, "stores": 3})])
def test_refuses_other_json(text: str) -> None:
    with pytest.raises(ValueError, match="not a GEMM's JSON"):
        from_json(text)


@pytest.mark.parametrize("op", OPS)
def test_ops_have_a_device_function(op: str) -> None:
    """The C++ printer calls a function of the op's name and arity."""
    parameters = ["float x"] if OPS[op].arity == 1 else ["float x, float y", "float grad, float x"]
    text = (INCLUDE / "elementwise.cuh").read_text()
    assert any(f"CUTLASS_DEVICE float {op}({words})" in text for words in parameters)


@pytest.mark.parametrize("op", [name for name in OPS if name.endswith("_backward")])
def test_backward_ops_are_derivatives(op: str) -> None:
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(50, dtype=torch.float64)
    expected = torch.autograd.grad(OPS[op.removesuffix("_backward")].torch(x), x, grad)[0]
    assert expected.norm() > 0
    torch.testing.assert_close(OPS[op].torch(grad, x.detach()), expected)
