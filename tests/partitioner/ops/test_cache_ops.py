"""Ops on rings and tables, against loops over every text, position and slot."""

from __future__ import annotations

import math

import pytest
import torch

from partitioner.ops import cache_ops

own = torch.ops.partitioner
STARTS = torch.tensor([0, 3, 11, 6])


def held(start: int, n: int, slots: int) -> list[int]:
    """The position that was written last into each slot; below 0: none."""
    found = [-1] * slots
    for position in range(start + n):
        found[position % slots] = position
    return found


@pytest.mark.parametrize(("n", "slots"), [(1, 5), (3, 5), (5, 5), (4, 16)])
def test_slot_positions(n: int, slots: int) -> None:
    got = cache_ops.slot_positions(STARTS, n, slots)
    want = torch.tensor([held(int(start), n, slots) for start in STARTS])
    assert torch.equal(got.clamp(min=-1), want)


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize(("n", "slots"), [(1, 5), (3, 6), (4, 16)])
def test_seen(n: int, slots: int, window: int) -> None:
    got = cache_ops.seen_slots(STARTS, n, slots, window, [0, 1, 2], 3, [1, 1])
    for b, start in enumerate(STARTS.tolist()):
        for i in range(n):
            at = start + i
            first = max(0, at - window + 1) if window else 0
            want = [first <= position <= at for position in held(start, n, slots)]
            assert got[b, i].tolist() == want


def test_extend_cache_writes_each_text_where_it_is() -> None:
    cache, x = torch.zeros(2, 4, 5), torch.arange(1.0, 25).view(2, 4, 3)  # h b s
    got = own.extend_cache(cache, x, own.slot_places(STARTS, 3, 5), 1, 2)
    want = torch.zeros(2, 4, 5)
    for b, start in enumerate(STARTS.tolist()):
        for i in range(3):
            want[:, b, (start + i) % 5] = x[:, b, i]
    assert torch.equal(got, want)
    assert got.data_ptr() == cache.data_ptr()


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("repeat", "inner"), [(1, 1), (2, 3)])
def test_at_positions(repeat: int, inner: int, sampled: bool) -> None:
    """Samples merged as (repeat, b, inner); positions past the table's end read its last row, which nothing sees."""
    length, n, slots = 13, 3, 6
    table = torch.randn(repeat * 4 * inner if sampled else 1, length, length)
    got = own.at_positions(table, STARTS, 3, 0, repeat, inner, 1, n, 2, slots)
    assert got.shape == (repeat * 4 * inner if sampled or repeat * inner > 1 else 4, n, slots)
    for row in range(len(got)):
        b = row // inner % 4
        start = int(STARTS[b])
        for i in range(n):
            for slot, position in enumerate(held(start, n, slots)):
                want = table[row if sampled else 0, min(start + i, length - 1), min(max(position, 0), length - 1)]
                assert got[row, i, slot] == want


def test_one_text_is_written_where_it_is() -> None:
    cache, x = torch.zeros(1, 5, 2), torch.arange(1.0, 7).view(1, 3, 2)
    got = own.extend_cache(cache, x, own.slot_places(STARTS[1:2], 3, 5), 0, 1)
    want = torch.zeros(1, 5, 2)
    want[0, [3, 4, 0]] = x[0]
    assert torch.equal(got, want)
    assert got.data_ptr() == cache.data_ptr()


def test_seen_slots_lie_as_scores_do() -> None:
    """Samples merged as (repeat, b, inner), dimensions in any order."""
    plain = cache_ops.seen_slots(STARTS, 2, 7, 4, [0, 1, 2], 3, [1, 1])
    merged = own.seen_slots(STARTS, 2, 7, 4, [3, 2, 0], 4, [2, 3])
    assert merged.shape == (7, 1, 2, 24)
    for row in range(24):
        assert torch.equal(merged[:, 0, :, row].T, plain[row // 3 % 4])


def test_hide_unseen_hides_the_lowest_number() -> None:
    scores = torch.randn(4, 3, 2, 7)
    seen = cache_ops.seen_slots(STARTS, 2, 7, 4, [0, 2, 3], 4, [1, 1])
    got = own.hide_unseen(scores, seen)
    assert torch.equal(got, torch.where(seen, scores, -math.inf))


def test_cached_attention_is_attention_to_what_is_seen() -> None:
    q, k, v = torch.randn(4, 2, 3, 8), torch.randn(4, 2, 9, 8), torch.randn(4, 2, 9, 5)
    seen = cache_ops.seen_slots(STARTS, 3, 9, 4, [0, 2, 3], 4, [1, 1])
    got = own.cached_attention(q, k, v, seen, 3, None)
    want = (q @ k.mT / math.sqrt(8)).masked_fill(~seen, -math.inf).softmax(-1) @ v
    torch.testing.assert_close(got, want)
    mask = torch.randn(1, 2, 3, 9)
    got = own.cached_attention(q, k, v, mask, 3, 0.3)
    torch.testing.assert_close(got, (q @ k.mT * 0.3 + mask).softmax(-1) @ v)


def test_heads_that_share_keys_are_rows_of_one() -> None:
    q, k, v = torch.randn(4, 6, 3, 8), torch.randn(4, 2, 9, 8), torch.randn(4, 2, 9, 5)
    seen = cache_ops.seen_slots(STARTS, 3, 9, 0, [0, 2, 3], 4, [1, 1])
    got = own.cached_attention(q.reshape(4, 2, 9, 8), k, v, seen, 3, None).reshape(4, 6, 3, 5)
    many = [t.repeat_interleave(3, 1) for t in (k, v)]
    torch.testing.assert_close(got, own.cached_attention(q, *many, seen, 3, None))
    got = own.cached_attention(q[:, :, :1].reshape(4, 2, 3, 8), k, v, seen[:, :, :1], 1, None).reshape(4, 6, 1, 5)
    torch.testing.assert_close(got, own.cached_attention(q[:, :, :1], *many, seen[:, :, :1], 1, None))


def test_store_keeps_what_is_not_fresh() -> None:
    memory, x = torch.zeros(3, 4), torch.ones(3, 4)
    fresh = torch.tensor([True, False, False, True])
    assert torch.equal(own.store(memory, x, fresh, 1), fresh.float().expand(3, 4))
    assert own.done(memory) == 0


def test_last_position() -> None:
    x = torch.arange(24.0).view(4, 3, 2)
    got = own.last_position(x, torch.tensor([2, 0, 1, 2]), 0, 1)
    assert torch.equal(got, torch.stack([x[0, 2], x[1, 0], x[2, 1], x[3, 2]])[:, None])


@pytest.mark.parametrize("op", ["extend_cache", "store", "at_positions", "hide_unseen", "cached_attention"])
def test_shapes_are_told_without_values(op: str) -> None:
    start = torch.empty(4, dtype=torch.int64, device="meta")
    seen = torch.empty(4, 3, 9, dtype=torch.bool, device="meta")
    made = {
        "extend_cache": (torch.empty(4, 9, device="meta"), torch.empty(4, 3, device="meta"), start[:, None], 0, 1),
        "store": (torch.empty(4, 9, device="meta"), torch.empty(4, 9, device="meta"), start.bool(), 0),
        "at_positions": (torch.empty(12, 12, device="meta"), start, 4, 0, 1, 1, 2, 3, 3, 9),
        "hide_unseen": (torch.empty(4, 3, 9, device="meta"), seen),
        "cached_attention": (*(torch.empty(4, n, 2, device="meta") for n in (3, 9, 9)), seen, 3, None),
    }  # fmt: skip
    shapes = {
        "extend_cache": (4, 9), "store": (4, 9), "at_positions": (4, 1, 3, 9), "hide_unseen": (4, 3, 9),
        "cached_attention": (4, 3, 2),
    }  # fmt: skip
    assert getattr(own, op)(*made[op]).shape == shapes[op]
