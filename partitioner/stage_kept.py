"""What a stage keeps of a micro-batch, and how full it is at most, by how many of its first blocks are recomputed.

    a unit                its peaks, on top of what earlier ones keep, beside what backward of later ones has left
    units up to the n-th  recomputed                               the fullest of them
    units behind it       as they are                              the fullest of them, less what is kept no more
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from partitioner.backward import Peaks
from partitioner.cost import Kept, Priced
from partitioner.graph import Unit
from partitioner.layout import Placement
from partitioner.moments import Array
from partitioner.price import state


def stage_kept(priced: Priced, units: Sequence[Unit], ways: Sequence[str]) -> dict[str, tuple[Kept, ...]]:
    """By way of recomputing, "none" and those asked for, when the first 0, 1, 2, ... blocks are recomputed so."""
    costs, beside = [priced.unit(u) for u in units], np.array(_beside(priced, units))
    once, once_again = _kept_before(priced, units)
    plain, full = _stacked([c.kept["none"] for c in costs], once, beside)
    behind = np.maximum.accumulate(full[::-1])[::-1]
    none = Kept(float(plain.sum()), Peaks(*behind[0].tolist()))
    found: dict[str, tuple[Kept, ...]] = {"none": (none,)}
    blocks = np.array([u.is_block for u in units])
    for way in ways:
        again = [c.kept[way if is_block else "none"] for c, is_block in zip(costs, blocks, strict=True)]
        size, full = _stacked(again, np.where(blocks, once_again, once), beside)
        freed = np.cumsum(plain - size)
        after = np.vstack((behind[1:], np.full((1, len(Peaks._fields)), -np.inf))) - freed[:, None]
        peaks = np.maximum(np.maximum.accumulate(full), after)
        seconds = np.cumsum([(k.compute, k.communication, k.weight) for k in again], axis=0)
        rows = zip((none.bytes - freed)[blocks].tolist(), peaks[blocks].tolist(), seconds[blocks].tolist(), strict=True)
        found[way] = (none, *(Kept(left, Peaks(*most), *run) for left, most, run in rows))
    return found


def _stacked(rows: Sequence[Kept], known: Array, beside: Array) -> tuple[Array, Array]:
    """Of units one after the other: bytes kept, and their peaks on top of what earlier ones keep."""
    size = np.array([kept.bytes for kept in rows]) - known
    before = np.cumsum(size) - size - known
    return size, np.array([kept.peaks for kept in rows]) + beside + before[:, None]


def _kept_before(priced: Priced, units: Sequence[Unit]) -> tuple[Array, Array]:
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
    return np.array(plain), np.array(again)


def _beside(priced: Priced, units: Sequence[Unit]) -> list[Peaks]:
    """What lies beside each unit's own in its backward: gradients of the parameters of the units behind it, where they
    stay, those of values that units behind it read and earlier ones have made, and the gradient that the stage was
    sent, which its last unit counts itself."""
    folded, tied = priced.folded, priced.setting.tied
    seen, pending = set[fx.Node](), dict[tuple[fx.Node, Placement], float]()
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
                stay += 0.0 if tied and folded.own(node) in tied else made
            seen.add(node)
        for node, port in zip(folded.entering[unit], priced.unit(unit).ports, strict=True):
            if folded.own(folded.node[node]) in folded.differentiable:
                pending[node, port.placement] = port.bytes
    return found[::-1]


