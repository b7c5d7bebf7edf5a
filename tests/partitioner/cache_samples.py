"""Small float64 calls of the ops that only answers need: samples first, in the middle, and merged with others."""

from __future__ import annotations

import torch
from calls import Sample, integers, real, truth

from partitioner.ops import cache_ops
from partitioner.ops.own_ops import own

assert cache_ops.OPS  # importing it registers the ops
_ALLOWED = torch.ones(2, 1, 3, 7, dtype=torch.bool)
_ALLOWED[:, :, 1:, 5:] = False  # no row sees nothing
_OF_ALL = _ALLOWED[0, 0]
_PLACES = torch.tensor([[3, 4, 5], [9, 10, 0], [0, 1, 2], [7, 8, 9]])

CACHED: list[Sample] = [
    Sample(own.slot_places.default, (integers(20, 4), 3, 11)),
    Sample(own.slot_places.default, (integers(20, 2), 1, 5)),
    Sample(own.seen_slots.default, (integers(20, 4), 3, 11, 0, [0, 2, 3], 4, [1, 1])),
    Sample(own.seen_slots.default, (integers(20, 2), 2, 7, 4, [2, 0, 1], 3, [2, 3])),
    Sample(own.extend_cache.default, (real(4, 6, 11), real(4, 6, 3), _PLACES, 0, 2), {}, (0,)),
    Sample(own.extend_cache.default, (real(11, 4, 6), real(3, 4, 6), _PLACES, 1, 0), {}, (0,)),
    Sample(own.store.default, (real(4, 6), real(4, 6), truth(4), 0), {}, (0,)),
    Sample(own.store.default, (real(6, 4), real(6, 4), truth(4), 1), {}, (0,)),
    Sample(own.done.default, (real(4, 6),)),
    Sample(own.whole.default, (real(4, 1, 6),)),
    Sample(own.at_positions.default, (real(9, 6), integers(9, 4), 3, 0, 1, 1, 1, 3, -1, 0)),
    Sample(own.at_positions.default, (real(6, 9, 9), integers(9, 4), 4, 0, 1, 1, 2, 3, 3, 7)),
    Sample(own.at_positions.default, (real(12, 9, 6), integers(7, 2), 3, 0, 2, 3, 1, 2, -1, 0)),
    Sample(own.at_positions.default, (real(9, 1, 6), integers(7, 4), 3, 1, 1, 1, 0, 2, -1, 0)),
    Sample(own.at_positions.default, (real(6, 9), integers(7, 4), 3, 0, 1, 1, -1, 1, 2, 5)),
    Sample(own.hide_unseen.default, (real(2, 6, 3, 7), _ALLOWED)),
    Sample(own.hide_unseen.default, (real(12, 3, 7), _OF_ALL)),
    Sample(own.cached_attention.default,
           (real(4, 6, 3, 4), real(4, 6, 7, 4), real(4, 6, 7, 8), _ALLOWED[:1], 3, None)),
    Sample(own.cached_attention.default,
           (real(2, 6, 3, 4), real(2, 6, 7, 4), real(2, 6, 7, 4), _ALLOWED, 3, 0.3)),
    Sample(own.cached_attention.default,
           (real(4, 6, 1, 4), real(4, 6, 7, 4), real(4, 6, 7, 4), real(6, 1, 7), 1, None)),
    Sample(own.cached_attention.default,
           (real(12, 3, 4), real(12, 7, 4), real(12, 7, 8), _OF_ALL, 3, 0.3)),
    Sample(own.cached_attention.default,
           (real(2, 2, 12, 4), real(2, 2, 7, 4), real(2, 2, 7, 8), _ALLOWED, 3, None)),
    Sample(own.last_position.default, (real(4, 6, 5), integers(6, 4), 0, 1)),
    Sample(own.last_position.default, (real(6, 4, 5), integers(6, 4), 1, 0)),
]  # fmt: skip
