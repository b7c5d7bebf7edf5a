"""The fused linear as ops: ``fused_linear`` registered with torch, and ``eager`` for programs that run node by node.

    stores = fused_linear(x, weight, loads, inner, line, inner_line, transposed, keys)
    stores = gemm(a, b, loads, line, kind, a_order, b_order, key)        what its traced backward is made of

Lines are epilogues as ``notation`` writes them, the rest is what ``layer`` says. A registered op costs Python time on
every call, so ``eager`` is an autograd function over the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cutlass_ops.linear import dispatch, layer
from cutlass_ops.linear.dispatch import Log
from cutlass_ops.linear.layer import Layer, Optionals, Product, Tensors
from cutlass_ops.spec import notation
from cutlass_ops.spec.spec import Gemm

_LIBRARY = torch.library.Library("cutlass_ops", "FRAGMENT")
_LIBRARY.define(
    "gemm(Tensor a, Tensor b, Tensor[] loads, str line, str kind, str a_order, str b_order, str key) -> Tensor[]"
)
_LIBRARY.define(
    "fused_linear(Tensor x, Tensor weight, Tensor[] loads, Tensor[] inner, str line, str inner_line, bool transposed, "
    "str[] keys) -> Tensor[]"
)
ops = torch.ops.cutlass_ops


def eager(
    x: torch.Tensor,
    weight: torch.Tensor,
    loads: Sequence[torch.Tensor],
    inner: Sequence[torch.Tensor],
    line: str,
    inner_line: str,
    transposed: bool,
    keys: Sequence[str],
    log: Log | None = None,
) -> Tensors:
    """x (*m, k) -> a tensor (*m, n) for each store. ``log`` counts the products that ran on a kernel, and why not."""
    return through(product(log), x, weight, loads, inner, line, inner_line, transposed, keys)


def through(
    product: Product, x: torch.Tensor, weight: torch.Tensor, loads: Sequence[torch.Tensor],
    inner: Sequence[torch.Tensor], *literals: Any,
) -> Tensors:  # fmt: skip
    """``eager``, its GEMMs by ``product``."""
    return _Fused.apply(layer_of(x.dtype, *literals), product, len(loads), x, weight, *loads, *inner)


def product(log: Log | None) -> Product:
    """A GEMM through ``dispatch``."""

    def run(gemm: Gemm, a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor], key: str) -> Tensors:
        return dispatch.run(gemm, a, b, loads, key=key, log=log)

    return run


def layer_of(dtype: torch.dtype, line: str, inner_line: str, transposed: bool, keys: Sequence[str]) -> Layer:
    """The layer that an op's literals say."""
    return layer.layer(line, inner_line, transposed, _name(dtype), tuple(keys))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: Layer, product: Product, count: int, x: torch.Tensor, weight: torch.Tensor, *rest: torch.Tensor
    ) -> Tensors:
        loads, inner = rest[:count], rest[count:]
        stores = tuple(product(op.forward, x, weight, loads, op.keys[0]))
        ctx.op, ctx.product, ctx.count = op, product, count
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*layer.kept(op, x, weight, loads, inner, stores))
        return stores

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        needs = ctx.needs_input_grad[3:]
        asked = (needs[0], needs[1], ctx.count > 0 and needs[2])
        found = layer.gradients(ctx.op, ctx.saved_tensors, grads, asked, ctx.product)
        return None, None, None, found.x, found.weight, *found.loads, *found.inner


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gemm(a: torch.Tensor, b: torch.Tensor, loads: list[torch.Tensor], *literals: str) -> list[torch.Tensor]:
    *words, key = literals
    return _owned(dispatch.run(notation.read(words[0], _name(a.dtype), *words[1:]), a, b, loads, key=key))


def _fake_gemm(a: torch.Tensor, b: torch.Tensor, loads: list[torch.Tensor], *literals: str) -> list[torch.Tensor]:
    line, kind, a_order, b_order, _ = literals
    rows = a.shape[:-1] if a_order == "m k" else (*a.shape[:-2], a.shape[-1])
    stores = notation.read(line, _name(a.dtype), kind, a_order, b_order).stores
    return [a.new_empty(*rows, b.shape[-2 if b_order == "n k" else -1]) for _ in stores]


def _linear(
    x: torch.Tensor, weight: torch.Tensor, loads: list[torch.Tensor], inner: list[torch.Tensor], *literals: Any
) -> list[torch.Tensor]:
    op = layer_of(x.dtype, *literals)
    return _owned(dispatch.run(op.forward, x, weight, loads, key=op.keys[0]))


def _fake_linear(
    x: torch.Tensor, weight: torch.Tensor, loads: list[torch.Tensor], inner: list[torch.Tensor], *literals: Any
) -> list[torch.Tensor]:
    op = layer_of(x.dtype, *literals)
    return [x.new_empty(*x.shape[:-1], weight.shape[1 if op.transposed else 0]) for _ in op.forward.stores]


def _owned(stores: Tensors) -> list[torch.Tensor]:
    """A registered op returns no tensor twice."""
    return [x.clone() if any(x is y for y in stores[:n]) else x for n, x in enumerate(stores)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    x, weight, loads, inner, *literals = inputs
    ctx.op = layer_of(x.dtype, *literals)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*layer.kept(ctx.op, x, weight, tuple(loads), tuple(inner), tuple(output)))


def _traced(
    gemm: Gemm, a: torch.Tensor, b: torch.Tensor, loads: Sequence[torch.Tensor], key: str
) -> list[torch.Tensor]:
    return ops.gemm(a, b, list(loads), notation.written(gemm), gemm.kind, gemm.a, gemm.b, key)


def _backward(ctx: Any, grads: list[torch.Tensor | None]) -> tuple[torch.Tensor | None | Optionals, ...]:
    x, weight, loads = ctx.needs_input_grad[:3]
    asked = (x, weight, bool(loads) and loads[0])
    found = layer.gradients(ctx.op, ctx.saved_tensors, grads, asked, _traced)
    return found.x, found.weight, found.loads, found.inner, None, None, None, None


_ROWS: tuple[tuple[str, Callable[..., Any], Callable[..., Any]], ...] = (
    ("gemm", _gemm, _fake_gemm),
    ("fused_linear", _linear, _fake_linear),
)
for _op, _run, _fake in _ROWS:
    _LIBRARY.impl(_op, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cutlass_ops::{_op}", _fake)
torch.library.register_autograd("cutlass_ops::fused_linear", _backward, setup_context=_save)
