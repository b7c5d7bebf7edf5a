"""Where to cut a pipeline: contiguous runs of units, the slowest as fast as can be, each with at least one block."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Any

import numpy as np

from partitioner.cost.unit_cost import Priced
from partitioner.graph.graph import Unit

Array = np.ndarray[Any, np.dtype[Any]]


ENDS = (0, 0), (1, 1), (1, 0), (0, 1)  # blocks' places that what is before them, and what is behind them, takes


class StageCuts:
    """The best cut of a priced graph's units into any number of stages.

    By dynamic programming over (units taken, stages): least slowest stage, then the least sum of squares, so that what
    can be even is even.
    """

    def __init__(self, priced: Priced) -> None:
        self.units = priced.folded.graph.units
        seconds = [priced.unit(u).seconds.total for u in self.units]
        self._seconds, self._blocks = np.cumsum([0.0, *seconds]), np.cumsum([0, *(u.is_block for u in self.units)])
        self._best: list[tuple[Array, Array, Array]] = []

    @cached_property
    def _run_seconds(self) -> Array:
        """Seconds of units a to b at [a, b]; infinite without a block among them."""
        runs = self._seconds[None, :] - self._seconds[:, None]
        return np.where(self._blocks[None, :] > self._blocks[:, None], runs, np.inf)

    def evenest(self, stages: int) -> tuple[tuple[Unit, ...], ...]:
        """``stages`` runs of units in order; () if there are too few blocks."""
        if stages == 1:
            return (self.units,)
        if self._blocks[-1] < stages:
            return ()
        while len(self._best) < stages:
            self._best.append(self._one_stage_more())
        bounds = [len(self.units)]
        for _, _, source in reversed(self._best[1:stages]):
            bounds.insert(0, int(source[bounds[0]]))
        return tuple(self.units[a:b] for a, b in zip([0, *bounds], bounds, strict=False))

    def as_many_blocks(self, stages: int, end_slots: bool = False) -> tuple[tuple[Unit, ...], ...]:
        """As many blocks in each stage, what is before the blocks in the first and what is behind them in the last; ()
        where the blocks do not divide. ``end_slots``: there each of those two, or one, may take the place of a block.
        """
        if stages == 1:
            return (self.units,)
        blocks = [n for n, unit in enumerate(self.units) if unit.is_block]
        ways = ENDS if end_slots else ENDS[:1]
        ends = next((e for e in ways if (len(blocks) + sum(e)) % stages == 0), None)
        if not blocks or ends is None or stages > len(blocks) + sum(ends):
            return ()
        each = (len(blocks) + sum(ends)) // stages
        starts = [*blocks, blocks[-1] + 1]
        cuts = [starts[n * each - ends[0]] for n in range(1, stages)]
        return tuple(self.units[a:b] for a, b in itertools.pairwise([0, *cuts, len(self.units)]))

    def of_counts(
        self, counts: tuple[int, ...], stages: int, end_slots: bool = False
    ) -> tuple[tuple[Unit, ...], ...]:
        """Stages of so many units each; () where those are not ``stages``, or not all units, or one has no block and is
        no end with a slot of its own."""
        if len(counts) != stages or sum(counts) != len(self.units):
            return ()
        ends = np.cumsum([0, *counts])
        cut = tuple(self.units[a:b] for a, b in itertools.pairwise(ends.tolist()))
        inner = cut[1:-1] if end_slots else cut
        return cut if all(any(unit.is_block for unit in stage) for stage in inner) else ()

    def _one_stage_more(self) -> tuple[Array, Array, Array]:
        """With one stage more, by units taken: the slowest stage, the sum of squares, where the last run starts."""
        runs = self._run_seconds
        if not self._best:
            return runs[0], runs[0] ** 2, np.zeros(len(self.units) + 1, dtype=int)
        slowest, squares, _ = self._best[-1]
        worst = np.maximum(slowest[:, None], runs)
        least = worst.min(axis=0)
        even = np.where(worst <= least * (1 + 1e-9), squares[:, None] + runs**2, np.inf)
        source = even.argmin(axis=0)
        return least, even.min(axis=0), source
