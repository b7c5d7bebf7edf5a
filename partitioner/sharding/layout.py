"""How a tensor lies on the mesh.

A Layout holds one placement for each mesh axis it is written for (normally only ``tp``):

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


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


def local_shape(shape: tuple[int, ...], placement: Placement, rank: int, ranks: int) -> tuple[int, ...]:
    """The shape that one rank holds of a tensor of ``shape``."""
    if not isinstance(placement, Shard):
        return shape
    local = placement.local_size(rank, ranks)
    return (*shape[: placement.dim], local, *shape[placement.dim + 1 :])


def largest_local_shape(shape: tuple[int, ...], placement: Placement, ranks: int) -> tuple[int, ...]:
    """The shape on rank 0, which holds at least as much as any other rank."""
    return local_shape(shape, placement, 0, ranks)


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
        if width == 1 or head % ahead or tail % behind:
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
    if isinstance(word, list) and len(word) == 2 and isinstance(word[0], int) and isinstance(word[1], list):
        rows = [row for row in word[1] if isinstance(row, list) and len(row) == 3]
        if len(rows) == len(word[1]) and all(isinstance(n, int) and n > 0 for row in rows for n in row):
            return Shard(word[0], tuple(Segment(*row) for row in rows))
    raise ValueError(f"{word!r} is not a placement: write W, R, P or [dim, [[repeat, units, granule], ...]]")


def placement_json(placement: Placement) -> str | list[object]:
    """W, R, P, or [dim, [[repeat, units, granule], ...]]."""
    if isinstance(placement, Word):
        return placement.name
    return [placement.dim, [[s.repeat, s.units, s.granule] for s in placement.segments]]


def local_share(shape: tuple[int, ...], placement: Placement, ranks: int) -> float:
    """The share of a tensor's elements that the fullest rank holds."""
    if not isinstance(placement, Shard) or not shape[placement.dim]:
        return 1.0
    return placement.local_size(0, ranks) / shape[placement.dim]
