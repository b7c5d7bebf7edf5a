"""The collectives of ``partitioner.ops.collectives`` as autograd functions over process groups.

    whole  --split-->  packed (ranks, *part)  --reduce_scatter / all_to_all-->  part
    part   --all_gather-->  packed (ranks, *part)  --join-->  whole

``split`` and ``join`` copy only where the parts of a whole do not lie one behind the other in memory already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER
from partitioner.ops.collectives import unflat
from partitioner.sharding.cut_tensors import assemble, take
from partitioner.sharding.layout import Shard
from runtime.mesh.communication_log import Log, Phase
from runtime.mesh.groups import Groups

Start = Callable[..., dist.Work | None]
# torch 2.13 renamed these two and warns of the old names.
_all_gather: Start = vars(dist).get("all_gather_single") or vars(dist)["all_gather_into_tensor"]
_reduce_scatter: Start = vars(dist).get("reduce_scatter_single") or vars(dist)["reduce_scatter_tensor"]


@dataclass(frozen=True)
class Axis:
    """A mesh axis as this rank sees it; ``phase`` is that in which forwards run."""

    name: str
    rank: int
    ranks: int
    group: dist.ProcessGroup
    log: Log
    scatters: bool
    phase: Phase = "forward"

    @staticmethod
    def of(groups: Groups, name: str, phase: Phase = "forward") -> Axis:
        """The axis of this name; gloo's own reduce_scatter was measured 3 times slower than all_to_all and a sum."""
        group, scatters = groups.group(name), groups.backend != "gloo"
        return Axis(name, groups.coordinates[name], groups.size(name), group, groups.log, scatters, phase)

    def sum(self, x: torch.Tensor, phase: Phase, owned: bool = False) -> torch.Tensor:
        """The sum over the axis, in place where ``x`` is ``owned``."""
        x = x.contiguous() if owned else x.clone(memory_format=torch.contiguous_format)
        self.log.add(self.name, ALL_REDUCE, x, phase)
        with self._timed():
            dist.all_reduce(x, group=self.group)
        return x

    def _timed(self) -> AbstractContextManager[object]:
        return self.log.timed(f"{self.name} communication")

    def sum_async(self, x: torch.Tensor, phase: Phase) -> Callable[[], torch.Tensor]:
        """Start summing a contiguous tensor in place; the function returned waits for it."""
        self.log.add(self.name, ALL_REDUCE, x, phase)
        work = dist.all_reduce(x, group=self.group, async_op=True)

        def finish() -> torch.Tensor:
            with self._timed():
                wait(work)
            return x

        return finish

    def gather(self, x: torch.Tensor, shard: Shard, phase: Phase) -> torch.Tensor:
        """The whole of what lies as ``shard``."""
        packed = x.new_empty((self.ranks, *x.shape))
        self.log.add(self.name, ALL_GATHER, packed, phase)
        with self._timed():
            _all_gather(flat(packed), flat(x.contiguous()), group=self.group)
        return join(packed, shard)

    def scatter(self, x: torch.Tensor, shard: Shard, phase: Phase) -> torch.Tensor:
        """This rank's part of the sum over the axis."""
        return self.scatter_async(x, shard, phase)()

    def scatter_async(self, x: torch.Tensor, shard: Shard, phase: Phase) -> Callable[[], torch.Tensor]:
        """Start ``scatter``; the function returned waits for it."""
        packed = split(x, shard, self.ranks)
        self.log.add(self.name, REDUCE_SCATTER, packed, phase)
        received = torch.empty_like(packed[0] if self.scatters else packed)
        run: Start = _reduce_scatter if self.scatters else dist.all_to_all_single
        work = run(flat(received), flat(packed), group=self.group, async_op=True)

        def finish() -> torch.Tensor:
            with self._timed():
                wait(work)
            if self.scatters:
                return received
            return received[0].add_(received[1]) if self.ranks == 2 else received.sum(0)

        return finish

    def exchange(self, x: torch.Tensor, source: Shard, target: Shard, phase: Phase) -> torch.Tensor:
        """From parts of one dimension to parts of another."""
        packed = split(x, target, self.ranks)
        received = torch.empty_like(packed)
        self.log.add(self.name, ALL_TO_ALL, packed, phase)
        with self._timed():
            dist.all_to_all_single(flat(received), flat(packed), group=self.group)
        return join(received, source)


def wait(work: dist.Work | None) -> None:
    """Until what was started is over; None where there was nothing to start."""
    if work is not None:
        work.wait()


def flat(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as one run of real numbers, which every backend can send."""
    return (torch.view_as_real(x) if x.is_complex() else x).view(-1)


def _cells(size: int, shard: Shard, ranks: int) -> tuple[int, int, int] | None:
    """(repeat, ranks, elements) of a dimension divided evenly by one segment."""
    segment = shard.segments[0]
    if len(shard.segments) > 1 or not segment.is_even(ranks):
        return None
    return segment.repeat, ranks, size // (segment.repeat * ranks)


def split(x: torch.Tensor, shard: Shard, ranks: int) -> torch.Tensor:
    """Every rank's part of a whole, one behind the other: (ranks, *part), contiguous."""
    cells = _cells(x.shape[shard.dim], shard, ranks)
    if cells is None:
        return torch.stack([take(x, shard, rank, ranks) for rank in range(ranks)])
    before, after = math.prod(x.shape[: shard.dim]), math.prod(x.shape[shard.dim + 1 :])
    packed = x.reshape(before, *cells, after).permute(2, 0, 1, 3, 4).contiguous()
    return packed.view(ranks, *x.shape[: shard.dim], cells[0] * cells[2], *x.shape[shard.dim + 1 :])


def join(packed: torch.Tensor, shard: Shard) -> torch.Tensor:
    """The inverse of ``split``."""
    ranks, shape = packed.shape[0], packed.shape[1:]
    size = shape[shard.dim] * ranks
    cells = _cells(size, shard, ranks)
    if cells is None:
        return assemble(list(packed.unbind()), shard)
    before, after = math.prod(shape[: shard.dim]), math.prod(shape[shard.dim + 1 :])
    parts = packed.view(ranks, before, cells[0], cells[2], after).permute(1, 2, 0, 3, 4)
    return parts.reshape(*shape[: shard.dim], size, *shape[shard.dim + 1 :])


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis, backward: bool, owned: bool) -> torch.Tensor:
        ctx.axis, ctx.sums = axis, backward
        if owned and x.is_contiguous():
            ctx.mark_dirty(x)
        return axis.sum(x, axis.phase, owned and x.is_contiguous())

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


# by the op's name, what makes its bound function of the axis and of the literals behind it
BINDINGS: dict[str, Callable[..., Bound]] = {
    make.__name__: make for make in (all_reduce, copy, on_first, all_gather, reduce_scatter, shard, all_to_all)
}
