"""Ops over channels, in groups or not: convolutions and the norms whose statistics are of channels or groups of them.

    (n, channels, *space)    a division of channels goes through where every rank has whole groups of them
"""

from __future__ import annotations

from partitioner.sharding.equations import Shape, Strategy, bind
from partitioner.sharding.layout import REPLICATE, Placement, Shard, shard_whole
from partitioner.sharding.op_equations import Complete, Op


def convolution(transposed: bool = False) -> Complete:
    """A weight is (out, in of a group, *kernel); of a transposed convolution (in, out of a group, *kernel)."""

    def complete(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
        groups = op.literal("groups")
        assert isinstance(groups, int)
        if groups == 1:
            return bind(_convolution(op, transposed), op.operands, op.result).complete(slot, shard)
        channel = len(op.result) - len(op.operands[1]) + 1
        dims = (channel, 0, 0)[: len(op.operands)]
        return _samples(op, slot, shard, channel) or _grouped(op, slot, shard, ranks, groups, dims, channel)

    return complete


def _convolution(op: Op, transposed: bool) -> str:
    lead = "n " if len(op.operands[0]) == len(op.operands[1]) else ""
    space, kernel, out = (" ".join(f"{x}{i}!" for i in range(len(op.operands[1]) - 2)) for x in "xky")
    channels = "c" if len(op.operands) == 2 else "c!"
    weight = f"{channels} o" if transposed else f"o {channels}"
    return f"{lead}{channels} {space}, {weight} {kernel}{', o' if len(op.operands) == 3 else ''} -> {lead}o {out}"


def group_norm(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """Statistics of a sample's group of channels over all of space."""
    groups = op.literal("num_groups")
    assert isinstance(groups, int)
    dims = (1, 0, 0)[: len(op.operands)]
    return _samples(op, slot, shard, 1) or _grouped(op, slot, shard, ranks, groups, dims, 1)


def _samples(op: Op, slot: int, shard: Shard, channel: int) -> Strategy | None:
    """Samples, in front of the channels, divided."""
    if slot > 0 or not channel or shard.dim:
        return None
    return Strategy((shard, *[REPLICATE] * (len(op.operands) - 1)), shard)


def _grouped(
    op: Op, slot: int, shard: Shard, ranks: int, groups: int, dims: tuple[int, ...], channel: int
) -> Strategy | None:
    """Channels divided into as many groups on each rank; ``dims``: where operands hold them, ``channel`` the result."""
    sides: list[tuple[Shape, int]] = [*zip(op.operands, dims, strict=True), (op.result, channel)]
    placements: list[Placement] = [shard_whole(dim, shape[dim], ranks) for shape, dim in sides]
    if groups % ranks or shard.canonical(ranks) != placements[slot]:
        return None
    return Strategy(tuple(placements[:-1]), placements[-1])


def instance_norm(op: Op) -> str | None:
    """Statistics of each sample's channel over all of space; None where they are kept from batch to batch."""
    if op.literal("running_mean") is not None or not op.literal("use_input_stats"):
        return None
    space = " ".join(f"x{i}!" for i in range(len(op.result) - 2))
    return f"n c {space}" + ", c" * (len(op.operands) - 1) + f" -> n c {space}"


def batch_norm(op: Op) -> str:
    """Statistics of a channel over samples and space; where it does not train, each element by itself."""
    mark = "!" if op.literal("training") else ""
    names = f"n{mark} c " + " ".join(f"x{i}{mark}" for i in range(len(op.result) - 2))
    return names + ", c" * (len(op.operands) - 1) + f" -> {names}"


def prelu(op: Op) -> str:
    """A slope for each channel, or one for all."""
    names = [f"d{i}" for i in range(len(op.result))]
    slope = names[1] if op.operands[1] != (1,) and len(names) > 1 else "one!"
    return f"{' '.join(names)}, {slope if op.operands[1] else ''} -> {' '.join(names)}"
