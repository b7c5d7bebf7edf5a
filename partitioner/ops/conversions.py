"""From one layout of a value to another: collectives, axis by axis.

    S(1) S(1) --> W S(1)     not at once: what the inner axis divides is another part of the value then
    S(1) S(1) --> W W        the inner axis gathers, then the outer; or both as one, where they refine one axis
    W W --> S(1) S(1)        the outer axis cuts, then the inner

An axis that changes how a dimension is divided comes behind one within it that leaves that dimension, and before one
within it that divides it from then on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from partitioner.ops.collective_kinds import KINDS
from partitioner.ops.collectives import Collective, convert_value
from partitioner.sharding.layout import REPLICATE, Layout, Placement, Shard, joined
from partitioner.sharding.mesh_axes import Axes, wholes


class Hop(NamedTuple):
    """One collective of a conversion, over ``ranks`` of ``axis``. ``made``: how the value lies behind it; ``whole``:
    the same, undivided along that axis."""

    axis: str
    ranks: int
    row: Collective
    made: Layout
    whole: Layout

    def sent(self, phase: str) -> str:
        """The kind of what it sends forward, or backward; "" for nothing."""
        return self.row.forward if phase == "forward" else self.row.backward

    def payload(self, size: float, phase: str) -> float:
        """Bytes that it sends of a value that has ``size`` where it is ``whole``."""
        return KINDS[self.sent(phase)].payload(size, self.ranks)


def conversion(source: Layout, target: Layout, axes: Axes, differentiable: bool) -> tuple[Hop, ...] | None:
    """The collectives that turn ``source`` into ``target``, in order; None where there are none."""
    if source == target:
        return ()
    lines, now, found = _ordered(list(_lines(source, target, axes))), list(source), list[Hop]()
    if lines is None:
        return None
    for line in lines:
        rows = convert_value(line.source, line.target, line.ranks, differentiable)
        if rows is None:
            return None
        whole = [REPLICATE if slot in line.slots else placement for slot, placement in enumerate(now)]
        now = [target[slot] if slot in line.slots else placement for slot, placement in enumerate(now)]
        found += [Hop(line.axis, line.ranks, row, tuple(now), tuple(whole)) for row in rows]
    return tuple(found)


@dataclass(frozen=True)
class _Line:
    """What happens along one axis, or along what refines it together; ``slots``: their places in a layout."""

    axis: str
    ranks: int
    source: Placement
    target: Placement
    slots: tuple[int, ...]

    @property
    def grows(self) -> int:
        """Whether a rank has more of the value afterwards (1), or less (-1): what comes behind is as much larger."""
        return isinstance(self.source, Shard) - isinstance(self.target, Shard)

    @property
    def resized(self) -> set[int]:
        """The dimensions of which a rank has another part afterwards."""
        sides = (self.source, self.target) if self.source != self.target else ()
        return {side.dim for side in sides if isinstance(side, Shard)}


def _lines(source: Layout, target: Layout, axes: Axes) -> Iterator[_Line]:
    for name, slots in wholes(axes):
        sizes = [axes[slot][1] for slot in slots]
        ends = [joined([side[slot] for slot in slots], sizes) for side in (source, target)]
        if None not in ends:
            ranks = 1
            for size in sizes:
                ranks *= size
            yield _Line(name, ranks, ends[0], ends[1], slots)  # type: ignore[arg-type]
        else:
            yield from (_Line(*axes[slot], source[slot], target[slot], (slot,)) for slot in slots)


def _ordered(lines: list[_Line]) -> list[_Line] | None:
    """Those that convert, as they may follow each other; None where they can't."""
    found, left = list[_Line](), lines
    while left:
        free = [line for n, line in reversed(list(enumerate(left))) if _may_come(n, left)]
        if not free:
            return None
        line = min(free, key=lambda line: line.grows)
        left = [other for other in left if other is not line]
        found.append(line)
    return [line for line in found if line.source != line.target]


def _may_come(n: int, left: list[_Line]) -> bool:
    """Whether the n-th may be converted before the others, outer ones first in ``left``."""
    line = left[n]
    behind_outer = (isinstance(line.target, Shard) and line.target.dim in outer.resized for outer in left[:n])
    behind_inner = (isinstance(inner.source, Shard) and inner.source.dim in line.resized for inner in left[n + 1 :])
    return not any(behind_outer) and not any(behind_inner)
