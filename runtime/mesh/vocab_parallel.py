"""Ops that know their rank: embedding and cross entropy over a divided vocabulary, dropout of a divided tensor.

Cross entropy of t rows with local logits (t, v): the largest and then the sums (exponentials, target logits, and with
label smoothing all logits) are all_reduced, vectors of t; logits never leave their rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE
from partitioner.ops.cut_tensors import assemble, take
from partitioner.ops.own_ops import dropout_mask
from partitioner.sharding.layout import Shard, unflat
from runtime.mesh.axis import Axis
from runtime.mesh.collectives import Binding

aten = torch.ops.aten


class _CrossEntropy(torch.autograd.Function):
    """Keeps one (t, v) tensor for backward, the exponentials, and turns it into the gradient in place."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, target: torch.Tensor, axis: Axis, ignored: int, smoothing: float,
        bounds: tuple[int, int, int],
    ) -> torch.Tensor:  # fmt: skip
        start, end, classes = bounds
        counted = target != ignored
        aten._assert_async.msg(((target >= 0) & (target < classes) | ~counted).all(), "a target is not a class")
        inside = (target >= start) & (target < end)
        local = torch.where(inside, target - start, 0).unsqueeze(1)
        largest = logits.amax(1)
        _reduce(axis, largest, dist.ReduceOp.MAX)
        exponentials = torch.sub(logits, largest.unsqueeze(1)).exp_()
        rows = [exponentials.sum(1), logits.gather(1, local).squeeze(1).mul_(inside)]
        rows += [logits.sum(1)] if smoothing else []
        sums = torch.stack(rows)
        _reduce(axis, sums, dist.ReduceOp.SUM)
        loss = sums[0].log().add_(largest).sub_(sums[1], alpha=1.0 - smoothing)
        if smoothing:
            loss.sub_(sums[2], alpha=smoothing / classes)
        ctx.save_for_backward(exponentials, sums[0], counted, inside, local)
        ctx.smoothing, ctx.classes = smoothing, classes
        return loss.masked_fill_(~counted, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        exponentials, total, counted, inside, local = ctx.saved_tensors
        scale = counted * grad
        result = exponentials.mul_((scale / total).unsqueeze(1))
        result.scatter_add_(1, local, (scale * inside).mul_(ctx.smoothing - 1.0).unsqueeze(1))
        if ctx.smoothing:
            result.sub_((scale * (ctx.smoothing / ctx.classes)).unsqueeze(1))
        return result, None, None, None, None, None


def _reduce(axis: Axis, x: torch.Tensor, op: dist.ReduceOp.RedOpType) -> None:
    axis.log.add(axis.name, ALL_REDUCE, x, axis.phase)
    dist.all_reduce(x, op, axis.group)


def cross_entropy(
    axis: Axis, ignore_index: int, label_smoothing: float, segments: list[int]
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """``vocab_parallel_cross_entropy``: the whole loss of each row on every rank."""
    bounds = (*_range(axis, segments), _size(segments))
    return lambda logits, target: _CrossEntropy.apply(logits, target, axis, ignore_index, label_smoothing, bounds)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, index: torch.Tensor, start: int, rows: int, padding: int
    ) -> torch.Tensor:
        aten._assert_async.msg(((index >= 0) & (index < rows)).all(), "an index is not in the vocabulary")
        local = index - start
        outside = (local < 0) | (local >= weight.shape[0])
        ctx.rows = weight.shape[0]
        # backward skips rows of index -1
        ctx.save_for_backward(local.masked_fill(outside | (index == padding), -1))
        return F.embedding(local.masked_fill_(outside, 0), weight).masked_fill_(outside.unsqueeze(-1), 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (grad,) = grads
        (local,) = ctx.saved_tensors
        return aten.embedding_dense_backward(grad.contiguous(), local, ctx.rows, -1, False), None, None, None, None


def embedding(
    axis: Axis, padding_index: int, segments: list[int]
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """``vocab_parallel_embedding``: a Partial, zero where another rank holds the row."""
    start, _ = _range(axis, segments)
    rows, padding = _size(segments), padding_index if padding_index >= 0 else -1
    return lambda weight, index: _Embedding.apply(weight, index, start, rows, padding)


def gathered(axis: Axis, dim: int, segments: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """``gathered``: all of a tensor (logits of all classes) on every rank, whose parts may be of unequal sizes."""

    def run(x: torch.Tensor) -> torch.Tensor:
        shard, last = Shard(dim, unflat(segments)), x.movedim(dim, -1)
        sizes = [shard.local_size(rank, axis.ranks) for rank in range(axis.ranks)]
        own = F.pad(last, (0, max(sizes) - last.shape[-1])).contiguous()
        parts = [torch.empty_like(own) for _ in sizes]
        axis.log.add(axis.name, ALL_GATHER, last.new_empty((*last.shape[:-1], sum(sizes))), axis.phase)
        dist.all_gather(parts, own, axis.group)
        return assemble([part[..., :size].movedim(-1, dim) for part, size in zip(parts, sizes, strict=True)], shard)

    return run


def dropout(axis: Axis, p: float, site: int, dim: int, segments: list[int]) -> Callable[..., torch.Tensor]:
    """``dropout`` of this rank's part: the same part of the mask that the whole tensor would get."""

    def run(x: torch.Tensor, sample_keys: torch.Tensor) -> torch.Tensor:
        mask = masks(sample_keys, list(x.shape), p, site, dim, segments, axis.rank, axis.ranks)
        return x * mask.to(x.dtype).div_(1 - p)

    return run


BINDINGS = {  # by the op's name
    "vocab_parallel_cross_entropy": Binding(cross_entropy),
    "vocab_parallel_embedding": Binding(embedding, is_fresh=True),
    "gathered": Binding(gathered, is_fresh=True),
    "dropout": Binding(dropout),
}


@torch.library.custom_op("runtime::dropout_masks", mutates_args=())
def masks(
    sample_keys: torch.Tensor, part: list[int], p: float, site: int, dim: int, segments: list[int], rank: int,
    ranks: int,
) -> torch.Tensor:  # fmt: skip
    """What dropout keeps (bool, ``part``) of a rank's part: each sample's mask of the whole, divided along ``dim``."""
    shard = Shard(dim - 1, unflat(segments))
    whole = [*part[1:]]
    whole[shard.dim] = shard.size
    drawn = (dropout_mask(tuple(whole), p, key, site, sample_keys.device) for key in sample_keys.tolist())
    return torch.stack([take(mask, shard, rank, ranks) for mask in drawn])


@masks.register_fake
def _(sample_keys: torch.Tensor, part: list[int], *_: object) -> torch.Tensor:
    return sample_keys.new_empty(part, dtype=torch.bool)


def _range(axis: Axis, segments: list[int]) -> tuple[int, int]:
    segment = unflat(segments)[0]
    if len(segments) != 3 or segment.repeat != 1:
        raise ValueError(f"a vocabulary is divided by one segment of repeat 1, not by {segments}")
    start, end = segment.unit_range(axis.rank, axis.ranks)
    return start * segment.granule, end * segment.granule


def _size(segments: list[int]) -> int:
    return sum(math.prod(segments[i : i + 3]) for i in range(0, len(segments), 3))
