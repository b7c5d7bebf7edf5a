"""What stages of a chain keep and hold at their fullest, counted by hand: each value is 96 bytes, logits are 384."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from hand_counted import chain, cluster, priced

from partitioner.cost.unit_cost import Held, Priced
from partitioner.precision import Precision
from partitioner.sharding.layout import REPLICATE, shard_whole
from partitioner.step.split import StageSums, stage_sums

VALUE, LOGITS, TABLE, WEIGHT = 96, 384, 256, 64


@functools.cache
def chain_(tied: bool = False) -> Priced:
    return priced(chain(tied=tied), cluster())


def sums(start: int, end: int, tied: bool = False) -> StageSums:
    """Of units: embed 0, blocks 1 to 3, head 4."""
    found = chain_(tied)
    return stage_sums(found, found.folded.graph.units[start:end])


def test_the_first_stage() -> None:
    """Embedding and a block keep the embedding's and tanh's result, and what is handed on."""
    (row,) = sums(0, 2).stash["none"]
    assert row.bytes == 3 * VALUE
    assert row.peaks.forward == 3 * VALUE
    # where the block's gradient is the sum of two: what is kept but tanh, both and their sum, tanh's own, and that of
    # what was handed on, which autograd's caller holds; at the embedding: what was handed on and its gradient, its own
    # gradient, the table's
    assert row.peaks.backward == max(6 * VALUE, 3 * VALUE + TABLE)
    assert row.peaks.first == row.peaks.alone == 6 * VALUE + WEIGHT


def test_a_gradient_that_passes_by_the_last_unit_lies_beside_it() -> None:
    """Of what was embedded, which the head reads: another stage sends it with the gradient of the block's result."""
    found = priced(chain(skip=True), cluster())
    (row,) = stage_sums(found, found.folded.graph.units[1:2]).stash["none"]
    assert row.bytes == 3 * VALUE
    assert row.peaks.backward == 7 * VALUE


def test_a_stage_in_the_middle_and_what_recomputing_frees() -> None:
    """Two blocks: received, tanh, handed to the second, its tanh, handed on; recomputed, two of tanh are not kept."""
    rows = sums(2, 4).stash["full"]
    assert [row.bytes for row in rows] == [5 * VALUE, 4 * VALUE, 3 * VALUE]
    # forward: all kept, or with one block's tanh
    assert [row.peaks.forward for row in rows] == [5 * VALUE, 4 * VALUE, 4 * VALUE]
    # backward, where the second's gradient is the sum of two: all kept but its tanh, both and their sum, tanh's own,
    # and that of what was handed on
    assert [row.peaks.backward for row in rows] == [8 * VALUE, 7 * VALUE, 7 * VALUE]
    assert [row.peaks.first for row in rows] == [8 * VALUE + WEIGHT, 7 * VALUE + WEIGHT, 7 * VALUE + WEIGHT]
    assert [row.weight_gradient_seconds for row in rows] == [0, 0, 0]


def test_the_last_stage() -> None:
    """A block and the head: received, tanh, the head's input, the entropy's softmax."""
    (row,) = sums(3, 5).stash["none"]
    assert row.bytes == 3 * VALUE + LOGITS
    assert row.peaks.forward == row.bytes + LOGITS + 24  # logits, and a number a token
    assert [k.bytes for k in sums(3, 5).stash["full"]] == [3 * VALUE + LOGITS, 2 * VALUE + LOGITS]


def test_stages_add_up_to_the_whole() -> None:
    """Values that cross are held on both sides: two of them in three stages."""
    parts = [sums(0, 2), sums(2, 4), sums(4, 5)]
    (whole,) = sums(0, 5).stash["none"]
    assert whole.bytes == 7 * VALUE + LOGITS
    assert sum(part.stash["none"][0].bytes for part in parts) == whole.bytes + 2 * VALUE


def test_what_crosses_is_received_and_handed_on() -> None:
    rows = [sums(0, 2), sums(2, 4), sums(4, 5)]
    assert [(r.input_bytes, r.output_bytes) for r in rows] == [(0, VALUE), (VALUE, VALUE), (VALUE, 0)]
    assert [(r.sent_bytes, r.sent_back_bytes) for r in rows] == [(VALUE, 0), (VALUE, VALUE), (0, VALUE)]


def f32(elements: float) -> Held:
    return Held(elements, torch.float32, ())


@pytest.mark.parametrize(("tied", "whole"), [(False, 64 + 3 * 16 + 64), (True, 64 + 3 * 16)])
def test_parameters_of_stages(tied: bool, whole: int) -> None:
    """A tied table counts once where both who read it are in one stage; first and last stage hold it each."""
    assert [row.parameters for row in (sums(0, 5, tied), sums(0, 2, tied), sums(2, 4, tied), sums(4, 5, tied))] == [
        (f32(whole),), (f32(80),), (f32(32),), (f32(64),),
    ]  # fmt: skip
    assert [len(sums(*run, tied).tied_parameters) for run in ((0, 5), (0, 2), (2, 4), (4, 5))] == [tied, tied, 0, tied]
    row = sums(0, 5, tied)
    assert (row.weight_bytes, row.gradient_bytes, row.partial_bytes) == (4 * whole, 4 * whole, {})


@pytest.mark.parametrize(("tied", "fullest"), [(False, 448 + 2 * 32 + 4), (True, 32 + TABLE + TABLE)])
def test_a_tied_tables_gradient_waits_for_the_embedding(tied: bool, fullest: int) -> None:
    """Samples of one token, two blocks recomputed: the fullest is the head on top of what blocks read, 2 x 32,
    and the loss' gradient; or the embedding, of which the result's gradient, its own part of the table's and the head's
    part lie there."""
    found = priced(chain(2, tied, length=1), cluster())
    row = stage_sums(found, found.folded.graph.units).stash["full"][2]
    assert row.peaks.backward == fullest
    assert row.peaks.first == row.peaks.alone == 32 + 2 * TABLE + 2 * WEIGHT  # all gradients are there in the end


def test_bytes_of_sums_by_the_training_program() -> None:
    """Gradients of 8 bytes, weights of 4: Partial are the blocks', which all ranks hold."""
    graph = replace(chain(), precision=Precision(compute="float32", gradients="float64"))
    found = priced(graph, cluster(), 2, {"0.weight": REPLICATE, "embed.weight": REPLICATE})
    row = stage_sums(found, found.folded.graph.units[:4])
    partial = sum(n for n, _, axes in row.parameters if axes)
    assert partial in (48, 48 + 64)
    assert row.partial_bytes == {"tp": 8 * partial}
    assert row.gradient_bytes == 8 * sum(n for n, _, _ in row.parameters)
    assert row.weight_bytes == 4 * sum(n for n, _, _ in row.parameters)


def test_sums_of_seconds_and_counts() -> None:
    on = priced(chain(), cluster(memory=1.0))
    row = stage_sums(on, on.folded.graph.units[1:3])
    assert (row.seconds.forward, row.seconds.backward) == (2 * 736, 2 * 992)
    assert (row.weight_gradient_seconds, row.communication_seconds, row.axis_seconds) == (2 * (256 + 3 * 64), 0, {})
    assert (row.kernels, row.blocks, row.flops) == ((6, 8), 2, 2 * 192)
    assert [kept.compute for kept in row.stash["full"]] == [0, 448, 896]
    assert [kept.weight_gradient_seconds for kept in row.stash["full"]] == [0, 448, 896]


def test_sums_of_communication() -> None:
    """A block's products are summed and scattered, 48, its inputs' gradients gathered, 48."""
    on = priced(chain(), cluster(near=1.0), 2, {"0.weight": shard_whole(1, 4, 2)})
    row = stage_sums(on, on.folded.graph.units[1:3])
    assert (row.seconds.forward, row.seconds.backward, row.communication_seconds) == (96, 96, 192)
    assert row.collectives == (2, 2)
    assert [kept.communication for kept in row.stash["full"]] == [0, 48, 96]
