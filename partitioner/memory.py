"""Bytes of a pipeline rank at its fullest moment: state, what backward keeps of micro-batches in flight, what comes
and goes.

    moments of the schedule     x     peaks of its stages' forward and backward     ->     the fullest, exact
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from partitioner.cost import Priced
from partitioner.moments import Moment, moments
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
        key = tuple((id(self.split.stages[n]), counts[n], self.edges(n)) for n in own), self.moments[p]
        if key not in self._fullest:
            rows = [self.at(m, own, counts) for m in self.moments[p]]
            rows.append([self.part(n, 0.0, True) for n in own])  # the update
            first, *rest = max(rows, key=lambda parts: sum(map(sum, parts)))
            self._fullest[key] = (first._replace(activations=first.activations + self.samples), *rest)
        return self._fullest[key]

    def edges(self, n: int) -> tuple[bool, bool]:
        """Whether a stage receives and whether it sends."""
        return n > 0, n + 1 < len(self.split.stages)

    def at(self, moment: Moment, own: Sequence[int], counts: Sequence[int]) -> list[Part]:
        """Every stage's part at a moment."""
        found: list[Part] = []
        for n, flying, grown in zip(own, moment.in_flight, moment.grown, strict=True):
            stage = self.split.stages[n]
            kept = stage.kept[self.split.recompute][counts[n]]
            sent = stage.output_bytes if self.edges(n)[1] else 0.0
            found.append(self.part(n, (kept.bytes + sent) * flying, grown))
        n = own[moment.own]
        transient = self.transient(self.split.stages[n], n, moment, counts[n])
        found[moment.own] = found[moment.own]._replace(transient=transient)
        return found

    def part(self, n: int, activations: float, grown: bool) -> Part:
        """A stage that does nothing now."""
        held = self.held(self.split.stages[n])
        return Part(held.fixed + (held.grown if grown else 0.0), activations, 0.0)

    def transient(self, stage: StageSums, n: int, moment: Moment, count: int) -> float:
        """What the action holds beside state and what is kept: its own, weights gathered, the next one's receive."""
        receives, sends = self.edges(n)
        kept = stage.kept[self.split.recompute][count]
        posted = max(stage.input_bytes if receives else 0.0, stage.output_bytes if sends else 0.0)
        held = self.held(stage)
        if moment.kind == "F":
            return kept.peaks.forward + posted + held.gathered
        growing = not moment.grown[moment.own] and held.grown > 0
        first = kept.peaks.first if self.split.pp > 1 else kept.peaks.alone
        peak = first if growing else kept.peaks.backward
        return peak - kept.bytes + posted + held.gathered

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
