"""What ranks that share tokens send each other, and what of it attention hides; gathers of what products in few bits
read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from partitioner import Cluster, trace
from partitioner.cost.communication import Moved, moved
from partitioner.cost.conversion_seconds import WAYS, sent_bytes
from partitioner.cost.op_seconds import Seconds, op_seconds
from partitioner.cost.op_work import Setting, op_work
from partitioner.cost.price_units import price_units
from partitioner.graph.tied_blocks import fold
from partitioner.kernel_seconds.attention import RING_PASSES
from partitioner.layouts.op_kinds import is_attention
from partitioner.layouts.solution import Solution
from partitioner.ops.conversions import conversion
from partitioner.precision import PRESETS
from partitioner.searching.pins import read_pins
from partitioner.sharding.layout import PARTIAL, REPLICATE, shard_whole
from partitioner.software import Software
from partitioner.solve.axis_by_axis import solve_axes
from tools.models.plain_decoder import COLUMNS_AND_ROWS, Dimensions, decoder

HEADS, KV_HEADS, WIDTH, SEQ = 32, 8, 128, 4096


def solved(
    tp: int = 1, cp: int = 1, kv_heads: int = KV_HEADS, precision: str = "bf16", **traits: bool
) -> tuple[Setting, Solution, Cluster]:
    size = Dimensions(2, HEADS * WIDTH, HEADS, kv_heads, 14336, True, 1024, False, SEQ, False)
    cluster = replace(Cluster.load("dgx-b200"), software=Software(**traits))  # type: ignore[arg-type]
    graph = replace(trace(*decoder(size, torch.bfloat16)), precision=PRESETS[precision])
    setting = Setting.of(fold(graph), cluster, {"tp": tp, "cp": cp})
    pins = {"boundary": "sharded", **COLUMNS_AND_ROWS} if tp > 1 else {}
    allowed = read_pins(pins, graph).allows(setting.folded)
    return setting, solve_axes(setting, cluster, [1], lambda axis: allowed)[1], cluster


def moves(found: tuple[Setting, Solution, Cluster], axis: str) -> list[Moved]:
    """Of a block, over one axis."""
    return [row for rows in moved(*found, 1).values() for row in rows if row.axis == axis]


def test_heads_of_keys_that_queries_share_are_sent_and_read_once() -> None:
    """Two samples of 4,096 keys, 128 wide, of 2 bytes."""
    for kv_heads in (KV_HEADS, HEADS):
        found = solved(cp=2, kv_heads=kv_heads)
        whole = 2.0 * SEQ * WIDTH * 2 * kv_heads
        assert [[s.bytes for s in row.forward] for row in moves(found, "cp")] == [[whole], [whole]]
        setting, solution, _ = found
        node = next(n for n in setting.folded.body(1) if is_attention(n))
        (seen,) = op_work(setting, node, solution.strategies[node])[0].attended
        assert seen.key_heads == 2 * SEQ * kv_heads


def test_a_rank_with_a_part_of_a_head_reads_the_whole_head() -> None:
    setting, solution, _ = solved(tp=16)
    node = next(n for n in setting.folded.body(1) if is_attention(n))
    (seen,) = op_work(setting, node, solution.strategies[node])[0].attended
    assert seen.key_heads == 2 * SEQ


def test_keys_that_are_passed_on_hide_behind_attention_on_those_that_are_there() -> None:
    plain, ring = solved(cp=2), solved(cp=2, overlap_context=True)
    setting, solution, cluster = ring
    node = next(n for n in setting.folded.body(1) if is_attention(n))
    seconds = op_seconds(setting, node, solution.strategies[node], cluster)
    for row, hidden in zip(moves(plain, "cp"), moves(ring, "cp"), strict=True):
        assert (row.forward, row.backward) == (hidden.forward, hidden.backward)
        assert row.beside == Seconds(0.0, 0.0)
        assert hidden.beside == Seconds(seconds.forward / 4, seconds.backward / 4)  # of keys, of values: half of half
        assert hidden.seconds.forward == max(0.0, row.seconds.forward - seconds.forward / 4)
    costs = [price_units(*found).groups[1].communication for found in (plain, ring)]
    assert 0 <= costs[1].forward < costs[0].forward
    assert 0 <= costs[1].backward < costs[0].backward


def test_a_ring_computes_a_part_at_a_time_and_corrects_what_it_has() -> None:
    (whole, *_), (ring, *_) = ([op_work(s[0], n, s[1].strategies[n])[0] for n in s[0].folded.body(1) if is_attention(n)]
                               for s in (solved(cp=4), solved(cp=4, overlap_context=True)))  # fmt: skip
    assert len(whole.attended) == 1
    assert len(ring.attended) == ring.kernels == 4
    assert sum(part.scores for part in ring.attended) == pytest.approx(whole.attended[0].scores)
    assert ring.attended[1].rows == ring.attended[0].rows / 2 == whole.attended[0].rows / 2
    assert ring.streamed_bytes == RING_PASSES * 4 * (2 * SEQ * HEADS * WIDTH * 2 / 4)


@pytest.mark.parametrize(("precision", "share"), [("bf16", 1.0), ("fp8", 0.5), ("nvfp4", (0.5 + 1 / 16) / 2)])
def test_what_products_in_few_bits_read_is_gathered_in_those(precision: str, share: float) -> None:
    """Forward what a product reads, backward the gradient of what it makes; what a norm reads in 16 bits, and sums."""
    setting, _, _ = solved(tp=2, precision=precision, sends_quantized=True)
    plain = replace(setting, software=Software())
    by_op = {str(n.target): n for n in reversed(setting.folded.body(1))}
    norm, product, added = (by_op[f"aten.{op}"] for op in ("rms_norm.default", "linear.default", "add.Tensor"))
    tokens = shard_whole(1, SEQ, 2)
    for node, source, target, shares in (
        (norm, tokens, REPLICATE, {"forward": share, "backward": 1.0}),
        (product, PARTIAL, tokens, {"forward": 1.0, "backward": share}),
        (added, tokens, REPLICATE, {"forward": 1.0, "backward": 1.0}),
    ):
        (hop,) = conversion((source,), (target,), setting.axes, differentiable=True) or ()
        found = {way: sent_bytes(setting, node, hop, way) / sent_bytes(plain, node, hop, way) for way in WAYS}
        assert found == shares, node
