"""Where a rank's part of a tensor lies in the whole: the rectangles that both have in common.

    whole, one dimension (fused q, k, v on 2 ranks)      q q q q k k v v
    part of rank 1                                           q q   k   v
    pieces (offset, size, local offset)                  (2, 2, 0) (5, 1, 2) (7, 1, 3)

A piece says nothing of ranks or layouts, so files written as pieces under one plan are read under any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import torch

from partitioner.lowering.program import Parameter, Program
from partitioner.lowering.shard_groups import chunk_rows
from partitioner.sharding.layout import Layout, Shard
from partitioner.sharding.mesh_axes import SHARD

Run = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """A rectangle: ``local[local_offset + i] is whole[offset + i]`` for 0 <= i < size in every dimension."""

    offset: tuple[int, ...]
    size: tuple[int, ...]
    local_offset: tuple[int, ...]

    @property
    def whole(self) -> tuple[slice, ...]:
        """The index of the rectangle in the whole tensor."""
        return _slices(self.offset, self.size)

    @property
    def local(self) -> tuple[slice, ...]:
        """The index of the rectangle in the rank's part."""
        return _slices(self.local_offset, self.size)


@dataclass(frozen=True)
class Part:
    """What one rank holds of a tensor of shape ``whole``: ``pieces`` (none when empty), side by side in ``shape``."""

    whole: tuple[int, ...]
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def part(
    shape: tuple[int, ...], layout: Layout, places: Sequence[tuple[int, int]], chunk: tuple[int, int] | None = None
) -> Part:
    """The part that one rank holds of a tensor of ``shape``.

    ``places`` gives (index, size) of the rank on each axis of ``layout``; a later axis divides what an earlier left.
    Of the rows that are left then, only those of ``chunk``: (index, size) among the ranks that divide state.
    """
    rows = _runs(shape, layout, places)
    if chunk is not None:
        start, end = chunk_rows(sum(size for _, size in rows[0]), *chunk)
        rows[0] = _within(rows[0], [(start, end - start)])
    rectangles = product(*(_placed(runs) for runs in rows))
    local = tuple(sum(size for _, size in runs) for runs in rows)
    return Part(shape, local, tuple(_piece(columns) for columns in rectangles))


def places(program: Program, coordinates: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """(index, size) of a rank on each axis along which the Program's ops lie."""
    return tuple((coordinates[axis], size) for axis, size in program.axes)


def rank_parameters(program: Program, pipeline_rank: int) -> list[Parameter]:
    """The parameters that the stages of one pipeline rank read, in the Program's order."""
    return [p for p in program.parameters.values() if pipeline_rank in program.ranks_of(p.stages)]


def part_of(program: Program, parameter: Parameter, coordinates: Mapping[str, int]) -> Part:
    """The part of ``parameter`` that the rank at ``coordinates`` holds from step to step."""
    chunk = (coordinates[SHARD], program.shards) if program.is_sharded(parameter) else None
    return part(parameter.shape, parameter.layout, places(program, coordinates), chunk)


def cut(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """One rank's part of ``whole``, in memory of its own."""
    local = whole.new_empty(part.shape)
    for piece in part.pieces:
        local[piece.local] = whole[piece.whole]
    return local


def _slices(offset: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(offset, size, strict=True))


def _piece(columns: tuple[tuple[int, int, int], ...]) -> Piece:
    offset, size, local = zip(*columns, strict=True) if columns else ((), (), ())
    return Piece(offset, size, local)


def _placed(runs: list[Run]) -> list[tuple[int, int, int]]:
    ends = accumulate((size for _, size in runs), initial=0)
    return [(start, size, local) for (start, size), local in zip(runs, ends, strict=False)]


def _runs(shape: tuple[int, ...], layout: Layout, places: Sequence[tuple[int, int]]) -> list[list[Run]]:
    rows: list[list[Run]] = [[(0, size)] for size in shape]
    for placement, (rank, ranks) in zip(layout, places, strict=True):
        if isinstance(placement, Shard):
            rows[placement.dim] = _within(rows[placement.dim], _shard_runs(placement, rank, ranks))
    return rows


def _shard_runs(shard: Shard, rank: int, ranks: int) -> list[Run]:
    runs: list[Run] = []
    offset = 0
    for segment in shard.segments:
        start, end = segment.unit_range(rank, ranks)
        stride = segment.units * segment.granule
        first = offset + start * segment.granule
        runs += [(first + i * stride, (end - start) * segment.granule) for i in range(segment.repeat)]
        offset += segment.size
    return runs


def _within(outer: list[Run], inner: list[Run]) -> list[Run]:
    """``inner`` counts elements of ``outer`` laid end to end; the same elements, counted in the whole dimension."""
    found: list[Run] = []
    for start, size in inner:
        for begin, length, local in _placed(outer):
            low, high = max(start, local), min(start + size, local + length)
            if low < high:
                _append(found, (begin + low - local, high - low))
    return found


def _append(runs: list[Run], run: Run) -> None:
    if runs and runs[-1][0] + runs[-1][1] == run[0]:
        runs[-1] = (runs[-1][0], runs[-1][1] + run[1])
    else:
        runs.append(run)
