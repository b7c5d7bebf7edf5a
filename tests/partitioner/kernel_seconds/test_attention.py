"""Attention takes its scores, each with products and softmax, what a row costs, and what waits for the longest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from partitioner import Cluster
from partitioner.hardware.device import Attention
from partitioner.kernel_seconds.attention import BLOCK, Attended, attention_seconds

A100 = Cluster.load("dgx-a100").device
PLAIN = Attention(
    0.5, score_flops_each=30.0, row_overheads=10.0, fixed_seconds=7.0, tail=0.5, key_bytes_each=3.0, backward=3.0
)  # fmt: skip
DEVICE = replace(
    A100, attention=PLAIN, flops_per_second={"float16": 100.0}, memory_bytes_per_second=6.0, multiprocessors=4,
    sustained=1.0,
)  # fmt: skip
SEEN = Attended(rows=5000.0, scores=1e6, keys=400.0, width=10.0, key_heads=200.0)


def test_scores_rows_and_the_longest_block_are_added() -> None:
    each = (40.0**2 + 30.0**2) ** 0.5 / 100  # 2 x 10 FLOPs at half of the peak, beside 30 of the softmax
    longest = BLOCK * 4 * (400 + 10)
    expected = 7 + each * (1e6 + 10 * 5000 + 0.5 * longest) + 3 * 200 / 6
    assert attention_seconds(SEEN, DEVICE, "float16") == pytest.approx(expected)
    backward = attention_seconds(replace(SEEN, backward=True), DEVICE, "float16")
    assert backward == pytest.approx(7 + 3 * (expected - 7))


def test_few_rows_take_as_long_as_one_block() -> None:
    few = Attended(rows=128.0, scores=128 * 400.0, keys=400.0, width=10.0, key_heads=0.0)
    found = attention_seconds(few, DEVICE, "float16")
    assert found == pytest.approx(7 + 0.5 * BLOCK * 4 * (400 + 10))


def test_a_core_has_no_blocks_and_half_the_clock_takes_twice_as_long() -> None:
    core = replace(DEVICE, multiprocessors=1)
    assert attention_seconds(SEEN, core, "float16") == pytest.approx(7 + 0.5 * 1e6)
    slow = attention_seconds(SEEN, replace(DEVICE, sustained=0.5), "float16")
    compute = attention_seconds(SEEN, DEVICE, "float16") - 7 - 100
    assert slow == pytest.approx(7 + 100 + 2 * compute)


def test_an_earlier_generation_is_slower_but_for_what_is_fixed() -> None:
    device = replace(DEVICE, attention=replace(PLAIN, generation_shares={"first": 0.5}))
    fastest = attention_seconds(SEEN, device, "float16", "newest")
    assert fastest == attention_seconds(SEEN, device, "float16")
    assert attention_seconds(SEEN, device, "float16", "first") == pytest.approx(7 + 2 * (fastest - 7))


def test_flops_are_of_two_products_and_of_five_backward() -> None:
    assert (SEEN.flops, replace(SEEN, backward=True).flops) == (2 * 1e6 * 10, 5 * 1e6 * 10)
