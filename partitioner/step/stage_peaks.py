"""What a stage keeps of a micro-batch, and how full it is at most, by how many of its first blocks are recomputed.

a unit                its peaks, on top of what earlier ones keep, beside what backward of later ones has left
units up to the n-th  recomputed                               the fullest of them
units behind it       as they are                              the fullest of them, less what is kept no more
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import fx

from partitioner.cost.backward_peak import Peaks, StagePeaks
from partitioner.cost.kept_activations import Placed
from partitioner.cost.state_bytes import is_cast, state
from partitioner.cost.unit_cost import Priced, Stash
from partitioner.graph.graph import Unit
from partitioner.plan.recompute_ways import NO_RECOMPUTE, WAYS
from partitioner.schedule.fullest_moments import Array
from partitioner.step.sharded_peaks import UnitState
from partitioner.step.stashes import Again, Stashes


class StageWalk:
    """One micro-batch through a stage's units and back."""

    def __init__(self, priced: Priced, units: Sequence[Unit]) -> None:
        self.priced, self.units = priced, units
        self.boundaries, self.alive = _Boundaries(priced, units), np.array(_gradients_alive(priced, units))
        self.state, self.blocks = UnitState.of(priced, units), np.array([u.is_block for u in units])
        self.ways = {NO_RECOMPUTE: self._stacked(*_kept(priced, units, NO_RECOMPUTE))}

    @property
    def scattered_last(self) -> float:
        """Bytes of the buffer that ZeRO leaves behind a backward."""
        return self.state.scattered_last

    def stash(self, ways: Sequence[str], shards: int = 1) -> dict[str, Stashes]:
        """By way of recomputing, "none" and those asked for, when the first 0, 1, 2, ... blocks are recomputed so.

        ``shards``: ranks that divide state, where some do.
        """
        plain = self.ways[NO_RECOMPUTE]
        behind = np.maximum.accumulate(plain.peaks(self.state, shards)[::-1])[::-1]
        none = np.array((plain.size.sum() + self.boundaries.received, *behind[0]))
        found = {NO_RECOMPUTE: Stashes(none[None, :], [Again()])}
        for way in ways:
            if way not in self.ways:
                self.ways[way] = self._stacked(*_kept(self.priced, self.units, way))
            own = self.ways[way]
            freed = np.cumsum(plain.size - own.size)
            after = np.vstack((behind[1:], np.full((1, len(StagePeaks._fields)), -np.inf))) - freed[:, None]
            peaks = np.maximum(np.maximum.accumulate(own.peaks(self.state, shards)), after)
            sizes = np.vstack((none, np.column_stack((none[0] - freed, peaks))[self.blocks]))
            found[way] = Stashes(sizes, own.again)
        return found

    def _stacked(self, rows: Sequence[Stash], keeping: frozenset[int]) -> _Stacked:
        """Units one after the other.

        What is handed on lies there from its making, and all through backward.
        """
        boundaries, alive, (kept, forward, backward) = self.boundaries, self.alive, self.boundaries.shared(keeping)
        size = np.array([row.bytes for row in rows]) - kept + boundaries.sent
        before = boundaries.received + np.cumsum(size) - size
        behind = before + boundaries.sent[::-1].cumsum()[::-1] - backward
        on_top = np.array([before - forward, *(behind for _ in Peaks._fields[1:])]).T
        waiting = np.insert(alive[:-1, 1], 0, 0.0)  # gradients of values, once a unit's backward has run
        seconds = np.cumsum([(k.compute, k.communication, k.weight_gradient_seconds) for k in rows], axis=0)
        return _Stacked(
            again=[Again(), *itertools.starmap(Again, seconds[self.blocks].tolist())], size=size,
            plain=np.array([row.peaks for row in rows]) + alive + on_top,
            alone=np.array([row.peaks.alone for row in rows]) + alive[:, 1] + behind, start=before,
            between=before + size + alive[:, 1], after=before + waiting,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Stacked:
    """By unit: bytes kept, peaks on top of what lies there, and what ``UnitState.peaks`` asks for; ``again``: by how
    many blocks are recomputed."""

    again: Sequence[Again]
    size: Array
    plain: Array
    alone: Array
    start: Array
    between: Array
    after: Array

    def peaks(self, state: UnitState, shards: int) -> Array:
        """(units, fields of StagePeaks)."""
        forward, backward = self.plain[:, 0], self.plain[:, 1]
        return np.hstack(
            (self.plain, state.peaks(forward, backward, self.alone, self.start, self.between, self.after, shards))
        )


def kept_bytes(priced: Priced, units: Sequence[Unit], way: str) -> Array:
    """What each unit of a stage keeps of a micro-batch, every block recomputed in a way ("none": none of them)."""
    boundaries, (rows, keeping) = _Boundaries(priced, units), _kept(priced, units, way)
    kept, _, _ = boundaries.shared(keeping)
    return np.array([row.bytes for row in rows]) - kept + boundaries.sent


def _kept(priced: Priced, units: Sequence[Unit], way: str) -> tuple[list[Stash], frozenset[int]]:
    """Of units whose blocks are all recomputed in a way, and the numbers of those that keep whatever enters them."""
    costs = [(priced.unit(unit), way if unit.is_block else NO_RECOMPUTE) for unit in units]
    rows, (last, own) = [cost.stash[own] for cost, own in costs], costs[-1]
    rows[-1] = replace(rows[-1], peaks=last.last[own])
    is_whole = way in WAYS and WAYS[way].whole
    return rows, frozenset(n for n, unit in enumerate(units) if unit.is_block and is_whole)


class _Boundaries:
    """What a stage receives and hands on, which it holds from forward to backward whether or not a unit keeps it."""

    def __init__(self, priced: Priced, units: Sequence[Unit]) -> None:
        start, end = priced.place[units[0]], priced.place[units[-1]] + 1
        self.priced, self.units = priced, units
        self.boundary_values: set[Placed] = set()
        self.received, self.sent = 0.0, np.zeros(len(units))
        for key, (made, last, size) in priced.spans.items():
            if made < start <= last:
                self.received += size
                self.boundary_values.add(key)
            elif start <= made < end <= last:
                self.sent[made - start] += size
                self.boundary_values.add(key)

    def shared(self, keeping: frozenset[int]) -> tuple[Array, Array, Array]:
        """Of what enters each unit and lies in the stage without it, held at an end or kept by an earlier unit (an
        encoder's result, read by all blocks of the decoder): bytes that count among what the unit keeps, in its
        forward's peak and in its backward's.

        Units of the numbers ``keeping`` keep whatever enters them.
        """
        seen, found = set(self.boundary_values), list[tuple[float, float, float]]()
        for n, unit in enumerate(self.units):
            kept = forward = backward = 0.0
            for node, port in zip(self.priced.folded.entering[unit], self.priced.unit(unit).ports, strict=True):
                key, size = (node, port.layout), port.bytes if n in keeping else port.kept
                if key in seen:
                    kept += size
                    forward += port.bytes if key in self.boundary_values else size
                    backward += port.kept
                else:
                    backward -= size - port.kept
                if size:
                    seen.add(key)
            found.append((kept, forward, backward))
        return tuple(np.array(found).T)


def _gradients_alive(priced: Priced, units: Sequence[Unit]) -> list[Peaks]:
    """What lies beside each unit's own in its backward: gradients of the parameters of the units behind it, where they
    stay; those of tied parameters, which wait for the first unit's part; those of values that units behind it read and
    earlier ones have made; and the gradients that the stage was sent, of which its last unit counts its own itself."""
    folded, tied = priced.folded, priced.setting.tied
    shared = {n: unit for unit in reversed(units) for n in priced.held[unit] if tied and folded.own(n) in tied}
    pending, waiting = dict[Placed, float](), dict[fx.Node, float]()
    cut = priced.place[units[-1]] + 1
    sent = priced.returned[cut]
    passed = sent - priced.returned_to_maker[cut]
    found, stay, alone = list[Peaks](), 0.0, 0.0
    for unit in reversed(units):
        pending = {key: size for key, size in pending.items() if key[0].name not in unit.nodes}
        back = sum(pending.values()) + sum(waiting.values()) + (sent if found else passed)
        found.append(Peaks(0.0, back, back + stay, back + alone))
        for node, (elements, dtype, partial) in priced.held[unit].items():
            in_bucket = partial or is_cast(dtype, priced.precision)
            made = 0.0 if in_bucket else elements * state(dtype, priced.precision).gradient
            if node not in shared:
                stay += made
                alone += made
            elif shared[node] is unit:
                waiting.pop(node, None)
                alone += made
            else:
                waiting[node] = elements * dtype.itemsize
        for node, port in zip(folded.entering[unit], priced.unit(unit).ports, strict=True):
            if folded.own(folded.node[node]) in folded.differentiable:
                pending[node, port.layout] = port.bytes
    return found[::-1]
