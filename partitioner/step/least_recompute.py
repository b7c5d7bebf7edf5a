"""How many blocks of each stage to recompute: as few as make every pipeline rank fit."""

from __future__ import annotations

import numpy as np

from partitioner.schedule.fullest_moments import Array
from partitioner.step.rank_memory import Memory
from partitioner.step.split import Split


def least_recomputed(memory: Memory, room: float) -> tuple[int, ...] | None:
    """The first n blocks of each stage of a split, n least; None where recomputing all of them does not fit.

    A rank takes block after block, each of the stage that it frees most of; how many is bisected, of all ranks at once.
    """
    split = memory.split
    everything = np.array([stage.blocks for stage in split.stages])
    if (memory.rank_peaks(everything) > room).any():
        return None
    steps = _steps(split, memory.own)
    least, most = np.zeros(split.parallelism.mesh["pp"], dtype=int), everything[memory.own].sum(1)
    while (least < most).any():
        middle = (least + most) // 2
        fits = memory.rank_peaks(_counts(memory, steps, middle)) <= room
        least, most = np.where(fits, least, middle + 1), np.where(fits, middle, most)
    return tuple(_counts(memory, steps, least).tolist())


def _counts(memory: Memory, steps: Array, taken: Array) -> Array:
    """By stage, when each rank has taken so many blocks."""
    counts = np.zeros(memory.own.size, dtype=int)
    counts[memory.own] = steps[np.arange(len(taken)), taken]
    return counts


def _steps(split: Split, own: Array) -> Array:
    """(rank, blocks taken, stage of the rank): counts."""
    known: dict[tuple[int, ...], list[list[int]]] = {}
    for row in own:
        key = tuple(id(split.stages[n]) for n in row)
        if key not in known:
            known[key] = _one_by_one([split.stages[n].sizes[split.parallelism.recompute][:, 0] for n in row])
    rows = [known[tuple(id(split.stages[n]) for n in row)] for row in own]
    longest = max(map(len, rows))
    return np.array([row + row[-1:] * (longest - len(row)) for row in rows])


def _one_by_one(kept: list[Array]) -> list[list[int]]:
    """Counts of a rank's stages, of which each keeps so much when 0, 1, 2, ... of its blocks are recomputed."""
    freed = [(-np.diff(sizes)).tolist() for sizes in kept]
    found = [[0] * len(kept)]
    for _ in range(sum(map(len, freed))):
        now = found[-1]
        left = [n for n in range(len(kept)) if now[n] < len(freed[n])]
        best = max(left, key=lambda n: (freed[n][now[n]], -n))
        found.append([count + (n == best) for n, count in enumerate(now)])
    return found
