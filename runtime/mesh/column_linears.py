"""Column-parallel linears that share an operand: in backward one collective, hidden behind the weights' gradients.

    x --copy or all_gather--> h --linear--> q, k, v
    dq, dk, dv --dgrads--> dh, its all_reduce or reduce_scatter starts --wgrads--> dw --wait--> dx

A linear with a fused epilogue is one of them, and may load what an earlier one made (a gate).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from cutlass_ops.linear import fused, gemm, layer
from cutlass_ops.linear.layer import Layer, Product
from cutlass_ops.spec import notation
from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from partitioner.ops.collectives import CollectiveOp
from partitioner.sharding.layout import Shard, unflat
from runtime.mesh.axis import Axis
from runtime.mesh.collectives import Bound

FUSED = fused.ops.fused_linear.default
Tensors = tuple[torch.Tensor, ...]
Optionals = list[torch.Tensor | None]


@dataclass(frozen=True)
class Reader:
    """One of the linears: how its weight lies, and its layer where an epilogue is fused.

    ``rest`` says where its other tensors are from, a bias (None where there is none) or the epilogue's loads: a result
    of an earlier linear by its number, or the next argument (-1).
    """

    transposed: bool
    op: Callable[[torch.dtype], Layer] | None
    rest: tuple[int, ...]


class _Columns(torch.autograd.Function):
    """The tensors are each reader's weight and those of its ``rest`` that are arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        axis: Axis,
        shard: Shard | None,
        readers: tuple[Reader, ...],
        product: Product,
        x: torch.Tensor,
        *tensors: Any,
    ) -> Tensors:
        h = x if shard is None else axis.gather(x, shard, axis.phase)
        ctx.axis, ctx.shard, ctx.readers, ctx.product = axis, shard, readers, product
        ctx.set_materialize_grads(False)
        results: list[torch.Tensor] = []
        saved: list[torch.Tensor] = [h]
        ctx.counts = []
        given = iter(tensors)
        for reader in readers:
            weight = next(given)
            rest = tuple(results[n] if n >= 0 else next(given) for n in reader.rest)
            made, kept = _forward(reader, product, h, weight, rest)
            results += made
            saved += kept
            ctx.counts.append((len(kept), len(made)))
        ctx.save_for_backward(*saved)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        h, *saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]
        rows = _linears(ctx, h, saved, list(grads), needs[1:])
        started = _start(ctx, rows, h) if needs[0] else None
        found: Optionals = []
        for row in rows:
            found.append(row.wgrad(ctx.product, h) if row.pre is not None and row.wanted[0] else None)
            found += [grad for n, grad in zip(row.reader.rest, row.rest, strict=True) if n < 0]
        return None, None, None, None, started() if started else None, *found


@dataclass(frozen=True)
class _Linear:
    """One linear in backward: the gradient at its product and those of its other tensors; what is asked for."""

    reader: Reader
    weight: torch.Tensor
    pre: torch.Tensor | None
    rest: Optionals
    wanted: Sequence[bool]

    def wgrad(self, product: Product, h: torch.Tensor) -> torch.Tensor:
        assert self.pre is not None
        if self.reader.op is None:
            return gemm.wgrad(self.pre, h, self.reader.transposed)
        return layer.weight_gradient(self.reader.op(h.dtype), self.pre, h, product)

    def dgrad(self, product: Product, total: torch.Tensor | None) -> torch.Tensor:
        """Added to ``total``."""
        assert self.pre is not None
        if self.reader.op is not None:
            op = self.reader.op(self.weight.dtype)
            made = product(layer.dgrad(op), self.pre, self.weight, (), op.keys[1])[0]
            return made if total is None else total.add_(made)
        if total is None:
            return gemm.dgrad(self.pre, self.weight, self.reader.transposed)
        return gemm.add_dgrad(total, self.pre, self.weight, self.reader.transposed)


def _forward(
    reader: Reader, product: Product, h: torch.Tensor, weight: torch.Tensor, rest: tuple[Any, ...]
) -> tuple[Tensors, Tensors]:
    """What a linear makes, and what its backward reads besides h."""
    if reader.op is None:
        return (gemm.eager(h, weight, rest[0], reader.transposed),), (weight,)
    op = reader.op(h.dtype)
    made = tuple(product(op.forward, h, weight, rest, op.keys[0]))
    return made, layer.kept(op, h, weight, rest, (), made)[1:]


def _linears(
    ctx: Any, h: torch.Tensor, saved: list[torch.Tensor], grads: Optionals, needs: Sequence[bool]
) -> list[_Linear]:
    """Last linear first, so that the gradient of what it loads of an earlier one is there before that one's turn."""
    rows: list[_Linear] = []
    ends = [len(saved), len(grads), len(needs)]
    for reader, (kept, made) in zip(reversed(ctx.readers), reversed(ctx.counts), strict=True):
        starts = [ends[0] - kept, ends[1] - made, ends[2] - 1 - sum(n < 0 for n in reader.rest)]
        tensors, arrived = saved[starts[0] : ends[0]], grads[starts[1] : ends[1]]
        row = _linear(reader, h, tensors, arrived, needs[starts[2] : ends[2]])
        for n, grad in zip(reader.rest, row.rest, strict=True):
            if n >= 0 and grad is not None:
                grads[n] = grad if (there := grads[n]) is None else there + grad
        rows.append(row)
        ends = starts
    return rows[::-1]


def _linear(
    reader: Reader, h: torch.Tensor, saved: list[torch.Tensor], grads: Optionals, wanted: Sequence[bool]
) -> _Linear:
    biased = len(wanted) > 1 and wanted[1]
    if reader.op is not None:
        pre, rest = layer.through(reader.op(h.dtype), (h, *saved), grads, biased)
        return _Linear(reader, saved[0], pre, rest, wanted)
    (grad,) = grads
    return _Linear(reader, saved[0], grad, [gemm.bias_grad(grad) if grad is not None and biased else None], wanted)


def _start(ctx: Any, rows: list[_Linear], h: torch.Tensor) -> Any:
    """Sum the dgrads into one matrix and start its collective; the result waits for it."""
    total: torch.Tensor | None = None
    for row in rows:
        if row.pre is not None:
            total = row.dgrad(ctx.product, total)
    total = torch.zeros_like(h) if total is None else total
    if ctx.shard is None:
        return ctx.axis.sum_async(total, "backward")
    return ctx.axis.scatter_async(total, ctx.shard, "backward")


def columns(axis: Axis, shard: Shard | None, readers: tuple[Reader, ...], product: Product) -> Bound:
    """x, then each linear's tensors -> the results of all."""
    return lambda x, *tensors: _Columns.apply(axis, shard, readers, product, x, *tensors)


def sums_back(op: CollectiveOp, literals: Sequence[Any]) -> bool:
    """Whether a collective passes on what ranks hold, and sums their gradients."""
    return op.forward in ("", ALL_GATHER) and op.back(*literals) in (ALL_REDUCE, REDUCE_SCATTER)


def fuse(node: fx.Node, axis: Axis, literals: Sequence[Any], product: Product) -> bool:
    """Replace a collective that ``sums_back``, if only linears read it, and those linears, by one node."""
    order = {n: place for place, n in enumerate(node.graph.nodes)}
    linears = sorted(node.users, key=order.__getitem__)
    if not linears or not all(_is_linear(linear, node) for linear in linears):
        return False
    results = [result for linear in linears for result in _results(linear)]
    numbers = {result: n for n, result in enumerate(results) if result is not None}
    arguments: list[Any] = []
    readers: list[Reader] = []
    for linear in linears:
        weight, rest, transposed, op = _parts(linear)
        readers.append(Reader(transposed, op, tuple(numbers.get(t, -1) for t in rest)))
        arguments += [weight, *(t for t in rest if t not in numbers)]
    if any(order[a] > order[linears[0]] for a in arguments if isinstance(a, fx.Node)):
        return False  # one of them waits for what another made
    shard = Shard(literals[0], unflat(literals[1])) if literals else None
    function = columns(axis, shard, tuple(readers), product)
    function.__name__ = "columns"
    with node.graph.inserting_before(linears[0]):
        made = node.graph.call_function(function, (node.args[0], *arguments))
        made.meta = {k: v for k, v in linears[0].meta.items() if k == "modules"}
        made.meta["kept"] = "product" if any(n.meta.get("kept") for n in (node, *linears)) else None
        for n, result in enumerate(results):
            if result is None:
                continue
            new = node.graph.call_function(operator.getitem, (made, n))
            new.meta = result.meta
            result.replace_all_uses_with(new)
    for gone in sorted({*filter(None, results), *linears, node}, key=order.__getitem__, reverse=True):
        node.graph.erase_node(gone)
    return True


def _is_linear(linear: fx.Node, source: fx.Node) -> bool:
    """A linear of ``source`` by a parameter or a part of one, whose gradient goes on to nothing else."""
    if linear.args[0] is not source or linear.kwargs:
        return False
    if linear.target == FUSED:
        return not linear.args[3] and source not in linear.args[2]  # type: ignore[operator]
    rest = [a for a in linear.args[1:] if isinstance(a, fx.Node)]
    return linear.target == gemm.eager and source not in rest


def _results(linear: fx.Node) -> list[fx.Node | None]:
    """The nodes that hold what a linear makes, in order; None for a store that nothing reads."""
    if linear.target != FUSED:
        return [linear]
    of = {result.args[1]: result for result in linear.users}
    return [of.get(n) for n in range(len(notation.read(str(linear.args[4]), "float32").stores))]


def _parts(linear: fx.Node) -> tuple[Any, tuple[Any, ...], bool, Callable[[torch.dtype], Layer] | None]:
    """Weight, the other tensors, how the weight lies, the layer."""
    if linear.target != FUSED:
        _, weight, bias, transposed = linear.args
        return weight, (bias,), bool(transposed), None
    _, weight, loads, _, line, inner, transposed, keys = linear.args

    def op(dtype: torch.dtype) -> Layer:
        return fused.layer_of(dtype, line, inner, transposed, keys)  # type: ignore[arg-type]

    return weight, tuple(loads), bool(transposed), op  # type: ignore[arg-type]
