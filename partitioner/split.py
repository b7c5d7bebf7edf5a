"""How a step is cut: stages of units added up, and the decisions beside them that a price needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import fx

from partitioner.backward import Peaks
from partitioner.cost import Kept, Priced
from partitioner.graph import Unit
from partitioner.layout import Placement
from partitioner.moments import Array
from partitioner.price import ZERO, Seconds, state
from partitioner.schedule import rank_of

Held = tuple[float, int, bool]  # elements a rank holds, bytes an element, whether the gradient is Partial


@dataclass(frozen=True)
class StageSums:
    """What one micro-batch takes of a stage's units; ``blocks`` of them may be recomputed.

    ``kept``: by way of recomputing, what the whole stage keeps when its first 0, 1, 2, ... blocks are recomputed so.
    ``input_bytes`` and ``output_bytes``: what it receives and hands on, ``sent_bytes`` of it by this rank. ``held``:
    parameters, alike ones added up; ``tied_bytes``: gradients of those that other units read too; ``largest``: elements
    of the unit that has most.
    """

    seconds: Seconds
    weight: float
    communication: float
    collectives: tuple[int, int]
    kernels: tuple[int, int]
    kept: Mapping[str, tuple[Kept, ...]]
    input_bytes: float
    output_bytes: float
    sent_bytes: float
    flops: float
    held: tuple[Held, ...]
    tied_bytes: float
    largest: float

    @property
    def blocks(self) -> int:
        """How many may be recomputed."""
        return len(self.kept["none"]) - 1

    @cached_property
    def sizes(self) -> Mapping[str, Array]:
        """``kept`` as arrays: (blocks recomputed, (bytes, *peaks))."""
        return {way: np.array([(kept.bytes, *kept.peaks) for kept in rows]) for way, rows in self.kept.items()}


def stage_sums(priced: Priced, units: Sequence[Unit], ways: Sequence[str] = ("none", "full")) -> StageSums:
    """Add up a stage; ``ways``: of recomputing, those that are asked for."""
    rows, end = [priced.unit(u) for u in units], priced.place[units[-1]] + 1
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
        priced.crossing[priced.place[units[0]]],
        priced.crossing[end],
        priced.sent[end],
        sum(c.flops for c in rows),
        tuple((elements, size, is_partial) for (size, is_partial), elements in held.items()),
        sum(n * state(size, priced.cluster.software).gradient for node, (n, size, is_partial) in parameters.items()
            if priced.folded.own(node) in priced.setting.tied and not is_partial),
        max(sum(elements for elements, _, _ in priced.held[u].values()) for u in units),
    )


def _recomputed(priced: Priced, units: Sequence[Unit], way: str) -> list[Kept]:
    """By how many of the first blocks are recomputed.

    The fullest moment lies in a unit up to the last of these, behind earlier ones that are recomputed; or in one behind
    it, where all is as without, less what those keep no more.
    """
    costs = [priced.unit(u) for u in units]
    once, once_again = _kept_before(priced, units)
    plain = [_less(c.kept["none"], size) for c, size in zip(costs, once, strict=True)]
    again = [
        _less(c.kept[way], size) if u.is_block else kept
        for u, c, size, kept in zip(units, costs, once_again, plain, strict=True)
    ]
    beside = _beside(priced, units)
    behind = _behind(plain, beside)
    total = Kept(sum(k.bytes for k in plain), behind[0])
    found, before, least = [total], 0.0, _NONE
    for n, unit in enumerate(units):
        least = _larger(least, _plus(again[n].peaks, _plus(beside[n], before)))
        before += again[n].bytes
        if unit.is_block:
            less = total.bytes - plain[n].bytes + again[n].bytes
            peaks = _larger(least, _plus(behind[n + 1], less - found[0].bytes))
            total = Kept(
                less, peaks, total.compute + again[n].compute, total.communication + again[n].communication,
                total.weight + again[n].weight,
            )  # fmt: skip
            found.append(total)
    return found


def _kept_before(priced: Priced, units: Sequence[Unit]) -> tuple[list[float], list[float]]:
    """Bytes of what enters a unit that an earlier one of the stage keeps already (an encoder's result, read by all
    blocks of the decoder): where nothing is recomputed, and where what enters is kept."""
    seen: set[tuple[fx.Node, Placement]] = set()
    plain, again = list[float](), list[float]()
    for unit in units:
        rows = list(zip(priced.folded.entering[unit], priced.unit(unit).ports, strict=True))
        known = [port for node, port in rows if (node, port.placement) in seen]
        plain.append(sum(port.kept for port in known))
        again.append(sum(port.bytes for port in known))
        seen |= {(node, port.placement) for node, port in rows if port.kept}
    return plain, again


def _less(kept: Kept, size: float) -> Kept:
    return replace(kept, bytes=kept.bytes - size, peaks=_plus(kept.peaks, -size)) if size else kept


_NONE = Peaks(-math.inf, -math.inf, -math.inf, -math.inf)


def _behind(rows: Sequence[Kept], beside: Sequence[Peaks]) -> list[Peaks]:
    """Of each unit and all behind it, the fullest above what all before keep; and of none."""
    before, found = sum(k.bytes for k in rows), [_NONE]
    for kept, other in zip(reversed(rows), reversed(beside), strict=True):
        before -= kept.bytes
        found.append(_larger(found[-1], _plus(kept.peaks, _plus(other, before))))
    return found[::-1]


def _beside(priced: Priced, units: Sequence[Unit]) -> list[Peaks]:
    """What lies beside each unit's own in its backward: gradients of the parameters of the units behind it, where they
    stay, those of values that units behind it read and earlier ones have made, and the gradient that the stage was
    sent, which its last unit counts itself."""
    folded, seen, pending = priced.folded, set[fx.Node](), dict[tuple[fx.Node, Placement], float]()
    sent = priced.crossing[priced.place[units[-1]] + 1]
    found, stay, alone = list[Peaks](), 0.0, 0.0
    for unit in reversed(units):
        pending = {key: size for key, size in pending.items() if key[0].name not in unit.nodes}
        back = sum(pending.values()) + (sent if found else 0.0)
        found.append(Peaks(0.0, back, back + stay, back + alone))
        for node, (elements, size, is_partial) in priced.held[unit].items():
            if node not in seen and not is_partial:
                made = elements * state(size, priced.cluster.software).gradient
                alone += made
                stay += 0.0 if folded.own(node) in priced.setting.tied else made
            seen.add(node)
        for node, port in zip(folded.entering[unit], priced.unit(unit).ports, strict=True):
            if folded.own(folded.node[node]) in folded.differentiable:
                pending[node, port.placement] = port.bytes
    return found[::-1]


def _plus(a: Peaks, b: Peaks | float) -> Peaks:
    return Peaks(*(x + y for x, y in zip(a, b if isinstance(b, Peaks) else (b,) * len(a), strict=True)))


def _larger(a: Peaks, b: Peaks) -> Peaks:
    return Peaks(*map(max, a, b))


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
