"""A mesh axis as a rank sees it, how it communicates over it, and how values are packed for that.

    whole  --split-->  packed (ranks, *part)  --reduce_scatter / all_to_all-->  part
    part   --all_gather-->  packed (ranks, *part)  --join-->  whole

``split`` and ``join`` copy only where the parts of a whole do not lie one behind the other in memory already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER
from partitioner.ops.cut_tensors import assemble, take
from partitioner.sharding.layout import Shard
from partitioner.sharding.mesh_axes import whole
from runtime.mesh.communication_log import Log, Phase
from runtime.mesh.groups import Groups
from runtime.ranks.doing import waits

Start = Callable[..., dist.Work | None]
# torch 2.13 renamed these two and warns of the old names.
all_gather: Start = vars(dist).get("all_gather_single") or vars(dist)["all_gather_into_tensor"]
reduce_scatter: Start = vars(dist).get("reduce_scatter_single") or vars(dist)["reduce_scatter_tensor"]


@dataclass(frozen=True)
class Axis:
    """A mesh axis as this rank sees it; ``phase`` is that in which forwards run."""

    name: str
    rank: int
    ranks: int
    group: dist.ProcessGroup
    log: Log
    scatters: bool
    phase: Phase = "forward"

    @staticmethod
    def of(groups: Groups, name: str, phase: Phase = "forward") -> Axis:
        """The axis of this name; gloo's own reduce_scatter was measured 3 times slower than all_to_all and a sum."""
        group, scatters = groups.group(name), groups.backend != "gloo"
        return Axis(name, groups.coordinates[name], groups.size(name), group, groups.log, scatters, phase)

    def sum(self, x: torch.Tensor, phase: Phase, owned: bool = False) -> torch.Tensor:
        """The sum over the axis, in place where ``x`` is ``owned``."""
        x = x.contiguous() if owned else x.clone(memory_format=torch.contiguous_format)
        self.log.add(self.name, ALL_REDUCE, x, phase)
        with self._timed():
            dist.all_reduce(x, group=self.group)
        return x

    def _timed(self) -> AbstractContextManager[object]:
        return self.log.timed(f"{whole(self.name)} communication")

    def sum_async(self, x: torch.Tensor, phase: Phase) -> Callable[[], torch.Tensor]:
        """Start summing a contiguous tensor in place; the function returned waits for it."""
        self.log.add(self.name, ALL_REDUCE, x, phase)
        work = dist.all_reduce(x, group=self.group, async_op=True)

        def finish() -> torch.Tensor:
            with self._timed():
                wait(work)
            return x

        return finish

    def gather(self, x: torch.Tensor, shard: Shard, phase: Phase) -> torch.Tensor:
        """The whole of what lies as ``shard``."""
        packed = x.new_empty((self.ranks, *x.shape))
        self.log.add(self.name, ALL_GATHER, packed, phase)
        with self._timed():
            all_gather(flat(packed), flat(x.contiguous()), group=self.group)
        return join(packed, shard)

    def scatter(self, x: torch.Tensor, shard: Shard, phase: Phase) -> torch.Tensor:
        """This rank's part of the sum over the axis."""
        return self.scatter_async(x, shard, phase)()

    def scatter_async(self, x: torch.Tensor, shard: Shard, phase: Phase) -> Callable[[], torch.Tensor]:
        """Start ``scatter``; the function returned waits for it."""
        packed = split(x, shard, self.ranks)
        self.log.add(self.name, REDUCE_SCATTER, packed, phase)
        received = torch.empty_like(packed[0] if self.scatters else packed)
        run: Start = reduce_scatter if self.scatters else dist.all_to_all_single
        work = run(flat(received), flat(packed), group=self.group, async_op=True)

        def finish() -> torch.Tensor:
            with self._timed():
                wait(work)
            if self.scatters:
                return received
            return received[0].add_(received[1]) if self.ranks == 2 else received.sum(0)

        return finish

    def exchange(self, x: torch.Tensor, source: Shard, target: Shard, phase: Phase) -> torch.Tensor:
        """From parts of one dimension to parts of another."""
        packed = split(x, target, self.ranks)
        received = torch.empty_like(packed)
        self.log.add(self.name, ALL_TO_ALL, packed, phase)
        with self._timed():
            dist.all_to_all_single(flat(received), flat(packed), group=self.group)
        return join(received, source)


@waits
def wait(work: dist.Work | None) -> None:
    """Until what was started is over; None where there was nothing to start."""
    if work is not None:
        work.wait()


def flat(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as one run of real numbers, which every backend can send."""
    return (torch.view_as_real(x) if x.is_complex() else x).view(-1)


def _cells(size: int, shard: Shard, ranks: int) -> tuple[int, int, int] | None:
    """(repeat, ranks, elements) of a dimension divided evenly by one segment."""
    segment = shard.segments[0]
    if len(shard.segments) > 1 or not segment.is_even(ranks):
        return None
    return segment.repeat, ranks, size // (segment.repeat * ranks)


def split(x: torch.Tensor, shard: Shard, ranks: int) -> torch.Tensor:
    """Every rank's part of a whole, one behind the other: (ranks, *part), contiguous."""
    cells = _cells(x.shape[shard.dim], shard, ranks)
    if cells is None:
        return torch.stack([take(x, shard, rank, ranks) for rank in range(ranks)])
    before, after = math.prod(x.shape[: shard.dim]), math.prod(x.shape[shard.dim + 1 :])
    packed = x.reshape(before, *cells, after).permute(2, 0, 1, 3, 4).contiguous()
    return packed.view(ranks, *x.shape[: shard.dim], cells[0] * cells[2], *x.shape[shard.dim + 1 :])


def join(packed: torch.Tensor, shard: Shard) -> torch.Tensor:
    """The inverse of ``split``."""
    ranks, shape = packed.shape[0], packed.shape[1:]
    size = shape[shard.dim] * ranks
    cells = _cells(size, shard, ranks)
    if cells is None:
        return assemble(list(packed.unbind()), shard)
    before, after = math.prod(shape[: shard.dim]), math.prod(shape[shard.dim + 1 :])
    parts = packed.view(ranks, before, cells[0], cells[2], after).permute(1, 2, 0, 3, 4)
    return parts.reshape(*shape[: shard.dim], size, *shape[shard.dim + 1 :])
