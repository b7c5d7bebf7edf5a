"""A tensor without elements is divided along none of its dimensions by a reshape."""

from __future__ import annotations

from partitioner.sharding.layout import Segment, Shard, reshape_shard


def test_no_dimension_of_an_empty_tensor_is_found() -> None:
    shard = Shard(0, (Segment(1, 2, 4),))
    assert reshape_shard(shard, (8, 0), (8, 0), 2) is None
    assert reshape_shard(shard, (8, 4), (8, 2, 2), 2) == Shard(0, (Segment(1, 2, 4),))
