"""The collectives that may stand in a Program, each with its backward twin, as op schemas with an axis *name*.

    from -> to           op               forward          backward
    -----------------    --------------   --------------   --------------
    PARTIAL -> WHOLE     all_reduce       all_reduce       none            Megatron's g
    PARTIAL -> REPLICATE all_reduce       all_reduce       all_reduce
    WHOLE -> REPLICATE   copy             none             all_reduce      Megatron's f
    WHOLE -> PARTIAL     on_first         none (first's)   none            (a bias that joins partial sums once)
    REPLICATE -> PARTIAL on_first         none (first's)   none (first's)
    Shard -> WHOLE       all_gather       all_gather       none (own part)
    Shard -> REPLICATE   all_gather       all_gather       reduce_scatter
    PARTIAL -> Shard     reduce_scatter   reduce_scatter   all_gather
    WHOLE -> Shard       shard            none (own part)  all_gather
    REPLICATE -> Shard   shard            none (own part)  none (own part, zero elsewhere)
    Shard -> Shard       all_to_all       all_to_all       all_to_all

All that is known of each op stands here, of what it sends in ``collective_kinds``. The schemas are registered so that a
Program can be built, printed and shape-checked with no process group; the runtime binds them to groups. ``segments``
are written flat: [repeat, units, granule, ...].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER
from partitioner.sharding.layout import PARTIAL, REPLICATE, WHOLE, Placement, Shard, flat, unflat

Shape = tuple[int, ...]


def same(ranks: int, rank: int, x: torch.Tensor, *_: object) -> Shape:
    """The shape of a result that is as large as its operand."""
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


def _nothing_ahead(shape: Shape, dim: int, *_: object) -> bool:
    """Whether the parts of a value divided along ``dim`` lie one behind the other in it."""
    return all(size == 1 for size in shape[:dim])


@dataclass(frozen=True)
class CollectiveOp:
    """A collective op: what it sends each way, "" for nothing; where the last argument is ``backward`` and not set,
    nothing is sent back.

    ``arguments``: of the schema, behind ``Tensor x, str axis``. ``shape``: the result's, of ranks, rank and arguments.
    ``view``: the result lies where the operand lies. ``cuts``: the result is the rank's own part of the operand.
    ``passes``: where nothing is sent back, the gradient passes as it is. ``in_order``: whether the parts lie one behind
    the other in a whole of this shape, of arguments as the schema's, so that no copy is made to send them.
    """

    name: str
    arguments: str
    forward: str
    backward: str
    shape: Callable[..., Shape] = same
    view: bool = False
    cuts: bool = False
    passes: bool = False
    in_order: Callable[..., bool] = _nothing_ahead

    @property
    def target(self) -> str:
        """As a node of a graph names it."""
        return f"partitioner.{self.name}.default"

    def back(self, *arguments: object) -> str:
        """What it sends back with these arguments."""
        return self.backward if not self.arguments.endswith("bool backward") or arguments[-1] else ""


_TABLE = (
    CollectiveOp(ALL_REDUCE, ", bool backward", ALL_REDUCE, ALL_REDUCE, passes=True),
    CollectiveOp("copy", "", "", ALL_REDUCE, view=True),
    CollectiveOp("on_first", ", bool backward", "", "", passes=True),
    CollectiveOp(ALL_GATHER, ", int dim, int[] segments, bool backward", ALL_GATHER, REDUCE_SCATTER, _gathered),
    CollectiveOp(REDUCE_SCATTER, ", int dim, int[] segments", REDUCE_SCATTER, ALL_GATHER, _divided),
    CollectiveOp("shard", ", int dim, int[] segments, bool backward", "", ALL_GATHER, _divided, cuts=True),
    CollectiveOp(
        ALL_TO_ALL, ", int source, int[] source_segments, int target, int[] target_segments", ALL_TO_ALL, ALL_TO_ALL,
        _exchanged,
    ),
)  # fmt: skip
OPS = {op.name: op for op in _TABLE}

_LIBRARY = torch.library.Library("partitioner", "DEF")
for _op in _TABLE:
    _LIBRARY.define(f"{_op.name}(Tensor x, str axis{_op.arguments}) -> Tensor")


@dataclass(frozen=True)
class Collective:
    """One row of the table above: the op, its arguments behind (x, axis), and what each phase sends.

    ``forward`` and ``backward`` name the communication of that phase, "" where nothing is sent.
    """

    op: str
    arguments: tuple[object, ...]
    forward: str
    backward: str

    @staticmethod
    def of(op: str, *arguments: object) -> Collective:
        """The op with these arguments."""
        return Collective(op, arguments, OPS[op].forward, OPS[op].back(*arguments))


def convert(source: Placement, target: Placement, ranks: int) -> tuple[Collective, ...] | None:
    """The collectives that turn ``source`` into ``target`` on one axis, in order; None where there are none.

    Uneven shards are never gathered or scattered inside a step, so they convert to nothing.
    """
    if source == target:
        return ()
    if any(isinstance(p, Shard) and not p.is_even(ranks) for p in (source, target)):
        return None
    if isinstance(source, Shard):
        return _from_shard(source, target)
    if isinstance(target, Shard):
        return _to_shard(source, target)
    return (_WORDS[source, target],) if (source, target) in _WORDS else None


_WORDS: dict[tuple[Placement, Placement], Collective] = {
    (PARTIAL, WHOLE): Collective.of(ALL_REDUCE, False),
    (PARTIAL, REPLICATE): Collective.of(ALL_REDUCE, True),
    (WHOLE, REPLICATE): Collective.of("copy"),
    (WHOLE, PARTIAL): Collective.of("on_first", False),
    (REPLICATE, PARTIAL): Collective.of("on_first", True),
}


def _from_shard(source: Shard, target: Placement) -> tuple[Collective, ...] | None:
    segments = flat(source.segments)
    if isinstance(target, Shard):
        if target.dim == source.dim:
            return None
        return (Collective.of(ALL_TO_ALL, source.dim, segments, target.dim, flat(target.segments)),)
    if target == WHOLE:
        return (Collective.of(ALL_GATHER, source.dim, segments, False),)
    if target == REPLICATE:
        return (Collective.of(ALL_GATHER, source.dim, segments, True),)
    return None


def _to_shard(source: Placement, target: Shard) -> tuple[Collective, ...] | None:
    segments = flat(target.segments)
    if source == PARTIAL:
        return (Collective.of(REDUCE_SCATTER, target.dim, segments),)
    if source == WHOLE:
        return (Collective.of("shard", target.dim, segments, True),)
    return _cut(target)


def convert_value(
    source: Placement, target: Placement, ranks: int, differentiable: bool
) -> tuple[Collective, ...] | None:
    """``convert``; a value without a gradient that every rank holds is anything that it can be cut into, or is added to
    on one rank."""
    if not differentiable and source in (WHOLE, REPLICATE):
        if target in (WHOLE, REPLICATE):
            return ()
        return _cut(target) if isinstance(target, Shard) else convert(WHOLE, target, ranks)
    return convert(source, target, ranks)


def _cut(target: Shard) -> tuple[Collective, ...]:
    return (Collective.of("shard", target.dim, flat(target.segments), False),)
