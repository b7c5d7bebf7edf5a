"""The collectives of ``partitioner.ops.collectives`` as autograd functions over an axis of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from partitioner.ops.autograd_functions import alone
from partitioner.ops.cut_tensors import take
from partitioner.sharding.layout import Shard, unflat
from runtime.mesh.axis import Axis


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis, backward: bool, owned: bool) -> torch.Tensor:
        ctx.axis, ctx.sums = axis, backward
        if not (owned and x.is_contiguous()):
            return axis.sum(x, axis.phase)
        ctx.mark_dirty(x)
        made = axis.sum(x, axis.phase, owned=True)
        if made.untyped_storage()._cdata != x.untyped_storage()._cdata:  # pyright: ignore[reportPrivateUsage]
            with alone():  # the sum was kept, and what it sums was made again
                x.copy_(made)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = grads
        return (ctx.axis.sum(grad, "backward") if ctx.sums else grad), None, None, None


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis) -> torch.Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,) = grads
        return ctx.axis.sum(grad, "backward"), None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis, shard: Shard, backward: bool) -> torch.Tensor:
        ctx.axis, ctx.shard, ctx.sums = axis, shard, backward
        return axis.gather(x, shard, axis.phase)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = grads
        axis, shard = ctx.axis, ctx.shard
        part = axis.scatter(grad, shard, "backward") if ctx.sums else take(grad, shard, axis.rank, axis.ranks)
        return part, None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis, shard: Shard) -> torch.Tensor:
        ctx.axis, ctx.shard = axis, shard
        return axis.scatter(x, shard, axis.phase)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return ctx.axis.gather(grad, ctx.shard, "backward"), None, None


class _Shard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis, shard: Shard) -> torch.Tensor:
        ctx.axis, ctx.shard = axis, shard
        return _part(x, axis, shard)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return ctx.axis.gather(grad, ctx.shard, "backward"), None, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis, source: Shard, target: Shard) -> torch.Tensor:
        ctx.axis, ctx.source, ctx.target = axis, source, target
        return axis.exchange(x, source, target, axis.phase)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = grads
        return ctx.axis.exchange(grad, ctx.target, ctx.source, "backward"), None, None, None


Bound = Callable[..., torch.Tensor]


def all_reduce(axis: Axis, backward: bool, owned: bool = False) -> Bound:
    """PARTIAL to WHOLE, or to REPLICATE when ``backward``; ``owned``: the operand is read by nothing else."""
    return lambda x: _AllReduce.apply(x, axis, backward, owned)


def copy(axis: Axis) -> Bound:
    """WHOLE to REPLICATE."""
    return lambda x: _Copy.apply(x, axis)


def all_gather(axis: Axis, dim: int, segments: list[int], backward: bool) -> Bound:
    """Shard to WHOLE, or to REPLICATE when ``backward``."""
    shard = Shard(dim, unflat(segments))
    return lambda x: _AllGather.apply(x, axis, shard, backward)


def reduce_scatter(axis: Axis, dim: int, segments: list[int]) -> Bound:
    """PARTIAL to Shard."""
    shard = Shard(dim, unflat(segments))
    return lambda x: _ReduceScatter.apply(x, axis, shard)


def shard(axis: Axis, dim: int, segments: list[int], backward: bool) -> Bound:
    """WHOLE to Shard, or REPLICATE to Shard when not ``backward``."""
    placement = Shard(dim, unflat(segments))
    if backward:
        return lambda x: _Shard.apply(x, axis, placement)
    return lambda x: _part(x, axis, placement)


def _part(x: torch.Tensor, axis: Axis, shard: Shard) -> torch.Tensor:
    """This rank's part in memory of its own, so that keeping it does not keep the whole."""
    return take(x, shard, axis.rank, axis.ranks).clone(memory_format=torch.contiguous_format)


def all_to_all(axis: Axis, source: int, source_segments: list[int], target: int, target_segments: list[int]) -> Bound:
    """Shard of one dimension to Shard of another."""
    here, there = Shard(source, unflat(source_segments)), Shard(target, unflat(target_segments))
    return lambda x: _AllToAll.apply(x, axis, here, there)


class _OnFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, is_first: bool, backward: bool) -> torch.Tensor:
        ctx.keeps = is_first or not backward
        return x.view_as(x) if is_first else torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return grad if ctx.keeps else torch.zeros_like(grad), None, None


def on_first(axis: Axis, backward: bool) -> Bound:
    """WHOLE to PARTIAL: the gradient of either is whole. REPLICATE to PARTIAL (``backward``): a Partial comes back."""
    return lambda x: _OnFirst.apply(x, axis.rank == 0, backward)


@dataclass(frozen=True)
class Binding:
    """``make``: an op's function on this rank, of the axis and of the literals behind its operands. ``in_place``: it
    takes one more, whether it may overwrite its operand. ``is_fresh``: nothing keeps its result for backward."""

    make: Callable[..., Bound]
    in_place: bool = False
    is_fresh: bool = False


_ROWS = (
    Binding(all_reduce, in_place=True),
    *map(Binding, (copy, on_first, all_gather, reduce_scatter, shard, all_to_all)),
)
BINDINGS = {row.make.__name__: row for row in _ROWS}  # by the op's name
