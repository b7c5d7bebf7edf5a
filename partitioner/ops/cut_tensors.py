"""A tensor cut as a shard says, and put together again."""

from __future__ import annotations

import torch

from partitioner.sharding.layout import Shard


def take(tensor: torch.Tensor, shard: Shard, rank: int, ranks: int) -> torch.Tensor:
    """The part of ``tensor`` that ``rank`` of ``ranks`` holds (a view where one segment of repeat 1 allows it)."""
    parts: list[torch.Tensor] = []
    offset = 0
    for segment in shard.segments:
        run = tensor.narrow(shard.dim, offset, segment.size)
        start, end = segment.unit_range(rank, ranks)
        if segment.repeat == 1:
            parts.append(run.narrow(shard.dim, start * segment.granule, (end - start) * segment.granule))
        else:
            shape = (segment.repeat, segment.units, segment.granule)
            part = run.unflatten(shard.dim, shape).narrow(shard.dim + 1, start, end - start)
            parts.append(part.flatten(shard.dim, shard.dim + 2))
        offset += segment.size
    return parts[0] if len(parts) == 1 else torch.cat(parts, shard.dim)


def assemble(parts: list[torch.Tensor], shard: Shard) -> torch.Tensor:
    """The whole tensor from every rank's part, in rank order; the inverse of ``take``."""
    ranks, dim = len(parts), shard.dim
    runs: list[torch.Tensor] = []
    offsets = [0] * ranks
    for segment in shard.segments:
        pieces: list[torch.Tensor] = []
        for rank, part in enumerate(parts):
            size = segment.local_size(rank, ranks)
            piece = part.narrow(dim, offsets[rank], size)
            offsets[rank] += size
            pieces.append(piece if segment.repeat == 1 else piece.unflatten(dim, (segment.repeat, -1)))
        run = torch.cat(pieces, dim if segment.repeat == 1 else dim + 1)
        runs.append(run if segment.repeat == 1 else run.flatten(dim, dim + 1))
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim)
