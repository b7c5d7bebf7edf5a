"""What a stage keeps of a micro-batch and runs again when its first 0, 1, 2, ... blocks are recomputed in one way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from partitioner.cost.backward_peak import StagePeaks
from partitioner.cost.unit_cost import Stash
from partitioner.schedule.fullest_moments import Array


class Again(NamedTuple):
    """Seconds that run again, of which ``weight_gradient_seconds`` can't be put off."""

    compute: float = 0.0
    communication: float = 0.0
    weight_gradient_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Stashes:
    """A Stash each; ``sizes``: (blocks recomputed, (bytes, *peaks)), as memory is summed of them."""

    sizes: Array
    again: Sequence[Again]

    @staticmethod
    def of(*rows: Stash) -> Stashes:
        """Of none recomputed, of one, of two, ..."""
        sizes = np.array([(row.bytes, *StagePeaks(*row.peaks)) for row in rows])
        again = [Again(row.compute, row.communication, row.weight_gradient_seconds) for row in rows]
        return Stashes(sizes, again)

    def __len__(self) -> int:
        return len(self.again)

    def __getitem__(self, blocks: int) -> Stash:
        kept, *peaks = self.sizes[blocks].tolist()
        return Stash(kept, StagePeaks(*peaks), *self.again[blocks])

    def __iter__(self) -> Iterator[Stash]:
        return (self[n] for n in range(len(self)))
