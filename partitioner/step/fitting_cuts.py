"""Where to cut a pipeline whose evenest stages do not fit: a stage that holds many micro-batches, or much state, gets
fewer units, so that every stage fits and the slowest, recomputing as few of its first blocks as it must, is fastest.

    1f1b, 4 stages      evenest    8  8  8  8     the first recomputes 5 blocks of 8, and takes 5 forwards longer
                        fitting    7  8  8  9     it recomputes 3 of 7
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from partitioner.cost.state_bytes import state_bytes
from partitioner.cost.unit_cost import Priced
from partitioner.graph.graph import Unit
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.schedule.fullest_moments import Array
from partitioner.step.rank_memory import RankMemory
from partitioner.step.split import Split
from partitioner.step.stage_peaks import kept_bytes

HALVINGS = 20  # of the range in which the slowest stage's seconds are looked for


class FittingCuts:
    """Cuts of a priced graph's units into the stages of schedules that have one a rank.

    All arrays are sums over the units before each; units a to b have what stands at b less what stands at a.
    """

    def __init__(self, priced: Priced) -> None:
        self.priced, self.units = priced, priced.folded.graph.units
        self.received = np.array(priced.crossing)
        self._kept: dict[str, Array] = {}

    def cut(self, plain: Split, way: str, slowest: float) -> tuple[tuple[Unit, ...], ...]:
        """() where none of less than ``slowest`` seconds a micro-batch fits.

        ``plain``: the step as it is cut now, nothing recomputed; its parallelism is kept. ``way``: of recomputing, or
        "none". What comes and goes beside state and stashes is taken to be what it is in ``plain``, and a parameter
        of two units of a stage to be held twice: what is found is for ``RankMemory`` to weigh exactly.
        """
        rooms, again = self._rooms(plain, way), self._again(way)
        least, most = self.seconds[-1] / len(plain.units), min(slowest, float(self.seconds[-1] + again[-1]))
        found = self._ends(rooms, again, most)
        for _ in range(HALVINGS if found else 0):
            middle = (least + most) / 2
            if ends := self._ends(rooms, again, middle):
                found, most = ends, middle
            else:
                least = middle
        return tuple(self.units[a:b] for a, b in zip([0, *found], found, strict=False))

    @cached_property
    def seconds(self) -> Array:
        """Of one micro-batch, nothing recomputed."""
        return _sums(self.priced.unit(u).seconds.total for u in self.units)

    @cached_property
    def blocks(self) -> Array:
        """How many there are."""
        return _sums(int(u.is_block) for u in self.units)

    @cached_property
    def elements(self) -> dict[torch.dtype, Array]:
        """Of parameters, by the type in which they compute."""
        rows = [self.priced.held[unit].values() for unit in self.units]
        kinds = dict.fromkeys(held.dtype for row in rows for held in row)
        return {kind: _sums(sum(h.elements for h in row if h.dtype == kind) for row in rows) for kind in kinds}

    def kept(self, way: str) -> Array:
        """Bytes of a micro-batch, all blocks recomputed in a way."""
        if way not in self._kept:
            self._kept[way] = _sums(kept_bytes(self.priced, self.units, way))
        return self._kept[way]

    def _again(self, way: str) -> Array:
        """Seconds of recomputing all blocks."""
        rows = [self.priced.unit(u).stash[way] if u.is_block and way != NO_RECOMPUTE else None for u in self.units]
        return _sums(0.0 if row is None else row.compute + row.communication for row in rows)

    def _rooms(self, plain: Split, way: str) -> _Rooms:
        """What a stage may keep is the room, less what a rank of ``plain`` holds beside state and stashes."""
        memory, own = RankMemory(self.priced, plain.recomputing(way, plain.recomputed)), plain.parallelism
        precision, shards, ranks = self.priced.precision, own.shards, memory.rank_stages[:, 0]
        state = 0.0 * self.blocks
        for dtype, elements in self.elements.items():
            state += elements * state_bytes(1.0, dtype, precision, own.zero, shards)
        in_flight, beside = np.zeros(len(ranks)), np.full(len(ranks), -np.inf)
        in_flight[ranks] = np.maximum.reduceat(memory.moments.in_flight[:, 0], memory.moments.starts)
        ends = np.cumsum([len(units) for units in plain.units])
        starts = np.array([0, *ends[:-1]])
        blocks = self.blocks[ends] - self.blocks[starts]
        for kept, recomputed in {way: blocks, NO_RECOMPUTE: 0 * blocks}.items():
            stash = self.kept(kept)[ends] - self.kept(kept)[starts] + self.received[starts]
            held = state[ends] - state[starts] + in_flight * stash
            beside[ranks] = np.maximum(beside[ranks], memory.rank_peak_bytes(recomputed) - held[ranks])
        room = self.priced.cluster.device.room - beside
        return _Rooms(state, room, in_flight, self.kept(NO_RECOMPUTE), self.kept(way))

    def _ends(self, rooms: _Rooms, again: Array, slowest: float) -> list[int]:
        """Where each stage ends, as late as it may; [] where the last can't reach the end."""
        found, start, stages = list[int](), 0, len(rooms.in_flight)
        for stage in range(stages):
            end = np.arange(start + 1, len(self.seconds))
            until = rooms.until(stage, start, end, float(self.received[start]))
            run_again = again[np.minimum(until, end)] - again[start]
            fits = (until <= end) & (self.seconds[end] - self.seconds[start] + run_again <= slowest)
            fits &= (self.blocks[end] > self.blocks[start]) & (self.blocks[-1] - self.blocks[end] >= stages - stage - 1)
            reached = np.flatnonzero(fits)
            if not reached.size:
                return []
            start += int(reached[-1]) + 1
            found.append(start)
        return found if start == len(self.seconds) - 1 else []


@dataclass(frozen=True)
class _Rooms:
    """By stage: bytes for state and stashes, and how many micro-batches keep one; of units: state, and what they keep
    as they are, and recomputed."""

    state: Array
    room: Array
    in_flight: Array
    kept: Array
    least_kept: Array

    def until(self, stage: int, start: int, end: Array, received: float) -> Array:
        """Up to which unit a stage from ``start`` to each end must recompute its blocks; beyond the end where all are
        not enough."""
        free = (self.room[stage] - self.state[end] + self.state[start]) / self.in_flight[stage] - received
        needed = self.kept[end] - self.least_kept[start] - free
        return np.maximum(np.searchsorted(self.kept - self.least_kept, needed), start)


def _sums(values: Iterable[float]) -> Array:
    return np.cumsum([0, *values])
