"""How many blocks of each stage to recompute: as few as make every pipeline rank fit."""

from __future__ import annotations

import bisect
from collections.abc import Callable

from partitioner.cost import Priced
from partitioner.memory import Memory
from partitioner.split import Split


def least_recomputed(priced: Priced, split: Split, room: float) -> tuple[int, ...] | None:
    """The first n blocks of each stage of ``split``, n least; None where recomputing all of them does not fit.

    On a pipeline rank with several stages, a block of the one that frees most is added, one at a time.
    """
    counts, memory = [0] * len(split.stages), Memory(priced, split)
    known: dict[object, list[int] | None] = {}
    for p in range(split.pp):
        own = split.own(p)
        key = tuple((id(split.stages[n]), memory.edges(n)) for n in own), id(memory.moments[p])
        if key not in known:
            known[key] = _least(memory, p, room)
        found = known[key]
        if found is None:
            return None
        for n, count in zip(own, found, strict=True):
            counts[n] = count
    return tuple(counts)


def _least(memory: Memory, p: int, room: float) -> list[int] | None:
    split, own = memory.split, memory.split.own(p)
    everything = [s.blocks for s in split.stages]
    if memory.rank_peak(p, everything) > room:
        return None
    if len(own) == 1:
        return [_fewest(lambda count: memory.rank_peak(p, _at(everything, own[0], count)) <= room, everything[own[0]])]
    counts = [0] * len(split.stages)
    while memory.rank_peak(p, counts) > room:
        freed = {n: _freed(split, n, counts[n]) for n in own if counts[n] < everything[n]}
        counts[max(freed, key=lambda n: (freed[n], -n))] += 1
    return [counts[n] for n in own]


def _at(counts: list[int], stage: int, count: int) -> list[int]:
    return [*counts[:stage], count, *counts[stage + 1 :]]


def _fewest(fits: Callable[[int], bool], most: int) -> int:
    """The first count that fits, of those of which ``most`` does and more fit better."""
    return bisect.bisect_left(range(most), True, key=fits)


def _freed(split: Split, stage: int, count: int) -> float:
    kept = split.stages[stage].kept[split.recompute]
    return kept[count].bytes - kept[count + 1].bytes
