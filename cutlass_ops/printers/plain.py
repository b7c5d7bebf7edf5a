"""A fused GEMM as torch would run it: the product in the operands' dtype, then op by op; the fallback and the rival."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from cutlass_ops.printers.reference import grouped, of_rows
from cutlass_ops.spec.elementwise import OPS
from cutlass_ops.spec.spec import ACCUMULATOR, Gemm, Op


def plain(
    gemm: Gemm,
    a: torch.Tensor,
    b: torch.Tensor,
    loads: Sequence[torch.Tensor],
    offsets: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """A tensor for each store of ``gemm``, operands as ``spec`` says; a leading bias rides on the product."""
    values = {row.name: _over(gemm, row.over, x, a, offsets) for row, x in zip(gemm.loads, loads, strict=True)}
    ops = list(gemm.ops)
    if ops and _is_bias(gemm, ops[0]):
        first = ops.pop(0)
        values[first.value] = _product(gemm, a, b, values[str(first.args[1])], offsets)
    else:
        values[ACCUMULATOR] = _product(gemm, a, b, None, offsets)
    return epilogue(gemm, ops, values)


def epilogue(gemm: Gemm, ops: Sequence[Op], values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The stores of ``gemm`` from the values that ``ops`` start with."""
    known: dict[str, torch.Tensor] = dict(values)
    for op in ops:
        known[op.value] = OPS[op.op].torch(*(known[arg] if isinstance(arg, str) else arg for arg in op.args))
    return tuple(known[store.value].to(getattr(torch, store.dtype)) for store in gemm.stores)


def _product(
    gemm: Gemm, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, offsets: torch.Tensor | None
) -> torch.Tensor:
    a, b = a if gemm.a == "m k" else a.mT, b.mT if gemm.b == "n k" else b
    if offsets is not None:
        return grouped(a, b, offsets)
    if gemm.kind == "linear":
        return F.linear(a, b.mT, bias)
    return torch.matmul(a, b) if bias is None else torch.addmm(bias, a, b)


def _is_bias(gemm: Gemm, op: Op) -> bool:
    """Whether an op adds a load over "n" to the accumulator, which nothing else reads."""
    rows = {row.name for row in gemm.loads if row.over == "n"}
    readers = [o for o in gemm.ops if ACCUMULATOR in o.args] + [s for s in gemm.stores if s.value == ACCUMULATOR]
    fits = gemm.kind in ("mm", "linear") and op.op == "add" and op.args[0] == ACCUMULATOR and op.args[1] in rows
    return fits and len(readers) == 1


def _over(gemm: Gemm, over: str, x: torch.Tensor, a: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
    """A load in a shape that broadcasts against the product."""
    if over == "m":
        return x.unsqueeze(-1)
    if over == "n" and offsets is not None:
        return of_rows(x, offsets, a)
    return x.unsqueeze(-2) if over == "n" and gemm.kind == "batched" else x
