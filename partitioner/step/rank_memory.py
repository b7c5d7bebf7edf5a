"""Bytes of pipeline ranks at their fullest moments: state, what backward keeps of micro-batches in flight, what comes
and goes.

    moments of the schedule     x     peaks of its stages' forward and backward     ->     the fullest, exact
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import fx

from partitioner.cost.state_bytes import State, held_state, state
from partitioner.cost.unit_cost import Priced
from partitioner.schedule.fullest_moments import Array, moments
from partitioner.step.split import Held, Split, StageSums


class Part(NamedTuple):
    """Bytes of one stage at its rank's fullest moment: state, kept activations, and what comes and goes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    transient: float


class Memory:
    """One split's ranks p, moments m and stages s; each rank holds the samples of a step.

    Gradients lie in buckets for the whole run where ranks sum them, or in buffers of the training program; else each
    step's first backward brings them.
    """

    def __init__(self, priced: Priced, split: Split) -> None:
        self.split, self.parallelism, self.software = split, split.parallelism, priced.cluster.software
        self.samples = priced.input_bytes * self.parallelism.micro_batches
        own = self.parallelism
        self.moments = moments(own.schedule, own.mesh["pp"], own.virtual, own.micro_batches)
        self.own = self.moments.stages[self.moments.starts]
        distinct = {id(stage): n for n, stage in enumerate(split.stages)}
        alike = np.array([distinct[id(stage)] for stage in split.stages])
        held = {n: self._held(split.stages[n]) for n in distinct.values()}
        states, self.grown, gathered = (np.array(rows) for rows in zip(*(held[n] for n in alike), strict=True))
        self.state = states - self._twice()
        self.fixed = self.state.sum(1) - self.grown
        tables = [split.stages[n].sizes[self.parallelism.recompute] for n in distinct.values()]
        starts = dict(zip(distinct.values(), np.cumsum([0, *map(len, tables)]), strict=False))
        self._table, self._starts = np.concatenate(tables), np.array([starts[n] for n in alike])
        received = np.array([0.0, *(stage.input_bytes for stage in split.stages[1:])])
        sent = np.array([*(stage.output_bytes for stage in split.stages[:-1]), 0.0])
        self.beside = np.maximum(received, sent) + gathered

    def peak(self, counts: Sequence[int]) -> float:
        """Of the fullest rank; ``counts`` (s): how many blocks are recomputed in the split's way."""
        return float(self.rank_peaks(np.array(counts)).max())

    def rank_peaks(self, counts: Array) -> Array:
        """(p): of all moments, and of the update, when all gradients lie there and no micro-batch is in flight."""
        _, _, above = self._filled(counts)
        most = np.maximum.reduceat(above, self.moments.starts)
        return self.fixed[self.own].sum(1) + np.maximum(most, self.grown[self.own].sum(1)) + self.samples

    def acting(self, counts: Sequence[int]) -> tuple[Array, Array]:
        """What each stage keeps of a micro-batch (s), and what its actions hold beside (s, action)."""
        kept, actions, _ = self._filled(np.array(counts))
        return kept, actions

    def parts(self, counts: Sequence[int]) -> tuple[Part, ...]:
        """(s): where its rank is fullest."""
        moments, (kept, actions, above) = self.moments, self._filled(np.array(counts))
        found = [Part(weights, gradients, optimizer, 0.0, 0.0) for weights, gradients, optimizer in self.state]
        for own, start, end in zip(self.own, moments.starts, [*moments.starts[1:], len(above)], strict=True):
            m = start + int(above[start:end].argmax())
            if above[m] >= self.grown[own].sum():
                for n, flying, there in zip(own, moments.in_flight[m], moments.grown[m], strict=True):
                    acting = float(actions[n, moments.action[m]]) if n == moments.acting[m] else 0.0
                    gradients = found[n].gradients - self.grown[n] * (not there)
                    found[n] = Part(found[n].weights, gradients, found[n].optimizer, kept[n] * flying, acting)
            found[own[0]] = found[own[0]]._replace(activations=found[own[0]].activations + self.samples)
        return tuple(Part(*map(float, part)) for part in found)

    def _filled(self, counts: Array) -> tuple[Array, Array, Array]:
        """What each stage keeps of a micro-batch (s), what each of its actions holds beside that and beside state
        (s, action): its own, weights gathered, the next action's receive; and bytes above what is fixed (m)."""
        moments, (kept, forward, backward, first, alone) = self.moments, self._table[self._starts + counts].T
        first = np.where(self.grown > 0, first if self.parallelism.mesh["pp"] > 1 else alone, backward)
        actions = np.stack((forward, backward - kept, first - kept), 1) + self.beside[:, None]
        inside = (moments.in_flight * kept[moments.stages]).sum(1) + (moments.grown * self.grown[moments.stages]).sum(1)
        return kept, actions, inside + actions[moments.acting, moments.action]

    def _twice(self) -> Array:
        """(s, kind): state of parameters that an earlier stage of the same rank holds too."""
        split, found = self.split, np.zeros((len(self.split.stages), len(State._fields)))
        for own in self.own if any(stage.tied for stage in split.stages) else ():
            seen = set[fx.Node]()
            for n in own:
                rows = [row for node, row in split.stages[n].tied.items() if node in seen]
                found[n] = self._state(rows)
                seen |= split.stages[n].tied.keys()
        return found

    def _held(self, stage: StageSums) -> tuple[Array, float, float]:
        """Bytes of a stage's state by kind, those of gradients that each step makes anew, and of ZeRO's gathered
        weights."""
        software = self.software
        gathered = 2.0 * stage.largest * stage.held[0][1] if self.parallelism.zero == 3 and stage.held else 0.0
        own = software.gradient_bytes is None and self.parallelism.replicas == 1
        grown = sum(n * state(s, software).gradient for n, s, is_partial in stage.held if own and not is_partial)
        if own and self.parallelism.mesh["pp"] > 1:
            grown -= sum(n * state(s, software).gradient for n, s, is_partial in stage.tied.values() if not is_partial)
        return self._state(stage.held), grown, gathered

    def _state(self, rows: Iterable[Held]) -> Array:
        zero, shards = self.parallelism.zero, self.split.shards
        found = [held_state(n, size, self.software, zero, shards) for n, size, _ in rows]
        return np.array(found).sum(0) if found else np.zeros(len(State._fields))
