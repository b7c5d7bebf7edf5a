"""A value turned so that its samples come first, and back.

(s, b h, d)   repeat 1, granule h    -->    (b, s, h, d)        each sample's elements together, in their order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from partitioner.sharding.layout import Shard

aten = torch.ops.aten
Make = Callable[..., Any]


def of_one_sample(shape: Sequence[int], place: Shard) -> list[int]:
    """The shape that each sample's part of a value has."""
    before, (repeat, _, granule), after = _parts(shape, place)
    return [*before, *(n for n in (repeat, granule) if n > 1), *after]


def samples_first(make: Make, x: Any, shape: Sequence[int], place: Shard) -> Any:
    """A value of ``shape`` as (samples, one sample's shape)."""
    apart, at = _apart(shape, place)
    x = x if apart == list(shape) else make(aten.reshape.default, x, apart)
    return make(aten.permute.default, x, [at, *(d for d in range(len(apart)) if d != at)]) if at else x


def samples_back(make: Make, x: Any, shape: Sequence[int], place: Shard) -> Any:
    """The value of ``shape`` that ``samples_first`` made ``x`` of."""
    apart, at = _apart(shape, place)
    if at:
        x = make(aten.permute.default, x, [*range(1, at + 1), 0, *range(at + 1, len(apart))])
    return x if apart == list(shape) else make(aten.reshape.default, x, list(shape))


def _apart(shape: Sequence[int], place: Shard) -> tuple[list[int], int]:
    """The shape with the samples in a dimension of their own, and which."""
    before, (repeat, samples, granule), after = _parts(shape, place)
    lead = [*before, *([repeat] if repeat > 1 else [])]
    return [*lead, samples, *([granule] if granule > 1 else []), *after], len(lead)


def _parts(shape: Sequence[int], place: Shard) -> tuple[list[int], tuple[int, int, int], list[int]]:
    (segment,) = place.segments
    samples = shape[place.dim] // (segment.repeat * segment.granule)
    return [*shape[: place.dim]], (segment.repeat, samples, segment.granule), [*shape[place.dim + 1 :]]
