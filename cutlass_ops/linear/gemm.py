"""The products behind linear layers, forward, dgrad and wgrad each an op of its own, with torch's GEMM behind them.

    op              computes                     weight (n, k)      transposed: weight (k, n)
    ------------    -------------------------    ---------------    -------------------------
    linear          y (*m, n) from x (*m, k)     x @ w.T + bias     x @ w + bias
    linear_dgrad    dx from dy and w             dy @ w             dy @ w.T
    linear_wgrad    dw from dy and x             dy.T @ x           x.T @ dy

Each is linear in both operands, so each one's derivative is the other two. ``eager`` is ``linear`` through torch's own
autograd, for programs that run node by node: a registered op costs Python time on every call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

_LIBRARY = torch.library.Library("cutlass_ops", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias=None, bool transposed=False) -> Tensor")
_LIBRARY.define("linear_dgrad(Tensor grad, Tensor weight, bool transposed=False) -> Tensor")
_LIBRARY.define("linear_wgrad(Tensor grad, Tensor x, bool transposed=False) -> Tensor")

Grads = tuple[torch.Tensor | None, ...]
ops = torch.ops.cutlass_ops


def eager(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, transposed: bool = False
) -> torch.Tensor:
    """x (*m, k) -> (*m, n)."""
    if not transposed:
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.matmul(x, weight)
    return torch.addmm(bias, _rows(x), weight).view(*x.shape[:-1], weight.shape[1])


def dgrad(grad: torch.Tensor, weight: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """grad (*m, n) -> (*m, k)."""
    product = torch.mm(_rows(grad), weight.t() if transposed else weight)
    return product.view(*grad.shape[:-1], product.shape[1])


def add_dgrad(
    total: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor, transposed: bool = False
) -> torch.Tensor:
    """``total`` (*m, k), contiguous, with ``dgrad`` added in place."""
    _rows(total).addmm_(_rows(grad), weight.t() if transposed else weight)
    return total


def wgrad(grad: torch.Tensor, x: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """grad (*m, n), x (*m, k) -> (n, k), or (k, n) when ``transposed``."""
    a, b = (_rows(x), _rows(grad)) if transposed else (_rows(grad), _rows(x))
    return torch.mm(a.t(), b)


def bias_grad(grad: torch.Tensor) -> torch.Tensor:
    """grad (*m, n) -> (n)."""
    return _rows(grad).sum(0)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, transposed: bool = False
) -> torch.Tensor:
    matrix = weight if transposed else weight.t()
    product = torch.mm(_rows(x), matrix) if bias is None else torch.addmm(bias, _rows(x), matrix)
    return product.view(*x.shape[:-1], product.shape[1])


def _fake_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, transposed: bool = False
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1 if transposed else 0])


def _fake_dgrad(grad: torch.Tensor, weight: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[0 if transposed else 1])


def _fake_wgrad(grad: torch.Tensor, x: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    shape = (grad.shape[-1], x.shape[-1])
    return grad.new_empty(shape[::-1] if transposed else shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Each operand is kept where the other one has a gradient."""
    rows = zip(inputs[:2], ctx.needs_input_grad[1::-1], strict=True)
    ctx.save_for_backward(*(x if wanted else None for x, wanted in rows))
    ctx.transposed = inputs[-1]


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _save(ctx, inputs, output)
    ctx.biased = inputs[2] is not None


def _linear_backward(ctx: Any, grad: torch.Tensor) -> Grads:
    x, weight = ctx.saved_tensors
    dx = ops.linear_dgrad(grad, weight, ctx.transposed) if ctx.needs_input_grad[0] else None
    dw = ops.linear_wgrad(grad, x, ctx.transposed) if ctx.needs_input_grad[1] else None
    return dx, dw, bias_grad(grad) if ctx.biased else None, None


def _dgrad_backward(ctx: Any, grad: torch.Tensor) -> Grads:
    dy, weight = ctx.saved_tensors
    to_dy = ops.linear(grad, weight, None, ctx.transposed) if ctx.needs_input_grad[0] else None
    return to_dy, ops.linear_wgrad(dy, grad, ctx.transposed) if ctx.needs_input_grad[1] else None, None


def _wgrad_backward(ctx: Any, grad: torch.Tensor) -> Grads:
    dy, x = ctx.saved_tensors
    to_dy = ops.linear(x, grad, None, ctx.transposed) if ctx.needs_input_grad[0] else None
    return to_dy, ops.linear_dgrad(dy, grad, ctx.transposed) if ctx.needs_input_grad[1] else None, None


for _name, _run, _fake, _backward, _keep in (
    ("linear", _linear, _fake_linear, _linear_backward, _save_linear),
    ("linear_dgrad", dgrad, _fake_dgrad, _dgrad_backward, _save),
    ("linear_wgrad", wgrad, _fake_wgrad, _wgrad_backward, _save),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cutlass_ops::{_name}", _fake)
    torch.library.register_autograd(f"cutlass_ops::{_name}", _backward, setup_context=_keep)
