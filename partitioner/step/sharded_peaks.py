"""How full a stage's actions are where ZeRO divides state: weights gathered, gradients whole until they are scattered.

    forward of a unit       its weights, and those of the next as they are gathered
    backward of a unit      its weights, those of the one before as they are gathered
    both                    the weights that several units read
    backward too            the buffer from which the last gradients were scattered, of the unit behind, or of the
                            backward before; that lies there between backwards
    behind it               its gradients beside the buffer from which they are scattered
    last backward, ZeRO 2   weights are let go of, a unit's before its gradients are scattered

The ways are those of torch's FSDP2 (runtime/execute/sharded_stages.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from partitioner.cost.state_bytes import is_cast, state
from partitioner.cost.unit_cost import Priced
from partitioner.graph.graph import Unit
from partitioner.schedule.fullest_moments import Array


@dataclass(frozen=True)
class UnitState:
    """Bytes of each unit's own parameters (units): as ops read them; of their gradients, as they are added up; and of
    the last parameter alone, whose gradient FSDP2 lets go last, in both types. ``cast``: whether those are two.
    ``shared``: weights and gradients of what several units read, which are no unit's own. ``scattered_last``: the
    buffer from which a backward scatters at its end."""

    weights: Array
    gradients: Array
    last_weight: Array
    last_gradient: Array
    cast: Array
    shared: tuple[float, float]
    scattered_last: float

    @staticmethod
    def of(priced: Priced, units: Sequence[Unit]) -> UnitState:
        """What several units of the stage read is gathered for all of it."""
        readers = Counter(node for unit in units for node in priced.held[unit]) if priced.setting.tied else {}
        held = {node: row for unit in units for node, row in priced.held[unit].items() if readers.get(node, 1) > 1}
        shared = [_bytes(row.elements, row.dtype, priced) for row in held.values()]
        rows = np.array([_row(priced, unit, frozenset(n for n in priced.held[unit] if readers.get(n, 1) > 1))
                         for unit in units])  # fmt: skip
        whole = sum(weight for weight, _ in shared), sum(gradient for _, gradient in shared)
        last = _scattered_last(priced, units, rows[:, 1].tolist(), held.keys(), whole[1])
        return UnitState(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], rows[:, 4] > 0, whole, last)

    def peaks(
        self, forward: Array, backward: Array, alone: Array, start: Array, between: Array, after: Array, shards: int
    ) -> Array:
        """(units, fields of StagePeaks that ``Peaks`` has not) from each unit's peaks without ZeRO, and what lies there
        at the ``start`` of its forward, ``between`` that and its backward, and ``after`` it; ``alone``: of a backward
        whose gradients of parameters stay. ``shards``: ranks that divide state."""
        weights, gradients = self.weights, self.gradients
        ahead, before = np.append(weights[1:], 0.0), np.insert(weights[:-1], 0, 0.0)
        part = gradients / shards
        let_go = np.cumsum((weights + gradients - part)[::-1])[::-1] - (gradients - part)  # of units behind
        summed = np.where(self.cast, alone, backward)
        last = after + gradients + np.maximum(0.0, part - gradients + self.last_gradient) - let_go
        scattering = after + gradients + np.maximum(weights, self.last_weight + part)
        using, found = np.maximum(forward, start + weights) + weights + ahead + self.shared[0], list[Array]()
        grown = np.append(np.cumsum(part[:0:-1])[::-1], 0.0)  # parts of the gradients of units behind
        kept = np.cumsum(weights[::-1])[::-1] - weights  # of units behind, in backwards but the last
        lasts = list[Array]()
        for behind, there in ((self.scattered_last, 0.0 * grown), (0.0, grown)):  # later backwards, and the first
            buffer = np.append(gradients[1:], behind)
            scattered = np.maximum(alone + buffer, scattering)
            gathered = np.maximum(alone + buffer + weights, scattering) + before
            gathered = np.maximum(gathered, between + buffer + 2 * weights)  # copied out of what was gathered
            found += [scattered + there, gathered + there + self.shared[0]]
            lasts.append(np.maximum(alone + buffer, scattering - weights) - kept + there)
        return np.stack((forward, using, summed, *found, last, *lasts), 1)


def _scattered_last(
    priced: Priced, units: Sequence[Unit], gradients: Sequence[float], several: Set[fx.Node], shared: float
) -> float:
    """Units that read nothing with a gradient, beside parameters of their own, end with the backward itself, in order,
    behind what several units read."""
    folded = priced.folded
    inputs = ([folded.own(folded.node[n]) for n in folded.entering[unit]] for unit in units)
    rows = zip(gradients, inputs, (several.isdisjoint(priced.held[unit]) for unit in units), strict=True)
    ending = [size for size, nodes, alone in rows if size and alone and folded.differentiable.isdisjoint(nodes)]
    return ending[-1] if ending else shared or next((size for size in gradients if size), 0.0)


def _bytes(elements: float, dtype: torch.dtype, priced: Priced) -> tuple[float, float]:
    """Of a parameter and of its gradient."""
    return elements * dtype.itemsize, elements * state(dtype, priced.precision).gradient


def _row(priced: Priced, unit: Unit, without: frozenset[fx.Node]) -> tuple[float, ...]:
    """Of one unit, each found once."""
    key = unit, without
    if key not in priced.unit_states:
        precision = priced.precision
        own = [row for node, row in priced.held[unit].items() if node not in without]
        pairs = [_bytes(row.elements, row.dtype, priced) for row in own]
        weights, gradients = [weight for weight, _ in pairs], [gradient for _, gradient in pairs]
        frozen = sum(size for node, size in priced.frozen[unit].items() if node not in without)
        is_any_cast = any(is_cast(row.dtype, precision) for row in own)
        ends = weights[-1:] + gradients[-1:] if own else [0.0, 0.0]
        priced.unit_states[key] = sum(weights) + frozen, sum(gradients), *ends, float(is_any_cast)
    return priced.unit_states[key]
