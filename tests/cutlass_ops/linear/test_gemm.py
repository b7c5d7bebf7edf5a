"""The GEMM ops against F.linear, and against torch's own rules for registered ops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from cutlass_ops.linear import gemm

ops = torch.ops.cutlass_ops
SHAPES = [(4,), (2, 3), (2, 1, 3)]


def _operands(m: tuple[int, ...], transposed: bool, grad: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(*m, 5), (5, 7) if transposed else (7, 5), (7,)]
    return [torch.randn(s, dtype=torch.float64, requires_grad=grad) for s in shapes]


def _reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    return F.linear(x, weight.t() if transposed else weight, bias)


@pytest.mark.parametrize("run", [ops.linear, gemm.eager])
@pytest.mark.parametrize("m", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients(
    run: Callable[..., torch.Tensor], m: tuple[int, ...], transposed: bool, biased: bool
) -> None:
    x, weight, bias = _operands(m, transposed)
    bias = bias if biased else None
    wanted = [t for t in (x, weight, bias) if t is not None]
    y, expected = run(x, weight, bias, transposed), _reference(x, weight, bias, transposed)
    seed = torch.randn_like(y)
    torch.testing.assert_close(y, expected)
    grads = torch.autograd.grad(y, wanted, seed), torch.autograd.grad(expected, wanted, seed)
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("m", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_opcheck(m: tuple[int, ...], transposed: bool) -> None:
    x, weight, bias = _operands(m, transposed)
    grad = torch.randn(*m, 7, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(ops.linear.default, (x, weight, bias, transposed))
    torch.library.opcheck(ops.linear.default, (x, weight, None, transposed))
    torch.library.opcheck(ops.linear_dgrad.default, (grad, weight, transposed))
    torch.library.opcheck(ops.linear_wgrad.default, (grad, x, transposed))


def test_second_derivatives() -> None:
    for transposed in (False, True):
        x, weight, bias = _operands((3,), transposed)
        assert torch.autograd.gradgradcheck(lambda *t, f=transposed: ops.linear(*t, f), (x, weight, bias))


def test_dgrad_and_wgrad_are_two_ops() -> None:
    x, weight, _ = _operands((4,), False)
    names: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(str(func))
            return func(*args, **kwargs or {})

    y = ops.linear(x, weight)
    with Watch():
        y.sum().backward()
    assert {"cutlass_ops.linear_dgrad.default", "cutlass_ops.linear_wgrad.default"} <= set(names)
