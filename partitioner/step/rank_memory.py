"""Bytes of pipeline ranks at their fullest moments: state, what backward keeps of micro-batches in flight, what comes
and goes.

    moments of the schedule     x     peaks of its stages' forward and backward     ->     the fullest, exact
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import fx

from partitioner.cost.backward_peak import StagePeaks
from partitioner.cost.state_bytes import State, held_state, is_cast, state
from partitioner.cost.unit_cost import Held, Priced
from partitioner.schedule.fullest_moments import IN_FORWARD, Array, moments
from partitioner.sharding.mesh_axes import PP
from partitioner.step.split import Split, StageSums

_GATHERS = 3  # the stage of ZeRO that gathers weights anew, and keeps nothing that comes of them


class StageBytes(NamedTuple):
    """Bytes of one stage at its rank's fullest moment: state, kept activations, and what comes and goes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    transient: float


class RankMemory:
    """One split's ranks p, moments m and stages s; each rank holds the samples of a step.

    Gradients lie in buckets for the whole run where ranks sum them, or where they are added up in another type than
    the parameter's; else each step's first backward brings them, as it does the parts of them that ZeRO 2 and 3 keep.
    """

    def __init__(self, priced: Priced, split: Split) -> None:
        self.split, self.parallelism, self.precision = split, split.parallelism, priced.precision
        self.sample_bytes = priced.input_bytes * self.parallelism.micro_batches
        own = self.parallelism
        self.moments = moments(own.schedule, own.mesh[PP], own.virtual, own.micro_batches)
        self.rank_stages = self.moments.stages[self.moments.starts]
        distinct = {id(stage): n for n, stage in enumerate(split.stages)}
        alike = np.array([distinct[id(stage)] for stage in split.stages])
        held = {n: self._stage_state(split.stages[n]) for n in distinct.values()}
        states, self.new_gradients = (np.array(rows) for rows in zip(*(held[n] for n in alike), strict=True))
        self.state = states - self._shared_state()
        self.lasting = self.state.sum(1) - self.new_gradients
        self._distinct = tuple(distinct.values())
        self._rows = np.array([self._distinct.index(n) for n in alike])
        self._table, self._starts = self._stashes(split)
        received = np.array([0.0, *(stage.input_bytes for stage in split.stages[1:])])
        sent = np.array([*(stage.output_bytes for stage in split.stages[:-1]), 0.0])
        self.transit = np.maximum(received, sent)
        self._lasting, self._grown = (row[self.rank_stages].sum(1) for row in (self.lasting, self.new_gradients))
        self._gradients, self._left = self._beside_actions()

    def recomputing(self, way: str) -> RankMemory:
        """Of the same split, but for the way in which blocks are recomputed."""
        found = copy.copy(self)
        found.split = self.split.recomputing(way, self.split.recomputed)
        found.parallelism = found.split.parallelism
        found._table, found._starts = self._stashes(found.split)
        return found

    def peak_bytes(self, counts: Sequence[int]) -> float:
        """Of the fullest rank; ``counts`` (s): how many blocks are recomputed in the split's way."""
        return float(self.rank_peak_bytes(np.array(counts)).max())

    def rank_peak_bytes(self, counts: Array) -> Array:
        """(p): of all moments, and of the update, when all gradients lie there and no micro-batch is in flight."""
        *_, above = self._live_bytes(counts)
        most = np.maximum(np.maximum.reduceat(above, self.moments.starts), self._last(counts)[self.rank_stages].max(1))
        return self._lasting + np.maximum(most, self._grown) + self.sample_bytes

    def action_bytes(self, counts: Sequence[int]) -> tuple[Array, Array]:
        """What each stage keeps of a micro-batch (s), and what its actions hold beside (s, action)."""
        kept, actions, _ = self._live_bytes(np.array(counts))
        return kept, actions

    def fullest(self, counts: Sequence[int]) -> tuple[StageBytes, ...]:
        """(s): where its rank is fullest."""
        moments, (kept, actions, above) = self.moments, self._live_bytes(np.array(counts))
        last = self._last(np.array(counts))
        found = [StageBytes(weights, gradients, optimizer, 0.0, 0.0) for weights, gradients, optimizer in self.state]
        for own, start, end in zip(self.rank_stages, moments.starts, [*moments.starts[1:], len(above)], strict=True):
            m, ending = start + int(above[start:end].argmax()), last[own].argmax()
            if last[own].max() > above[m]:
                n = own[ending]
                found[n] = found[n]._replace(activations=kept[n], transient=last[n] - kept[n])
            elif above[m] >= self.new_gradients[own].sum():
                rows = zip(own, moments.in_flight[m], moments.has_gradients[m], self._left[m], strict=True)
                for n, flying, there, buffer in rows:
                    acting = float(actions[n, moments.action[m]]) if n == moments.acting_stage[m] else 0.0
                    gradients = found[n].gradients - self.new_gradients[n] * (not there)
                    weights, _, optimizer, *_ = found[n]
                    found[n] = StageBytes(weights, gradients, optimizer, kept[n] * flying, acting + buffer)
            found[own[0]] = found[own[0]]._replace(activations=found[own[0]].activations + self.sample_bytes)
        return tuple(StageBytes(*map(float, part)) for part in found)

    def _stashes(self, split: Split) -> tuple[Array, Array]:
        """(bytes, *peaks) of all distinct stages by blocks recomputed, and (s) where each stage's begin."""
        tables = [split.stages[n].stash[split.parallelism.recompute].sizes for n in self._distinct]
        return np.concatenate(tables), np.cumsum([0, *map(len, tables[:-1])])[self._rows]

    @property
    def is_sharded(self) -> bool:
        """Whether several ranks divide state."""
        return self.parallelism.zero > 0 and self.parallelism.shards > 1

    def _last(self, counts: Array) -> Array:
        """(s): what the last backward of a step holds beside state, where ZeRO scatters gradients then."""
        if not self.is_sharded or self.parallelism.zero != 1:
            return np.zeros(len(counts))
        return self._table[self._starts + counts][:, 1 + StagePeaks._fields.index("last_1")] + self.transit

    def _live_bytes(self, counts: Array) -> tuple[Array, Array, Array]:
        """What each stage keeps of a micro-batch (s), what each of its actions holds beside that and beside state
        (s, action): its own, weights gathered, the next action's receive; and bytes above what is fixed (m)."""
        moments, zero, table = self.moments, self.parallelism.zero, self._table[self._starts + counts].T
        kept, peaks = table[0], StagePeaks(*table[1:])
        forward, backward = peaks.forward, peaks.backward
        backward = np.maximum(backward, getattr(peaks, f"backward_{zero}")) if self.is_sharded else backward
        again = backward
        if self.is_sharded and zero > 1:
            forward = np.maximum(forward, getattr(peaks, f"forward_{zero}"))
            again = np.maximum(peaks.backward, getattr(peaks, f"first_{zero}"))
            many = self.parallelism.micro_batches
            if zero == 2 and many <= 2:  # there is no backward between the first and the last, or no other
                backward = np.maximum(peaks.backward, peaks.last_2)
                again = np.maximum(peaks.backward, peaks.only_2) if many == 1 else again
        else:
            grown = peaks.first if self.parallelism.mesh[PP] > 1 else peaks.alone
            again = np.where(self.new_gradients > 0, grown, again)
        actions = np.stack((forward, backward - kept, again - kept), 1) + self.transit[:, None]
        inside = (moments.in_flight * kept[moments.stages]).sum(1) + self._gradients + self._left.sum(1)
        return kept, actions, inside + actions[moments.acting_stage, moments.action]

    def _beside_actions(self) -> tuple[Array, Array]:
        """Gradients that lie there (m), and buffers that backwards of other actions left (m, v)."""
        moments = self.moments
        gradients = (moments.has_gradients * self.new_gradients[moments.stages]).sum(1)
        if not self.is_sharded or self.parallelism.zero < 2:
            return gradients, np.zeros(moments.stages.shape)
        buffers = np.array([stage.scattered_bytes for stage in self.split.stages])
        others = (moments.stages != moments.acting_stage[:, None]) | (moments.action == IN_FORWARD)[:, None]
        return gradients, moments.has_gradients * others * buffers[moments.stages]

    def _shared_state(self) -> Array:
        """(s, kind): state of parameters that an earlier stage of the same rank holds too."""
        split, found = self.split, np.zeros((len(self.split.stages), len(State._fields)))
        several = self.parallelism.virtual > 1 and any(stage.tied_parameters for stage in split.stages)
        for own in self.rank_stages if several else ():
            seen = set[fx.Node]()
            for n in own:
                rows = [row for node, row in split.stages[n].tied_parameters.items() if node in seen]
                found[n] = self._state_bytes(rows)
                seen |= split.stages[n].tied_parameters.keys()
        return found

    def _stage_state(self, stage: StageSums) -> tuple[Array, float]:
        """Bytes of a stage's state by kind, and those of gradients that each step makes anew."""
        state, grown = self._parameter_state(stage)
        state[State._fields.index("weight")] += stage.copied_bytes if self.parallelism.zero < _GATHERS else 0.0
        return state, grown

    def _parameter_state(self, stage: StageSums) -> tuple[Array, float]:
        if self.is_sharded and self.parallelism.zero > 1:
            state = self._state_bytes(stage.parameters) + self._frozen(stage)
            return state, State(*state).gradient
        own = self.parallelism.replicas == 1
        grown = self._made_anew(stage.parameters) if own else 0.0
        if own and self.parallelism.mesh[PP] > 1:
            grown -= self._made_anew(stage.tied_parameters.values())
        return self._state_bytes(stage.parameters) + self._frozen(stage), grown

    def _frozen(self, stage: StageSums) -> Array:
        """By kind, of parameters that nothing trains: ZeRO holds parts of them, and 1 and 2 them whole beside."""
        whole = 0.0 if self.is_sharded and self.parallelism.zero == 3 else stage.frozen_bytes
        part = stage.frozen_bytes / self.parallelism.shards if self.is_sharded else 0.0
        return np.array(State(whole + part, 0.0, 0.0))

    def _made_anew(self, rows: Iterable[Held]) -> float:
        """Bytes of gradients that lie in no bucket, where ranks hold no replicas."""
        found = (row for row in rows if not row.partial and not is_cast(row.dtype, self.precision))
        return sum(row.elements * state(row.dtype, self.precision).gradient for row in found)

    def _state_bytes(self, rows: Iterable[Held]) -> Array:
        zero, shards = self.parallelism.zero, self.parallelism.shards
        found = [held_state(row.elements, row.dtype, self.precision, zero, shards) for row in rows]
        return np.array(found).sum(0) if found else np.zeros(len(State._fields))
