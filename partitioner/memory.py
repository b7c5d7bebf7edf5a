"""Bytes of a pipeline rank at its fullest moment: state, what backward keeps of micro-batches in flight, what comes
and goes.

    moments of the schedule     x     peaks of its stages' forward and backward     ->     the fullest, exact
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from partitioner.cost import Priced
from partitioner.moments import Moments, moments
from partitioner.price import state, state_bytes
from partitioner.split import Split, StageSums


class Part(NamedTuple):
    """Bytes of one stage at its rank's fullest moment: state, kept activations, and what comes and goes."""

    state: float
    activations: float
    transient: float


@dataclass(frozen=True)
class _Held:
    """Bytes of a stage's state, those of gradients that each step makes anew, and ZeRO's gathered weights."""

    fixed: float
    grown: float
    gathered: float


@dataclass(frozen=True)
class _Acting:
    """A stage's state, what it keeps of a micro-batch, and what comes and goes by action."""

    held: _Held
    kept: float
    actions: tuple[float, ...]


class Memory:
    """One split's ranks, each of which holds the samples of a step.

    Gradients lie in buckets for the whole run where ranks sum them, or in buffers of the training program; else each
    step's first backward brings them.
    """

    def __init__(self, priced: Priced, split: Split) -> None:
        self.split, self.software = split, priced.cluster.software
        self.samples = priced.input_bytes * split.micro_batches
        self.moments = moments(split.schedule, split.pp, split.virtual, split.micro_batches)
        self._held: dict[int, _Held] = {}
        self._fullest: dict[object, tuple[Part, ...]] = {}

    def peak(self) -> float:
        """Of the fullest rank."""
        return max(self.rank_peak(p, self.split.recomputed) for p in range(self.split.pp))

    def rank_peak(self, p: int, counts: Sequence[int]) -> float:
        """Of one rank; ``counts``: by stage, how many blocks are recomputed."""
        return sum(map(sum, self.fullest(p, counts)))

    def fullest(self, p: int, counts: Sequence[int]) -> tuple[Part, ...]:
        """By the rank's own stages."""
        own = self.split.own(p)
        key = tuple((id(self.split.stages[n]), counts[n], self.edges(n)) for n in own), id(self.moments[p])
        if key not in self._fullest:
            self._fullest[key] = self._find([self.acting(n, counts[n]) for n in own], self.moments[p])
        return self._fullest[key]

    def _find(self, own: list[_Acting], moments: Moments) -> tuple[Part, ...]:
        """Of all moments and the update, when all gradients lie there and no micro-batch is in flight."""
        kept, grown = np.array([s.kept for s in own]), np.array([s.held.grown for s in own])
        actions = np.array([s.actions for s in own])
        inside = (moments.in_flight * kept).sum(1) + (moments.grown * grown).sum(1)
        above = inside + actions[moments.own, moments.action]
        n = int(above.argmax())
        if above[n] < grown.sum():
            found = [Part(s.held.fixed + s.held.grown, 0.0, 0.0) for s in own]
        else:
            rows = zip(own, moments.in_flight[n].tolist(), moments.grown[n].tolist(), strict=True)
            found = [Part(s.held.fixed + s.held.grown * there, s.kept * flying, 0.0) for s, flying, there in rows]
            acting = int(moments.own[n])
            found[acting] = found[acting]._replace(transient=own[acting].actions[int(moments.action[n])])
        found[0] = found[0]._replace(activations=found[0].activations + self.samples)
        return tuple(found)

    def edges(self, n: int) -> tuple[bool, bool]:
        """Whether a stage receives and whether it sends."""
        return n > 0, n + 1 < len(self.split.stages)

    def acting(self, n: int, count: int) -> _Acting:
        """What a stage keeps of a micro-batch, and what each action holds beside state and what is kept: its own,
        weights gathered, the next action's receive."""
        stage, held, (receives, sends) = self.split.stages[n], self.held(self.split.stages[n]), self.edges(n)
        kept = stage.kept[self.split.recompute][count]
        posted = max(stage.input_bytes if receives else 0.0, stage.output_bytes if sends else 0.0)
        first = kept.peaks.first if self.split.pp > 1 else kept.peaks.alone
        backward = kept.peaks.backward - kept.bytes
        actions = (kept.peaks.forward, backward, first - kept.bytes if held.grown > 0 else backward)
        beside = posted + held.gathered
        return _Acting(
            held, kept.bytes + (stage.output_bytes if sends else 0.0), tuple(size + beside for size in actions)
        )

    def held(self, stage: StageSums) -> _Held:
        """A stage's state."""
        if id(stage) not in self._held:
            split, software = self.split, self.software
            everything = sum(state_bytes(n, size, software, split.zero, split.shards) for n, size, _ in stage.held)
            gathered = 2.0 * stage.largest * stage.held[0][1] if split.zero == 3 and stage.held else 0.0
            own = software.gradient_bytes is None and split.replicas == 1
            grown = sum(n * state(s, software).gradient for n, s, is_partial in stage.held if own and not is_partial)
            grown -= stage.tied_bytes if own and split.pp > 1 else 0.0
            self._held[id(stage)] = _Held(everything - grown, grown, gathered)
        return self._held[id(stage)]
