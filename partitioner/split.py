"""How a step is cut: stages of units added up, and the decisions beside them that a price needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import fx

from partitioner.cost import Kept, Priced
from partitioner.graph import Unit
from partitioner.liveness import Peaks
from partitioner.price import ZERO, Seconds, state
from partitioner.schedule import rank_of

Held = tuple[float, int, bool]  # elements a rank holds, bytes an element, whether the gradient is Partial


@dataclass(frozen=True)
class StageSums:
    """What one micro-batch takes of a stage's units; ``blocks`` of them may be recomputed.

    ``kept``: by way of recomputing, what the whole stage keeps when its first 0, 1, 2, ... blocks are recomputed so.
    ``input_bytes`` and ``output_bytes``: what it receives and sends.
    ``held``: parameters, alike ones added up; ``largest``: elements of the unit that has most.
    """

    seconds: Seconds
    weight: float
    communication: float
    collectives: tuple[int, int]
    kernels: tuple[int, int]
    kept: Mapping[str, tuple[Kept, ...]]
    input_bytes: float
    output_bytes: float
    flops: float
    held: tuple[Held, ...]
    largest: float

    @property
    def blocks(self) -> int:
        """How many may be recomputed."""
        return len(self.kept["none"]) - 1


def stage_sums(priced: Priced, units: Sequence[Unit], ways: Sequence[str] = ("none", "full")) -> StageSums:
    """Add up a stage; ``ways``: of recomputing, those that are asked for."""
    rows = [priced.unit(u) for u in units]
    parameters: dict[fx.Node, Held] = {}
    for unit in units:
        parameters |= priced.held[unit]
    held: dict[tuple[int, bool], float] = {}
    for elements, size, is_partial in parameters.values():
        held[size, is_partial] = held.get((size, is_partial), 0.0) + elements
    return StageSums(
        sum((c.seconds for c in rows), ZERO),
        sum(c.weight for c in rows),
        sum(c.communication.total for c in rows),
        (sum(c.collectives[0] for c in rows), sum(c.collectives[1] for c in rows)),
        (sum(c.kernels[0] for c in rows), sum(c.kernels[1] for c in rows)),
        {way: tuple(_recomputed(priced, units, way)) for way in ways},
        rows[0].input_bytes,
        rows[-1].output_bytes,
        sum(c.flops for c in rows),
        tuple((elements, size, is_partial) for (size, is_partial), elements in held.items()),
        max(sum(elements for elements, _, _ in priced.held[u].values()) for u in units),
    )


def _recomputed(priced: Priced, units: Sequence[Unit], way: str) -> list[Kept]:
    """By how many of the first blocks are recomputed. The fullest moment lies in a unit up to the last of these, behind
    earlier ones that are recomputed; or in one behind it, where all is as without, less what those keep no more."""
    costs = [priced.unit(u) for u in units]
    plain = [c.kept["none"] for c in costs]
    again = [c.kept[way if u.is_block else "none"] for u, c in zip(units, costs, strict=True)]
    later = _gradients_behind(priced, units)
    entered = [costs[-1].output_bytes] * (len(units) - 1) + [0.0]
    total = Kept(sum(k.bytes for k in plain), _suffix(plain, later, entered)[0])
    found, behind, before, least = [total], _suffix(plain, later, entered), 0.0, Peaks(0.0, 0.0, 0.0)
    for n, unit in enumerate(units):
        least = _larger(least, _above(again[n].peaks, before, later[n], entered[n]))
        before += again[n].bytes
        if unit.is_block:
            less = total.bytes - plain[n].bytes + again[n].bytes
            saved = found[0].bytes - less
            peaks = _larger(least, Peaks(*(size - saved for size in behind[n + 1])))
            total = Kept(
                less, peaks, total.compute + again[n].compute, total.communication + again[n].communication,
                total.weight + again[n].weight,
            )  # fmt: skip
            found.append(total)
    return found


def _suffix(rows: Sequence[Kept], later: Sequence[float], entered: Sequence[float]) -> list[Peaks]:
    """Of each unit and all behind it, the fullest above what all before keep; and of none."""
    before, found = sum(k.bytes for k in rows), [Peaks(-math.inf, -math.inf, -math.inf)]
    for kept, gradients, held in zip(reversed(rows), reversed(later), reversed(entered), strict=True):
        before -= kept.bytes
        found.append(_larger(found[-1], _above(kept.peaks, before, gradients, held)))
    return found[::-1]


def _above(peaks: Peaks, before: float, gradients: float, entered: float) -> Peaks:
    """``entered``: the gradient that the stage was sent, which lies there until its backward ends."""
    return Peaks(before + peaks.forward, before + entered + peaks.backward, before + entered + peaks.first + gradients)


def _larger(a: Peaks, b: Peaks) -> Peaks:
    return Peaks(*map(max, a, b))


def _gradients_behind(priced: Priced, units: Sequence[Unit]) -> list[float]:
    """Bytes of parameters' gradients that backward has made when it comes to a unit; Partial ones lie in buckets."""
    seen: set[fx.Node] = set()
    found, total = list[float](), 0.0
    for unit in reversed(units):
        found.append(total)
        for node, (elements, size, is_partial) in priced.held[unit].items():
            if node not in seen and not is_partial:
                total += elements * state(size, priced.cluster.software).gradient
            seen.add(node)
    return found[::-1]


@dataclass(frozen=True)
class Split:
    """How a step is cut: stages of units, and the decisions that price needs.

    ``recomputed``: of each stage, how many of its blocks are recomputed in the way that ``recompute`` names. ``order``:
    mesh axes, outermost first. ``zero``: ZeRO's stage, over ``zero_group`` ranks or all of dp and cp.
    """

    stages: tuple[StageSums, ...]
    units: tuple[tuple[Unit, ...], ...]
    mesh: Mapping[str, int]
    order: tuple[str, ...]
    micro_batches: int
    schedule: str
    virtual: int
    recompute: str
    recomputed: tuple[int, ...]
    zero: int = 0
    zero_group: int | None = None

    @property
    def pp(self) -> int:
        """Pipeline ranks."""
        return self.mesh["pp"]

    @property
    def replicas(self) -> int:
        """Ranks that hold the same parameters: dp and cp."""
        return self.mesh["dp"] * self.mesh.get("cp", 1)

    @property
    def shards(self) -> int:
        """Ranks over which ZeRO divides state."""
        return self.replicas if self.zero_group is None else min(self.zero_group, self.replicas)

    def stride(self, axis: str) -> int:
        """Ranks between neighbours on an axis."""
        found = 1
        for name in self.order[self.order.index(axis) + 1 :]:
            found *= self.mesh[name]
        return found

    @cached_property
    def _own(self) -> tuple[tuple[int, ...], ...]:
        rows: list[list[int]] = [[] for _ in range(self.pp)]
        for n in range(len(self.stages)):
            rows[rank_of(n, self.pp, self.schedule)].append(n)
        return tuple(map(tuple, rows))

    def own(self, p: int) -> tuple[int, ...]:
        """The stages of a pipeline rank."""
        return self._own[p]

    def recomputing(self, way: str, counts: tuple[int, ...]) -> Split:
        """The same, recomputing so many blocks of each stage."""
        return replace(self, recompute=way, recomputed=counts)

    def kept(self, stage: int) -> Kept:
        """What a stage keeps, rebuilds and runs again."""
        return self.stages[stage].kept[self.recompute][self.recomputed[stage]]
