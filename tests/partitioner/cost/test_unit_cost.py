"""A block's price, counted by hand: bytes streamed, FLOPs, kernels, what is kept, what its layouts send."""

from __future__ import annotations

import functools

import pytest
import torch
from hand_counted import chain, cluster, priced

from partitioner import Graph
from partitioner.cluster import Cluster
from partitioner.cost.op_seconds import Seconds
from partitioner.cost.unit_cost import Priced, UnitCost
from partitioner.sharding.layout import REPLICATE, Placement, shard_whole
from partitioner.software import Software

COLUMNS, ROWS = shard_whole(0, 4, 2), shard_whole(1, 4, 2)  # of a block's weight, outputs x inputs


@functools.cache
def graph() -> Graph:
    return chain()


def found(on: Cluster, tp: int = 1, **layouts: Placement) -> Priced:
    return priced(graph(), on, tp, {f"{name}.weight": placement for name, placement in layouts.items()})


def units(priced: Priced) -> list[UnitCost]:
    """Of the embedding, the blocks and the head."""
    return [priced.unit(unit) for unit in priced.folded.graph.units]


def test_bytes_that_are_streamed() -> None:
    """Values are 6 x 4 float32: 96 bytes; a block's weight 64, tables 256, logits 384, tokens 48.

    embed      forward 96 + 96; backward: its gradient and result, tokens, the table's gradient, added in 3 x 256
    block      forward: product 96 + 64 + 96, tanh 96 + 96, sum 3 x 96
               backward: two products of 256, 3 x 64 added; tanh 3 x 96; the sum passes its gradient on
    head       forward: product 96 + 256 + 384; entropy 384 + 48 + 24, its softmax 384; sum 24 + 4; quotient 4 + 8 + 4
    """
    embed, block, _, _, head = units(found(cluster(memory=1.0)))
    assert embed.compute == Seconds(192, 96 + 96 + 48 + 256 + 3 * 256)
    assert block.compute == Seconds(256 + 192 + 288, 2 * 256 + 3 * 64 + 288)
    assert head.compute.forward == 736 + 840 + 28 + 16
    assert [row.weight_gradient_seconds for row in (embed, block, head)] == [0, 256 + 3 * 64, 736 + 3 * 256]
    assert block.communication == Seconds(0, 0)


def test_flops() -> None:
    embed, block, _, _, head = units(found(cluster(flops=1.0)))
    assert (embed.compute, block.compute, head.compute) == (Seconds(0, 0), Seconds(192, 384), Seconds(768, 1536))
    assert [row.weight_gradient_seconds for row in (embed, block, head)] == [0, 192, 768]
    assert (embed.flops, block.flops, head.flops) == (0, 2 * 6 * 4 * 4, 2 * 6 * 4 * 16)


def test_kernels() -> None:
    """A product's backward is two and one that adds the weight's gradient."""
    rows = units(found(cluster(launch=1.0)))
    assert [row.kernels for row in rows] == [(1, 1), (3, 4), (3, 4), (3, 4), (4, 6)]
    assert [row.compute for row in rows] == [Seconds(*row.kernels) for row in rows]
    assert [row.weight_gradient_seconds for row in rows] == [0, 2, 2, 2, 2]


def test_an_efficiency_divides_all_of_it() -> None:
    half = units(found(cluster(memory=1.0, software=Software(efficiency=0.5))))[1]
    assert half.compute == Seconds(2 * 736, 2 * 992)


def test_what_ways_of_recomputing_keep_and_run_again() -> None:
    """A block keeps its input and tanh's result; all of it: up to tanh, for nothing needs the sum."""
    kept = units(found(cluster(memory=1.0)))[1].stash
    found_ = {way: kept[way] for way in ("none", "selective", "mlp", "operators", "full")}
    assert {way: (row.bytes, row.compute, row.weight_gradient_seconds) for way, row in found_.items()} == {
        "none": (192, 0, 0),
        "selective": (192, 0, 0),
        "mlp": (192, 0, 448),  # the product alone, whose backward reads what entered
        "operators": (96 + 96, 192, 448),  # the product's result, of which tanh runs again
        "full": (96, 256 + 192, 448),
    }
    # input, product's or tanh's result, sum; then what is kept, the gradients of the sum and of tanh
    assert tuple(kept["none"].peaks) == (288, 192 + 96 + 96, 192 + 96 + 96, 192 + 96 + 96)


@pytest.mark.parametrize(
    ("weight", "parts", "kept", "again"),
    [
        # tanh's result is gathered behind it: all that is kept of it is a half
        (COLUMNS, [(48, 48, 1, 1)] * 2, 96 + 48, 48),
        # inputs are halves; products are summed and scattered, before tanh, which runs on a half
        (ROWS, [(48, 48, 1, 1)] * 2, 48 + 48, 48),
        # whole on every rank
        (REPLICATE, [(0, 0, 0, 0)] * 2, 96 + 96, 0),
    ],
)
def test_what_a_block_sends_by_its_weights_layout(
    weight: Placement, parts: list[tuple[int, ...]], kept: int, again: int
) -> None:
    """Of 96 bytes a ring of 2 ranks passes 48 for each gather or scatter."""
    rows = units(found(cluster(near=1.0), 2, **{"0": weight}))
    sent = [(row.communication.forward, row.communication.backward, *row.collectives) for row in rows[1:3]]
    assert sent == parts
    assert rows[1].stash["none"].bytes == kept
    assert rows[1].stash["full"].communication == again
    assert "cp" not in rows[1].axis_shares


def test_what_a_unit_hands_on_otherwise_is_its_own() -> None:
    """A block hands halves to a block, and to the head the whole."""
    embed, first, second, last, head = units(found(cluster(near=1.0), 2, **{"0": COLUMNS}))
    assert first is second
    assert last.communication == Seconds(96, 48)
    assert (last.collectives, head.collectives, embed.collectives) == ((2, 1), (0, 0), (0, 0))
    whole = units(found(cluster(near=1.0), 2, **{"0": REPLICATE}))[0]
    assert (whole.communication, whole.collectives) == (Seconds(0, 96), (0, 1))  # its gradient is summed


def test_entropy_over_divided_classes() -> None:
    """Logits are halves: 24 bytes of maxima and 48 of sums and targets are reduced, then 96 of a gradient."""
    head = units(found(cluster(near=1.0), 2, head=shard_whole(0, 16, 2)))[-1]
    assert (head.communication, head.collectives) == (Seconds(24 + 48, 96), (2, 1))
    assert head.stash["none"].bytes == 96 + 192


def test_pieces_hide_a_quarter_and_no_more_than_compute() -> None:
    """Forward streams a product of half a weight, 48 + 32 + 96, tanh of a half 2 x 48, a sum of halves 3 x 48."""
    for memory, forward in ((1.0, 36.0), (1e3, 48.0 - 416 / 1e3)):
        on = cluster(near=1.0, memory=memory, software=Software(overlap_tensor=True))
        block = units(found(on, 2, **{"0": ROWS}))[1]
        assert block.compute.forward == pytest.approx(416 / memory)
        assert block.communication.forward == pytest.approx(forward)


def test_what_crosses_a_cut() -> None:
    one = found(cluster())
    assert one.crossing == one.sent == one.returned == one.sent_back == [0, 96, 96, 96, 96, 0]
    assert one.input_bytes == 2 * 48 + 8  # tokens, labels, and how many samples a step has
    two = found(cluster(software=Software(scatter_sends=True)), 2, **{"0": REPLICATE})
    assert two.crossing[1:4] == two.returned[1:4] == [96] * 3
    assert two.sent[1:4] == two.sent_back[1:4] == [48] * 3  # each of two ranks sends a half


@pytest.mark.parametrize(
    ("weight", "elements", "partial"), [(COLUMNS, 8, ()), (ROWS, 8, ()), (REPLICATE, 16, ("tp",))]
)
def test_what_a_rank_holds_of_a_parameter(weight: Placement, elements: int, partial: tuple[str, ...]) -> None:
    found_ = found(cluster(), 2, **{"0": weight})
    for block in found_.folded.graph.blocks:
        assert list(found_.held[block].values()) == [(elements, torch.float32, partial)]
