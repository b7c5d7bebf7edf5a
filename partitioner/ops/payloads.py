"""What each op of ours sends, by the shapes of its operands: one row an op, payloads in bytes.

The payload is the whole tensor of an all_reduce, all_gather or reduce_scatter, an own part of an all_to_all or a send.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from partitioner.ops.collectives import unflat
from partitioner.sharding.layout import Shard

Shape = tuple[int, ...]


def _same(ranks: int, rank: int, x: torch.Tensor, *_: object) -> Shape:
    return tuple(x.shape)


def _scaled(shape: Shape, dim: int, size: int) -> Shape:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _gathered(ranks: int, rank: int, x: torch.Tensor, axis: str, dim: int, *_: object) -> Shape:
    return _scaled(tuple(x.shape), dim, x.shape[dim] * ranks)


def _divided(ranks: int, rank: int, x: torch.Tensor, axis: str, dim: int, segments: list[int], *_: object) -> Shape:
    return _scaled(tuple(x.shape), dim, Shard(dim, unflat(segments)).local_size(rank, ranks))


def _exchanged(
    ranks: int, rank: int, x: torch.Tensor, axis: str, source: int, _: list[int], target: int, segments: list[int]
) -> Shape:
    return _divided(ranks, rank, x.new_empty(_gathered(ranks, rank, x, axis, source)), axis, target, segments)


def _rows(ranks: int, rank: int, logits: torch.Tensor, *_: object) -> Shape:
    return (logits.shape[0],)


def _looked_up(ranks: int, rank: int, weight: torch.Tensor, index: torch.Tensor, *_: object) -> Shape:
    return (*index.shape, weight.shape[1])


def _projected(ranks: int, rank: int, x: torch.Tensor, weight: torch.Tensor, *_: object) -> Shape:
    return (x.shape[0], weight.shape[2])


Payloads = list[tuple[str, int]]


def _nothing(whole: int, *_: object) -> Payloads:
    return []


def _whole(kind: str) -> Callable[..., Payloads]:
    return lambda whole, *_: [(kind, whole)]


def _if(position: int, kind: str) -> Callable[..., Payloads]:
    """``kind`` where the op's argument at ``position`` says so."""
    return lambda whole, *args: [(kind, whole)] if args[position] else []


def _summed(
    whole: int, logits: torch.Tensor, target: torch.Tensor, ignored: int, smoothing: float, *_: object
) -> Payloads:
    """Cross entropy over a divided vocabulary: of each token the largest logit, then two or three sums."""
    size = target.numel() * logits.element_size()
    return [("all_reduce", size), ("all_reduce", (3 if smoothing else 2) * size)]


@dataclass(frozen=True)
class Row:
    """An op: its result's shape, how many tensors come first, where it names its axis, what it sends each way.

    ``keeps``: backward needs something of it.
    """

    shape: Callable[..., Shape]
    tensors: int = 1
    axis: int | None = None
    forward: Callable[..., Payloads] = _nothing
    backward: Callable[..., Payloads] = _nothing
    keeps: bool = False


ROWS: dict[str, Row] = {
    "partitioner.all_reduce.default": Row(_same, 1, 1, _whole("all_reduce"), _if(2, "all_reduce")),
    "partitioner.copy.default": Row(_same, 1, 1, _nothing, _whole("all_reduce")),
    "partitioner.on_first.default": Row(_same, 1, 1),
    "partitioner.all_gather.default": Row(_gathered, 1, 1, _whole("all_gather"), _if(4, "reduce_scatter")),
    "partitioner.reduce_scatter.default": Row(_divided, 1, 1, _whole("reduce_scatter"), _whole("all_gather")),
    "partitioner.shard.default": Row(_divided, 1, 1, _nothing, _if(4, "all_gather")),
    "partitioner.all_to_all.default": Row(_exchanged, 1, 1, _whole("all_to_all"), _whole("all_to_all")),
    "partitioner.vocab_parallel_cross_entropy.default": Row(_rows, 2, 4, _summed, keeps=True),
    "partitioner.vocab_parallel_embedding.default": Row(_looked_up, 2, 3, keeps=True),
    "partitioner.dropout.default": Row(_same, keeps=True),
    "partitioner.expert_linear.default": Row(_projected, 2, keeps=True),
}
