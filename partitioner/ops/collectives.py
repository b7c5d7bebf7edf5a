"""The collectives that may stand in a Program, each with its backward twin, as op schemas with an axis *name*.

    from -> to           op               forward          backward
    -----------------    --------------   --------------   --------------
    PARTIAL -> WHOLE     all_reduce       all_reduce       none            Megatron's g
    PARTIAL -> REPLICATE all_reduce       all_reduce       all_reduce
    WHOLE -> REPLICATE   copy             none             all_reduce      Megatron's f
    WHOLE -> PARTIAL     on_first         none (first's)   none            (a bias that joins partial sums once)
    REPLICATE -> PARTIAL on_first         none (first's)   none (first's)
    Shard -> WHOLE       all_gather       all_gather       none (own part)
    Shard -> REPLICATE   all_gather       all_gather       reduce_scatter
    PARTIAL -> Shard     reduce_scatter   reduce_scatter   all_gather
    WHOLE -> Shard       shard            none (own part)  all_gather
    REPLICATE -> Shard   shard            none (own part)  none (own part, zero elsewhere)
    Shard -> Shard       all_to_all       all_to_all       all_to_all

The schemas are registered here so that a Program can be built, printed and shape-checked with no process group; the
runtime binds them to groups. ``segments`` are written flat: [repeat, units, granule, ...].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from partitioner.sharding.layout import PARTIAL, REPLICATE, WHOLE, Placement, Segment, Shard

_LIBRARY = torch.library.Library("partitioner", "DEF")
_LIBRARY.define("all_reduce(Tensor x, str axis, bool backward) -> Tensor")
_LIBRARY.define("copy(Tensor x, str axis) -> Tensor")
_LIBRARY.define("on_first(Tensor x, str axis, bool backward) -> Tensor")
_LIBRARY.define("all_gather(Tensor x, str axis, int dim, int[] segments, bool backward) -> Tensor")
_LIBRARY.define("reduce_scatter(Tensor x, str axis, int dim, int[] segments) -> Tensor")
_LIBRARY.define("shard(Tensor x, str axis, int dim, int[] segments, bool backward) -> Tensor")
_LIBRARY.define(
    "all_to_all(Tensor x, str axis, int source, int[] source_segments, int target, int[] target_segments) -> Tensor"
)

OPS = ("all_reduce", "copy", "on_first", "all_gather", "reduce_scatter", "shard", "all_to_all")


@dataclass(frozen=True)
class Collective:
    """One row of the table above: the op, its arguments behind (x, axis), and what each phase sends.

    ``forward`` and ``backward`` name the communication of that phase, "" where nothing is sent.
    """

    op: str
    arguments: tuple[object, ...]
    forward: str
    backward: str


def flat(segments: tuple[Segment, ...]) -> list[int]:
    """Segments as the flat integer list that op schemas carry."""
    return [number for s in segments for number in (s.repeat, s.units, s.granule)]


def unflat(numbers: list[int]) -> tuple[Segment, ...]:
    """The inverse of ``flat``."""
    return tuple(Segment(*numbers[i : i + 3]) for i in range(0, len(numbers), 3))


def convert(source: Placement, target: Placement, ranks: int) -> tuple[Collective, ...] | None:
    """The collectives that turn ``source`` into ``target`` on one axis, in order; None where there are none.

    Uneven shards are never gathered or scattered inside a step, so they convert to nothing.
    """
    if source == target:
        return ()
    if any(isinstance(p, Shard) and not p.is_even(ranks) for p in (source, target)):
        return None
    if isinstance(source, Shard):
        return _from_shard(source, target)
    if isinstance(target, Shard):
        return _to_shard(source, target)
    return (_WORDS[source, target],) if (source, target) in _WORDS else None


_WORDS: dict[tuple[Placement, Placement], Collective] = {
    (PARTIAL, WHOLE): Collective("all_reduce", (False,), "all_reduce", ""),
    (PARTIAL, REPLICATE): Collective("all_reduce", (True,), "all_reduce", "all_reduce"),
    (WHOLE, REPLICATE): Collective("copy", (), "", "all_reduce"),
    (WHOLE, PARTIAL): Collective("on_first", (False,), "", ""),
    (REPLICATE, PARTIAL): Collective("on_first", (True,), "", ""),
}


def _from_shard(source: Shard, target: Placement) -> tuple[Collective, ...] | None:
    segments = flat(source.segments)
    if isinstance(target, Shard):
        if target.dim == source.dim:
            return None
        arguments = (source.dim, segments, target.dim, flat(target.segments))
        return (Collective("all_to_all", arguments, "all_to_all", "all_to_all"),)
    if target == WHOLE:
        return (Collective("all_gather", (source.dim, segments, False), "all_gather", ""),)
    if target == REPLICATE:
        return (Collective("all_gather", (source.dim, segments, True), "all_gather", "reduce_scatter"),)
    return None


def _to_shard(source: Placement, target: Shard) -> tuple[Collective, ...] | None:
    segments = flat(target.segments)
    if source == PARTIAL:
        return (Collective("reduce_scatter", (target.dim, segments), "reduce_scatter", "all_gather"),)
    if source == WHOLE:
        return (Collective("shard", (target.dim, segments, True), "", "all_gather"),)
    return (Collective("shard", (target.dim, segments, False), "", ""),)


def conversion(source: Placement, target: Placement, ranks: int, differentiable: bool) -> tuple[Collective, ...] | None:
    """``collectives.convert``; a value without a gradient that every rank holds is anything that it can be cut into."""
    if not differentiable and str(source) in ("W", "R"):
        if str(target) in ("W", "R"):
            return ()
        assert isinstance(target, Shard) or str(target) == "P"
        return _cut(target, ranks) if isinstance(target, Shard) else None
    return convert(source, target, ranks)


def _cut(target: Shard, ranks: int) -> tuple[Collective, ...]:
    segments = [number for s in target.segments for number in (s.repeat, s.units, s.granule)]
    return (Collective("shard", (target.dim, segments, False), "", ""),)


def payloads(size: float, rows: tuple[Collective, ...], ranks: int, phase: str) -> list[tuple[str, float]]:
    """(kind, bytes) of what collectives on a value of ``size`` bytes send in one phase."""
    found = [(row.forward if phase == "forward" else row.backward) for row in rows]
    return [(kind, size / ranks if kind == "all_to_all" else size) for kind in found if kind]
