"""How views move a division: by hand, since a reshape, a part or an expanded dimension is no equation."""

from __future__ import annotations

from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import REPLICATE, Segment, Shard, reshape_shard
from partitioner.sharding.op_equations import Op


def reshape(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    source, target = op.operands[0], op.result
    if slot < 0:
        operand = reshape_shard(shard, target, source, ranks)
        return Strategy((operand,), shard) if operand else None
    result = reshape_shard(shard, source, target, ranks)
    return Strategy((shard,), result) if result else None


def permute(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    dims = op.dims("dims", len(op.result))
    if slot < 0:
        return Strategy((shard.moved(dims[shard.dim]),), shard)
    return Strategy((shard,), shard.moved(dims.index(shard.dim)))


def expand(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    source, extra = op.operands[0], len(op.result) - len(op.operands[0])
    if slot >= 0:
        return Strategy((shard,), shard.moved(shard.dim + extra)) if source[shard.dim] > 1 else None
    dim = shard.dim - extra
    grown = dim < 0 or source[dim] != op.result[shard.dim]
    return Strategy((REPLICATE if grown else shard.moved(dim),), shard)


def part(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """Arguments (x, dim, sizes, index): the parts of a fused dimension are sharded each on its own."""
    dim, sizes, index = op.dim("dim", len(op.result)), op.literal("sizes"), op.literal("index")
    assert isinstance(index, int)
    assert isinstance(sizes, list | tuple)
    if shard.dim != dim:
        return Strategy((shard,), shard)
    if slot < 0:
        return _part_of_whole(shard, dim, tuple(sizes), index, ranks)
    offset, want = sum(sizes[:index]), sizes[index]
    position = 0
    for segment in shard.segments:
        if position == offset and segment.size == want:
            return Strategy((shard,), Shard(dim, (segment,)))
        position += segment.size
    return None


def _part_of_whole(shard: Shard, dim: int, sizes: tuple[int, ...], index: int, ranks: int) -> Strategy | None:
    if len(shard.segments) != 1:
        return None
    own = shard.segments[0]
    segments: list[Segment] = []
    for i, size in enumerate(sizes):
        units = own if i == index else _like(own, size, ranks)
        if units is None:
            return None
        segments.append(units)
    return Strategy((Shard(dim, tuple(segments)),), shard)


def _like(segment: Segment, size: int, ranks: int) -> Segment | None:
    """A segment of another size divided the same way: in equal parts, or else in the same granules."""
    if segment.is_even(ranks):
        parts = segment.repeat * ranks
        return Segment(segment.repeat, ranks, size // parts) if size % parts == 0 else None
    block = segment.repeat * segment.granule
    return Segment(segment.repeat, size // block, segment.granule) if size % block == 0 else None


def cat(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    if shard.dim == op.dim("dim", len(op.result)):
        return None
    return Strategy((shard,) * len(op.operands), shard)
