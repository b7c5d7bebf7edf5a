"""How full a stage's actions are where ZeRO divides state: weights gathered, gradients whole until they are scattered.

    forward of a unit       its weights, and those of the next as they are gathered
    backward of a unit      its weights, those of the one before as they are gathered
    both                    the buffer from which the last gradients were scattered: of the unit behind, or of the first
    behind it               its gradients beside the buffer from which they are scattered

The ways are those of torch's FSDP2 (runtime/train/sharded_stages.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from partitioner.cost.state_bytes import is_cast, state
from partitioner.cost.unit_cost import Priced
from partitioner.graph.graph import Unit
from partitioner.schedule.fullest_moments import Array


@dataclass(frozen=True)
class UnitState:
    """Bytes of each unit's own parameters (units): as ops read them, of their gradients, and of those in the type of
    ops where they are added up in another."""

    weights: Array
    gradients: Array
    cast: Array

    @staticmethod
    def of(priced: Priced, units: Sequence[Unit]) -> UnitState:
        """What several units of the stage read is gathered for all of it, and is no unit's own."""
        readers = [node for unit in units for node in priced.held[unit]]
        rows = [[row for node, row in priced.held[unit].items() if readers.count(node) == 1] for unit in units]
        precision = priced.precision
        weights = [sum(row.elements * row.dtype.itemsize for row in own) for own in rows]
        gradients = [sum(row.elements * state(row.dtype, precision).gradient for row in own) for own in rows]
        cast = [sum(row.elements * row.dtype.itemsize * is_cast(row.dtype, precision) for row in own) for own in rows]
        return UnitState(np.array(weights), np.array(gradients), np.array(cast))

    def peaks(self, forward: Array, backward: Array, alone: Array, after: Array) -> Array:
        """(units, fields of StagePeaks that ``Peaks`` has not) from each unit's peaks without ZeRO, and what lies there ``after`` its backward; ``alone``:
        of a backward whose gradients of parameters stay."""
        weights, gradients = self.weights, self.gradients
        ahead, before = np.append(weights[1:], 0.0), np.insert(weights[:-1], 0, 0.0)
        buffer = np.roll(gradients, -1)
        freed = np.cumsum(gradients[::-1])[::-1] - gradients  # of sums of units behind, but for ranks' parts of them
        summed = np.maximum(np.where(self.cast > 0, alone, backward), after + gradients - freed / 2)
        scattered = np.maximum(alone + buffer, after + weights + gradients)
        gathered = np.maximum(alone + buffer + weights + before, after + weights + gradients + before)
        forward = forward + gradients[0]
        return np.stack((forward, forward + weights + ahead, summed, scattered, gathered), 1)
