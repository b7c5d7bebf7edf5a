"""How many blocks of each stage to recompute: as few as make every pipeline rank fit."""

from __future__ import annotations

import bisect

import numpy as np

from partitioner.schedule.fullest_moments import Array
from partitioner.sharding.mesh_axes import PP
from partitioner.step.rank_memory import RankMemory
from partitioner.step.split import Split


def least_recomputed(memory: RankMemory, room: float) -> tuple[int, ...] | None:
    """The first n blocks of each stage of a split, n least; None where recomputing all of them does not fit.

    A rank takes block after block, each of the stage that it frees most of; how many is bisected, of all ranks at once.
    """
    split = memory.split
    everything = np.array([stage.blocks for stage in split.stages])
    if (memory.rank_peak_bytes(everything) > room).any():
        return None
    steps = _counts_by_rank(split, memory.rank_stages)
    least, most = np.zeros(split.parallelism.mesh[PP], dtype=int), everything[memory.rank_stages].sum(1)
    while (least < most).any():
        middle = (least + most) // 2
        fits = memory.rank_peak_bytes(_counts(memory, steps, middle)) <= room
        least, most = np.where(fits, least, middle + 1), np.where(fits, middle, most)
    return tuple(_counts(memory, steps, least).tolist())


def least_alike(memory: RankMemory, room: float) -> tuple[int, ...] | None:
    """As many blocks of each stage, or all of one that has fewer, as few as that; None where all do not fit."""
    stages = memory.split.stages
    most = max(stage.blocks for stage in stages)
    rows = [tuple(min(n, stage.blocks) for stage in stages) for n in range(most + 1)]
    n = bisect.bisect_left(rows, True, key=lambda counts: memory.peak_bytes(counts) <= room)
    return rows[n] if n < len(rows) else None


def _counts(memory: RankMemory, steps: Array, taken: Array) -> Array:
    """By stage, when each rank has taken so many blocks."""
    counts = np.zeros(memory.rank_stages.size, dtype=int)
    counts[memory.rank_stages] = steps[np.arange(len(taken)), taken]
    return counts


def _counts_by_rank(split: Split, rank_stages: Array) -> Array:
    """(rank, blocks taken, stage of the rank): counts."""
    known: dict[tuple[int, ...], list[list[int]]] = {}
    for row in rank_stages:
        key = tuple(id(split.stages[n]) for n in row)
        if key not in known:
            known[key] = _block_by_block([split.stages[n].stash[split.parallelism.recompute].sizes[:, 0] for n in row])
    rows = [known[tuple(id(split.stages[n]) for n in row)] for row in rank_stages]
    longest = max(map(len, rows))
    return np.array([row + row[-1:] * (longest - len(row)) for row in rows])


def _block_by_block(stashes: list[Array]) -> list[list[int]]:
    """Counts of a rank's stages, whose stashes are such when 0, 1, 2, ... of its blocks are recomputed."""
    if len(stashes) == 1:
        return [[n] for n in range(len(stashes[0]))]
    freed = [(-np.diff(sizes)).tolist() for sizes in stashes]
    found = [[0] * len(stashes)]
    for _ in range(sum(map(len, freed))):
        now = found[-1]
        left = [n for n in range(len(stashes)) if now[n] < len(freed[n])]
        best = max(left, key=lambda n: (freed[n][now[n]], -n))
        found.append([count + (n == best) for n, count in enumerate(now)])
    return found
