"""How a tensor lies on the mesh.

A Layout holds one placement for each axis along which ops lie, outermost first; a later axis divides what an earlier
one left. Of one axis:

    word          value on each rank               gradient on each rank
    ----------    -----------------------------    ----------------------------------
    WHOLE         the whole tensor                 the whole gradient
    REPLICATE     the whole tensor                 a Partial: the sum over ranks is it
    PARTIAL       a Partial: the sum is it         the whole gradient
    Shard(d)      its part of dimension d          its part of dimension d

WHOLE and REPLICATE hold the same values forward; they differ in their *backward word*. These are the four types of
Megatron's f and g: f turns WHOLE into REPLICATE, g turns PARTIAL into WHOLE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from partitioner.sharding.mesh_axes import Axes, wholes


@dataclass(frozen=True, order=True)
class Segment:
    """A run of ``repeat * units * granule`` elements of one dimension of which each rank holds some units.

    Read the run as an array [repeat, units, granule]; rank r of n holds a contiguous, balanced range of the units.
    ``repeat`` covers merged dimensions ((b s) sharded along s has repeat b), ``granule`` keeps heads in one piece.
    """

    repeat: int
    units: int
    granule: int

    @property
    def size(self) -> int:
        """Elements of the run on all ranks together."""
        return self.repeat * self.units * self.granule

    def unit_range(self, rank: int, ranks: int) -> tuple[int, int]:
        """First and past-the-end unit of one rank; the first ``units % ranks`` ranks hold one unit more."""
        share, rest = divmod(self.units, ranks)
        start = rank * share + min(rank, rest)
        return start, start + share + (rank < rest)

    def local_size(self, rank: int, ranks: int) -> int:
        """Elements of the run on one rank."""
        start, end = self.unit_range(rank, ranks)
        return self.repeat * (end - start) * self.granule

    def is_even(self, ranks: int) -> bool:
        """Whether every rank holds the same number of elements."""
        return self.units % ranks == 0

    def canonical(self, ranks: int) -> Segment:
        """The same division over ``ranks`` ranks, written in the one way that compares equal."""
        if self.is_even(ranks):
            return Segment(self.repeat, ranks, self.units // ranks * self.granule)
        return self


@dataclass(frozen=True, order=True)
class Shard:
    """Dimension ``dim`` is divided; several segments divide each on its own (fused q, k, v)."""

    dim: int
    segments: tuple[Segment, ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Worked out once: search looks placements up a million times."""
        return hash((self.dim, self.segments))

    @property
    def size(self) -> int:
        """Elements of the dimension on all ranks together."""
        return sum(segment.size for segment in self.segments)

    def local_size(self, rank: int, ranks: int) -> int:
        """Elements of the dimension on one rank."""
        return sum(segment.local_size(rank, ranks) for segment in self.segments)

    def is_even(self, ranks: int) -> bool:
        """Whether every rank holds the same number of elements."""
        return all(segment.is_even(ranks) for segment in self.segments)

    def canonical(self, ranks: int) -> Shard:
        """The same division over ``ranks`` ranks, written in the one way that compares equal."""
        return Shard(self.dim, tuple(segment.canonical(ranks) for segment in self.segments))

    def moved(self, dim: int) -> Shard:
        """The same division of another dimension."""
        return Shard(dim, self.segments)

    def __str__(self) -> str:
        whole = len(self.segments) == 1 and self.segments[0].repeat == 1
        return f"S({self.dim})" if whole else f"S({self.dim}; {'+'.join(_segment_word(s) for s in self.segments)})"


def _segment_word(segment: Segment) -> str:
    size = segment.units * segment.granule
    return str(size) if segment.repeat == 1 else f"{segment.repeat}x{size}"


@dataclass(frozen=True, order=True)
class Word:
    """A placement that holds the whole shape on every rank."""

    name: str

    def __str__(self) -> str:
        return self.name


WHOLE = Word("W")
REPLICATE = Word("R")
PARTIAL = Word("P")

Placement = Shard | Word
Layout = tuple[Placement, ...]


def flat(segments: tuple[Segment, ...]) -> list[int]:
    """Segments as the flat integer list that op schemas carry."""
    return [number for s in segments for number in (s.repeat, s.units, s.granule)]


def unflat(numbers: Sequence[int]) -> tuple[Segment, ...]:
    """The inverse of ``flat``."""
    return tuple(Segment(*numbers[i : i + 3]) for i in range(0, len(numbers), 3))


def shard_whole(dim: int, size: int, ranks: int) -> Shard:
    """Dimension ``dim`` of ``size`` elements divided into balanced contiguous parts."""
    return Shard(dim, (Segment(1, size, 1),)).canonical(ranks)


def local_shape(shape: tuple[int, ...], layout: Layout, places: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """The shape that a rank holds of a tensor of ``shape``; ``places``: its (index, ranks) on each axis."""
    for placement, (rank, ranks) in zip(layout, places, strict=True):
        if isinstance(placement, Shard):
            local = placement.local_size(rank, ranks)
            shape = (*shape[: placement.dim], local, *shape[placement.dim + 1 :])
    return shape


def largest_shape(shape: tuple[int, ...], layout: Layout, axes: Axes) -> tuple[int, ...]:
    """The shape on the first rank, which holds at least as much as any other."""
    return local_shape(shape, layout, ((0, ranks) for _, ranks in axes))


def everywhere(placement: Placement, axes: Axes) -> Layout:
    """The same placement along each of ``axes``."""
    return (placement,) * len(axes)


def layout_word(layout: Layout) -> str:
    """As people read it, outermost axis first: ``S(1)``, ``S(0) W``."""
    return " ".join(map(str, layout))


def is_same_memory(source: Layout, target: Layout) -> bool:
    """Whether a value of one layout lies in memory as one of the other: what is WHOLE is copied by nobody to REPLICATE
    it."""
    return all(a == b or (a, b) == (WHOLE, REPLICATE) for a, b in zip(source, target, strict=True))


def partial_axes(layout: Layout, axes: Axes) -> tuple[str, ...]:
    """Over which the gradient of a parameter that lies so is Partial: one for those that refine it together."""
    found = list[str]()
    for axis, slots in wholes(axes):
        own = [axes[slot][0] for slot in slots if layout[slot] == REPLICATE and axes[slot][1] > 1]
        found += [axis] if 1 < len(own) == len(slots) else own
    return tuple(found)


def resized(shard: Shard, size: int, ranks: int) -> Shard | None:
    """The same division of a dimension that has another ``size``; None where there is none such for all ranks."""
    if shard.size == size:
        return shard
    segment = shard.segments[0]
    units, rest = divmod(size, segment.repeat)
    if len(shard.segments) > 1 or rest or units < ranks:
        return None
    return Shard(shard.dim, (Segment(segment.repeat, units, 1),)).canonical(ranks)


def joined(placements: Sequence[Placement], ranks: Sequence[int]) -> Placement | None:
    """The one placement on an axis that says what these on the axes that refine it do, outermost first; None where none
    does."""
    first, rest = placements[0], placements[1:]
    if isinstance(first, Word):
        return first if all(p == first for p in rest) else None
    return _nested(first, ranks[0], rest, ranks[1:])


def _nested(outer: Shard, ranks: int, rest: Sequence[Placement], others: Sequence[int]) -> Shard | None:
    if not rest:
        return outer
    inner = rest[0]
    if not isinstance(inner, Shard) or inner.dim != outer.dim:
        return None
    if not outer.is_even(ranks) or not inner.is_even(others[0]):
        return None
    pairs = list(zip(outer.canonical(ranks).segments, inner.canonical(others[0]).segments, strict=False))
    is_nested = all(a.repeat == b.repeat and a.granule == b.units * b.granule for a, b in pairs)
    if not is_nested or not len(outer.segments) == len(inner.segments) == len(pairs):
        return None
    both = Shard(outer.dim, tuple(Segment(a.repeat, a.units * b.units, b.granule) for a, b in pairs))
    return _nested(both, ranks * others[0], rest[1:], others[1:])


def reshape_shard(shard: Shard, shape: tuple[int, ...], target: tuple[int, ...], ranks: int) -> Shard | None:
    """Where a shard of a tensor of ``shape`` lies after a reshape to ``target``; None when no one dimension holds it.

    A reshape keeps the flat order, so a segment splits the flat index into [before, units, after]; the target
    dimension that sees the same split is found from the products of its neighbours.
    """
    before, size, after = math.prod(shape[: shard.dim]), shape[shard.dim], math.prod(shape[shard.dim + 1 :])
    if len(shard.segments) > 1:
        return _reshape_unchanged(shard, before, size, after, target)
    (segment,) = shard.canonical(ranks).segments
    head, tail = before * segment.repeat, segment.granule * after
    for dim, width in enumerate(target):
        ahead, behind = math.prod(target[:dim]), math.prod(target[dim + 1 :])
        if width == 1 or not (ahead and behind) or head % ahead or tail % behind:
            continue
        repeat, granule = head // ahead, tail // behind
        if repeat * segment.units * granule == width:
            return Shard(dim, (Segment(repeat, segment.units, granule),))
    return None


def _reshape_unchanged(shard: Shard, before: int, size: int, after: int, target: tuple[int, ...]) -> Shard | None:
    for dim, width in enumerate(target):
        if width == size and math.prod(target[:dim]) == before and math.prod(target[dim + 1 :]) == after:
            return shard.moved(dim)
    return None


def parse_placement(word: object) -> Placement:
    """The placement written by ``placement_json``; raises ValueError on anything else."""
    words = {word.name: word for word in (WHOLE, REPLICATE, PARTIAL)}
    if isinstance(word, str) and word in words:
        return words[word]
    if isinstance(word, list) and len(word) == 2 and _is_count(word[0]) and isinstance(word[1], list) and word[1]:
        rows = [row for row in word[1] if isinstance(row, list) and len(row) == 3]
        if len(rows) == len(word[1]) and all(_is_count(n) and n > 0 for row in rows for n in row):
            return Shard(word[0], tuple(Segment(*row) for row in rows))
    raise ValueError(f"{repr(word)[:60]} is not a placement: write W, R, P or [dim, [[repeat, units, granule], ...]]")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def placement_json(placement: Placement) -> str | list[object]:
    """W, R, P, or [dim, [[repeat, units, granule], ...]]."""
    if isinstance(placement, Word):
        return placement.name
    return [placement.dim, [[s.repeat, s.units, s.granule] for s in placement.segments]]


def parse_layout(words: object, axes: int | None = None) -> Layout:
    """The layout, on so many axes, that is written by ``layout_json``; raises ValueError on anything else."""
    if not isinstance(words, list | tuple) or len(words) != (axes or len(words)):
        many = axes or "as many"
        raise ValueError(f"{repr(words)[:60]} is not a layout: write a list of {many} placements, one an axis")
    return tuple(map(parse_placement, words))


def layout_json(layout: Layout) -> list[object]:
    """A list of placements, outermost axis first."""
    return [placement_json(placement) for placement in layout]


def local_share(shape: tuple[int, ...], layout: Layout, axes: Axes) -> float:
    """The share of a tensor's elements that the fullest rank holds."""
    share = 1.0
    for placement, (_, ranks) in zip(layout, axes, strict=True):
        if isinstance(placement, Shard) and shape[placement.dim]:
            local = placement.local_size(0, ranks)
            share *= local / shape[placement.dim]
            shape = (*shape[: placement.dim], local, *shape[placement.dim + 1 :])
    return share
