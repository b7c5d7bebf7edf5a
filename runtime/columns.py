"""Column-parallel linears that share an operand: in backward one collective, hidden behind the weights' gradients.

    x --copy or all_gather--> h --linear--> q, k, v
    dq, dk, dv --dgrads--> dh, its all_reduce or reduce_scatter starts --wgrads--> dw --wait--> dx
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from cutlass_ops import gemm
from partitioner.layout import Shard
from runtime.collectives import Axis, Bound, segments_of

own = torch.ops.partitioner
SOURCES = (own.copy.default, own.all_gather.default)


class _Columns(torch.autograd.Function):
    """``weights`` alternate with biases (None where there is none); ``transposed`` says how each weight lies."""

    @staticmethod
    def forward(
        ctx: Any, axis: Axis, shard: Shard | None, transposed: tuple[bool, ...], x: torch.Tensor, *weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        h = x if shard is None else axis.gather(x, shard, axis.log.forward)
        ctx.axis, ctx.shard, ctx.transposed = axis, shard, transposed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, *weights[::2])
        rows = zip(weights[::2], weights[1::2], transposed, strict=True)
        return tuple(gemm.eager(h, weight, bias, flag) for weight, bias, flag in rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        h, *weights = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        started = _start(ctx, [*zip(grads, weights, ctx.transposed, strict=True)], h) if needs[0] else None
        found: list[torch.Tensor | None] = []
        for n, (grad, flag) in enumerate(zip(grads, ctx.transposed, strict=True)):
            found.append(gemm.wgrad(grad, h, flag) if grad is not None and needs[1 + 2 * n] else None)
            found.append(gemm.bias_grad(grad) if grad is not None and needs[2 + 2 * n] else None)
        return None, None, None, started() if started else None, *found


def _start(ctx: Any, rows: list[tuple[Any, torch.Tensor, bool]], h: torch.Tensor) -> Any:
    """Sum the dgrads into one matrix and start its collective; the result waits for it."""
    total: torch.Tensor | None = None
    for grad, weight, flag in rows:
        if grad is not None and total is not None:
            total = gemm.add_dgrad(total, grad, weight, flag)
        elif grad is not None:
            total = gemm.dgrad(grad, weight, flag)
    total = torch.zeros_like(h) if total is None else total
    if ctx.shard is None:
        work = ctx.axis.sum_async(total, "backward")
        return lambda: _waited(work, total)
    return ctx.axis.scatter_async(total, ctx.shard, "backward")


def _waited(work: dist.Work, total: torch.Tensor) -> torch.Tensor:
    work.wait()
    return total


def columns(axis: Axis, shard: Shard | None, transposed: tuple[bool, ...]) -> Bound:
    """x, weight, bias, weight, bias, ... -> the linears' results."""
    return lambda x, *weights: _Columns.apply(axis, shard, transposed, x, *weights)


def fuse(node: fx.Node, axis: Axis) -> bool:
    """Replace a copy or all_gather that only linears read, and those linears, by one node."""
    readers = list(node.users)
    if not readers or not all(_is_linear(reader, node) for reader in readers):
        return False
    shard = None
    if node.target == own.all_gather.default:
        shard = Shard(node.args[2], segments_of(node.args[3]))  # type: ignore[arg-type]
    rows = [reader.args[1:] for reader in readers]
    operands = [value for row in rows for value in row[:2]]
    function = columns(axis, shard, tuple(bool(row[2]) for row in rows))
    function.__name__ = "columns"  # type: ignore[attr-defined]
    with node.graph.inserting_before(node):
        fused = node.graph.call_function(function, (node.args[0], *operands))
        fused.meta = {k: v for k, v in readers[0].meta.items() if k == "modules"}
        results = [node.graph.call_function(operator.getitem, (fused, n)) for n in range(len(readers))]
    for reader, result in zip(readers, results, strict=True):
        result.meta = reader.meta
        reader.replace_all_uses_with(result)
        node.graph.erase_node(reader)
    node.graph.erase_node(node)
    return True


def _is_linear(reader: fx.Node, source: fx.Node) -> bool:
    """A linear of ``source`` by a parameter."""
    if reader.target != gemm.eager or reader.args[0] is not source or reader.kwargs:
        return False
    rest = [a for a in reader.args[1:] if isinstance(a, fx.Node)]
    return all(a.op == "placeholder" for a in rest)
