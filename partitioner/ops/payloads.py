"""What each op of ours sends, by the shapes of its operands: one row an op, payloads in bytes; and those ops that only
stand on a rank, in the place of another.

The payload is the whole tensor of an all_reduce, all_gather or reduce_scatter, an own part of an all_to_all or a send.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE
from partitioner.ops.collectives import OPS, CollectiveOp, Shape, same
from partitioner.sharding.layout import unflat


def _rows(ranks: int, rank: int, logits: torch.Tensor, *_: object) -> Shape:
    return (logits.shape[0],)


def _looked_up(ranks: int, rank: int, weight: torch.Tensor, index: torch.Tensor, *_: object) -> Shape:
    return (*index.shape, weight.shape[1])


def _projected(ranks: int, rank: int, x: torch.Tensor, weight: torch.Tensor, *_: object) -> Shape:
    return (x.shape[0], weight.shape[2])


def _gathered(ranks: int, rank: int, x: torch.Tensor, axis: str, dim: int, segments: list[int]) -> Shape:
    return (*x.shape[:dim], sum(segment.size for segment in unflat(segments)), *x.shape[dim + 1 :])


Payloads = Sequence[tuple[str, float]]


def _nothing(whole: int, *_: object) -> Payloads:
    return []


def vocabulary_sums(size: float, smoothing: object) -> list[tuple[str, float]]:
    """(kind, bytes) of cross entropy over a divided vocabulary, of whose tokens a number each has ``size`` bytes: the
    largest logit, then two sums, or three where labels are smoothed."""
    return [(ALL_REDUCE, size), (ALL_REDUCE, (3 if smoothing else 2) * size)]


def _summed(
    whole: int, logits: torch.Tensor, target: torch.Tensor, ignored: int, smoothing: float, *_: object
) -> Payloads:
    return vocabulary_sums(target.numel() * logits.element_size(), smoothing)


@dataclass(frozen=True)
class RankOp:
    """An op: its result's shape, and what it sends each way.

    ``keeps``: backward needs something of it. ``arguments``: the schema's, of an op that the runtime alone can run; its
    operands and its axis are found there.
    """

    shape: Callable[..., Shape]
    forward: Callable[..., Payloads] = _nothing
    backward: Callable[..., Payloads] = _nothing
    keeps: bool = False
    arguments: str = ""


def _of(op: CollectiveOp) -> RankOp:
    def forward(whole: int, *_: object) -> Payloads:
        return [(op.forward, whole)] if op.forward else []

    def backward(whole: int, *arguments: object) -> Payloads:
        kind = op.back(*arguments)
        return [(kind, whole)] if kind else []

    return RankOp(op.shape, forward, backward)


RANK_OPS: dict[str, RankOp] = {
    **{op.target: _of(op) for op in OPS.values()},
    "partitioner.vocab_parallel_cross_entropy.default": RankOp(
        _rows, _summed, keeps=True, arguments="Tensor logits, Tensor target, int ignore_index, float label_smoothing, "
        "str axis, int[] segments",
    ),
    "partitioner.vocab_parallel_embedding.default": RankOp(
        _looked_up, keeps=True, arguments="Tensor weight, Tensor index, int padding_index, str axis, int[] segments"
    ),
    "partitioner.gathered.default": RankOp(
        _gathered, lambda whole, *_: [(ALL_GATHER, whole)], arguments="Tensor x, str axis, int dim, int[] segments"
    ),
    "partitioner.dropout.default": RankOp(same, keeps=True),
    "partitioner.expert_linear.default": RankOp(_projected, keeps=True),
}  # fmt: skip
ON_RANKS = {target.split(".")[1]: row for target, row in RANK_OPS.items() if row.arguments}

_LIBRARY = torch.library.Library("partitioner", "FRAGMENT")
for _name, _row in ON_RANKS.items():
    _LIBRARY.define(f"{_name}({_row.arguments}) -> Tensor")


def tensor_places(op: torch._ops.OpOverload) -> tuple[int, ...]:  # pyright: ignore[reportPrivateUsage]
    """Which arguments of an op of ours are its operands."""
    return tuple(n for n, (_, kind) in enumerate(_arguments(op)) if kind in ("Tensor", "Optional[Tensor]"))


def axis_place(op: torch._ops.OpOverload) -> int | None:  # pyright: ignore[reportPrivateUsage]
    """Which argument of an op of ours names a mesh axis; None where none does."""
    return next((n for n, (name, _) in enumerate(_arguments(op)) if name == "axis"), None)


@functools.cache
def _arguments(op: torch._ops.OpOverload) -> tuple[tuple[str, str], ...]:  # pyright: ignore[reportPrivateUsage]
    schema = op._schema  # pyright: ignore[reportPrivateUsage]
    return tuple((argument.name, str(argument.type)) for argument in schema.arguments)
