"""Conversions between layouts on several axes, by hand: every rank's tensor there, collectives played out on them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from partitioner.ops.collectives import convert
from partitioner.ops.conversions import Hop, conversion
from partitioner.ops.cut_tensors import assemble, take
from partitioner.sharding.layout import (
    PARTIAL,
    REPLICATE,
    WHOLE,
    Layout,
    Placement,
    Segment,
    Shard,
    joined,
    local_shape,
    partial_axes,
    shard_whole,
    unflat,
)
from partitioner.sharding.mesh_axes import Axes, wholes

SHAPE = (8, 4)
Ranks = dict[tuple[int, ...], torch.Tensor]  # by place on the axes
APART: Axes = (("a", 2), ("b", 2))
REFINING: Axes = (("tp_kv", 2), ("tp_repeat", 2))
UNLIKE: Axes = (("a", 2), ("b", 3))


def scattered(value: torch.Tensor, layout: Layout, axes: Axes, place: tuple[int, ...] = ()) -> Ranks:
    if len(place) == len(axes):
        return {place: value}
    placement, ranks, found = layout[len(place)], axes[len(place)][1], Ranks()
    parts = torch.randint(-9, 9, (ranks, *value.shape)).double()
    parts[0] += value - parts.sum(0)
    for rank in range(ranks):
        own = take(value, placement, rank, ranks) if isinstance(placement, Shard) else value
        found |= scattered(parts[rank] if placement == PARTIAL else own, layout, axes, (*place, rank))
    return found


def gathered(rows: Ranks, layout: Layout, axes: Axes) -> list[torch.Tensor]:
    """All wholes that the ranks say there are."""
    if not axes:
        return list(rows.values())
    halves = [{p[1:]: x for p, x in rows.items() if p[0] == rank} for rank in range(axes[0][1])]
    inner = [gathered(half, layout[1:], axes[1:]) for half in halves]
    if isinstance(layout[0], Shard):
        return [assemble(list(parts), layout[0]) for parts in zip(*inner, strict=True)]
    return [torch.stack(parts).sum(0) for parts in zip(*inner, strict=True)] if layout[0] == PARTIAL else sum(inner, [])


def played(rows: Ranks, hop: Hop, axes: Axes) -> Ranks:
    """What a collective leaves on each rank."""
    slots = dict(wholes(axes)).get(hop.axis) or tuple(n for n, (axis, _) in enumerate(axes) if axis == hop.axis)
    found, arguments = Ranks(), hop.row.arguments
    for place in rows:
        group = [p for p in sorted(rows) if all(p[n] == place[n] for n in range(len(axes)) if n not in slots)]
        assert len(group) == hop.ranks
        parts, rank = [rows[p] for p in group], group.index(place)
        found[place] = _made(hop.row.op, arguments, parts, rank)
    return found


def _made(op: str, arguments: tuple[object, ...], parts: list[torch.Tensor], rank: int) -> torch.Tensor:
    shards = [Shard(dim, unflat(rest)) for dim, rest in itertools.pairwise(arguments) if isinstance(rest, list)]  # type: ignore[arg-type]
    ranks, total = len(parts), torch.stack(parts).sum(0) if len({p.shape for p in parts}) == 1 else None
    if op == "all_reduce":
        assert total is not None
        return total
    if op == "reduce_scatter":
        assert total is not None
        return take(total, shards[0], rank, ranks)
    if op == "on_first":
        return parts[0] if rank == 0 else torch.zeros_like(parts[rank])
    if op == "all_gather":
        return assemble(parts, shards[0])
    if op == "all_to_all":
        return take(assemble(parts, shards[0]), shards[1], rank, ranks)
    return {"copy": parts[rank], "shard": take(parts[rank], shards[0], rank, ranks) if shards else parts[rank]}[op]


def layouts(axes: Axes, shape: tuple[int, ...]) -> list[Layout]:
    found: list[Layout] = [()]
    for n, (_, ranks) in enumerate(axes):
        grown = list[Layout]()
        for layout in found:
            left = local_shape(shape, layout, [(0, size) for _, size in axes[:n]])
            own: list[Placement] = [WHOLE, REPLICATE, PARTIAL, *(shard_whole(d, s, ranks) for d, s in enumerate(left))]
            grown += [(*layout, placement) for placement in own]
        found = grown
    return found


def hops_of(source: Layout, target: Layout, axes: Axes) -> list[Hop]:
    found = conversion(source, target, axes, True)
    assert found is not None
    return list(found)


@pytest.mark.parametrize(("axes", "shape"), [(APART, SHAPE), (REFINING, SHAPE), (UNLIKE, (12, 6))])
def test_every_conversion_ends_where_it_says(axes: Axes, shape: tuple[int, ...]) -> None:
    value, known, tried = torch.randint(-99, 99, shape).double(), layouts(axes, shape), 0
    for source, target in itertools.product(known, known):
        hops = conversion(source, target, axes, True)
        if hops is None:
            continue
        rows, tried = scattered(value, source, axes), tried + 1
        for hop in hops:
            rows = played(rows, hop, axes)
            sizes = [ranks for _, ranks in axes]
            shapes = {place: local_shape(shape, hop.made, list(zip(place, sizes, strict=True))) for place in rows}
            assert {place: tuple(x.shape) for place, x in rows.items()} == shapes
            assert all(a in (b, REPLICATE) for a, b in zip(hop.whole, hop.made, strict=True))
        assert all(torch.equal(value, x) for x in gathered(rows, target, axes)), (source, target, hops)
    assert tried > 400


def test_what_no_order_of_axes_does_is_none() -> None:
    """The inner axis divides what the outer one changes, before and behind."""
    outer, inner = shard_whole(0, 8, 2), shard_whole(0, 4, 2)
    assert conversion((outer, inner), (WHOLE, inner), APART, True) is None
    assert convert(outer, WHOLE, 2) is not None
    whole = hops_of((outer, inner), (WHOLE, WHOLE), APART)
    assert [(hop.axis, hop.row.op) for hop in whole] == [("b", "all_gather"), ("a", "all_gather")]
    cut = hops_of((WHOLE, WHOLE), (outer, inner), APART)
    assert [(hop.axis, hop.row.op) for hop in cut] == [("a", "shard"), ("b", "shard")]


def test_what_refines_an_axis_converts_as_one_where_that_says_the_same() -> None:
    outer, inner = shard_whole(0, 8, 2), shard_whole(0, 4, 2)
    (hop,) = hops_of((outer, inner), (WHOLE, WHOLE), REFINING)
    assert (hop.axis, hop.ranks, hop.row.op, hop.row.arguments[0]) == ("tp", 4, "all_gather", 0)
    (hop,) = hops_of((PARTIAL, PARTIAL), (WHOLE, WHOLE), REFINING)
    assert (hop.axis, hop.ranks, hop.row.op) == ("tp", 4, "all_reduce")
    (hop,) = hops_of((outer, PARTIAL), (outer, WHOLE), REFINING)
    assert (hop.axis, hop.ranks) == ("tp_repeat", 2)
    fused = Shard(0, (Segment(1, 4, 1), Segment(1, 4, 1)))  # its halves do not lie in a row of four
    assert len(hops_of((fused, inner), (WHOLE, WHOLE), REFINING)) == 2
    first, second = ((Segment(1, 2, a), Segment(1, 2, b)) for a, b in ((4, 2), (1, 2)))
    assert joined((Shard(0, first), Shard(0, second)), (2, 2)) is None  # 4 + 2 there, 2 + 4 here
    assert joined((Shard(0, first), Shard(0, (Segment(1, 2, 2), Segment(1, 2, 1)))), (2, 2)) is not None


def test_a_gradient_is_partial_over_the_axis_that_is_refined_or_a_part_of_it() -> None:
    assert partial_axes((REPLICATE, REPLICATE), REFINING) == ("tp",)
    assert partial_axes((WHOLE, REPLICATE), REFINING) == ("tp_repeat",)
    assert partial_axes((REPLICATE, REPLICATE), APART) == ("a", "b")
    assert partial_axes((REPLICATE, REPLICATE), (("a", 1), ("b", 2))) == ("b",)


def test_payloads_are_of_what_other_axes_leave() -> None:
    outer = shard_whole(0, 8, 2)
    (hop,) = hops_of((outer, PARTIAL), (outer, WHOLE), APART)
    assert hop.whole == (outer, REPLICATE)
    assert hop.payload(128.0, "forward") == 128.0
    (hop,) = hops_of((outer, shard_whole(1, 4, 2)), (outer, shard_whole(0, 4, 2)), APART)
    assert (hop.row.op, hop.payload(128.0, "backward")) == ("all_to_all", 64.0)
    assert math.prod(local_shape(SHAPE, (outer, WHOLE), [(0, 2), (0, 2)])) == 16
