"""How many blocks of each stage to recompute: as few as make every pipeline rank fit."""

from __future__ import annotations

from partitioner.cost import Priced
from partitioner.schedule import most_in_flight
from partitioner.split import Split
from partitioner.step import Walk


def least_recomputed(priced: Priced, split: Split, room: float) -> tuple[int, ...] | None:
    """The first n blocks of each stage of ``split``, n least; None where recomputing all of them does not fit.

    On a pipeline rank with several stages, a block of the one that frees most is added, one at a time.
    """
    in_flight = most_in_flight(split.schedule, split.pp, split.virtual, split.micro_batches)
    counts, walk = [0] * len(split.stages), Walk(priced, split)
    known: dict[object, list[int] | None] = {}
    for p in range(split.pp):
        own = split.own(p)
        key = tuple((id(split.stages[n]), in_flight[n]) for n in own)
        if key not in known:
            known[key] = _least(walk, p, in_flight, room)
        found = known[key]
        if found is None:
            return None
        for n, count in zip(own, found, strict=True):
            counts[n] = count
    return tuple(counts)


def _least(walk: Walk, p: int, in_flight: tuple[int, ...], room: float) -> list[int] | None:
    split, own = walk.split, walk.split.own(p)
    everything = [s.blocks for s in split.stages]
    if walk.rank_bytes(p, in_flight, everything) > room:
        return None
    counts = [0] * len(split.stages)
    while walk.rank_bytes(p, in_flight, counts) > room:
        freed = {n: _freed(split, n, counts[n]) * in_flight[n] for n in own if counts[n] < everything[n]}
        counts[max(freed, key=lambda n: (freed[n], -n))] += 1
    return [counts[n] for n in own]


def _freed(split: Split, stage: int, count: int) -> float:
    kept = split.stages[stage].kept[split.recompute]
    return kept[count].bytes - kept[count + 1].bytes
