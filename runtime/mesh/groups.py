"""Where this rank stands on the Program's mesh, and the process groups in which it speaks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from partitioner.errors import InputError
from partitioner.lowering.program import Coordinates, Program, Stage, coordinates
from partitioner.ops.collective_kinds import ALL_REDUCE
from partitioner.sharding.mesh_axes import DP, PP, REPLICA, SHARD
from runtime.mesh.communication_log import Log
from runtime.mesh.make_groups import NCCL, Make, apart, is_split_from_world, made_together
from runtime.ranks.own_device import backend_of, own_device


class Groups:
    """The mesh from one rank's place. A world of 1 needs no process group.

    Axes are those of the mesh and what refines them. ``backend`` is the one whose ways are followed, by default that
    of the device; ``make`` makes groups that have no rank in common. Every communicator is there afterwards. Raises
    InputError when the world has not the plan's size.
    """

    def __init__(
        self, program: Program, device: torch.device | None = None, backend: str | None = None,
        make: Make = made_together, log: Log | None = None,
    ) -> None:  # fmt: skip
        world, ranks = math.prod(program.mesh.values()), dist.get_world_size() if dist.is_initialized() else 1
        if world != ranks:
            mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh.items())
            raise InputError(f"the plan needs {world} ranks ({mesh}), {ranks} run: start {world}, or plan again")
        rows = coordinates(program)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.coordinates: Coordinates = rows[self.rank]
        self.device = device or own_device()
        self.backend = backend or (backend_of(self.device) if dist.is_initialized() else "")
        self.log = log or Log()
        self.kernels: Counter[str] = Counter()  # products that ran on a kernel, and the reasons of those that did not
        self._sizes, self._make_apart = program.sizes, make
        self._made: dict[tuple[tuple[int, ...], ...], dist.ProcessGroup | None] = {}
        self._groups = {axis: self._make(_cells(rows, _without(program.mesh, axis))) for axis in program.mesh}
        for axis, parts in program.parts.items():
            for name in dict(parts) if axis != DP or program.shards > 1 else ():
                equal = [*_without(program.mesh, axis), *_without(dict(parts), name)]
                self._groups[name] = self._make(_cells(rows, equal))
        self.state_mesh = self._state_mesh() if program.shards > 1 else None
        off_pipeline = _without(program.mesh, PP)
        tied = {program.ranks_of(p.stages) for p in program.parameters.values()}
        self._tied: dict[tuple[int, ...], dist.ProcessGroup | None] = {
            ranks: self._make(_cells(rows, off_pipeline, ranks)) for ranks in sorted(tied) if len(ranks) > 1
        }
        self._lanes = self._make_lanes(rows, off_pipeline, program.stages)
        if self.backend == NCCL and not is_split_from_world():
            self._meet()

    def size(self, axis: str) -> int:
        """The ranks on an axis."""
        return self._sizes[axis]

    def group(self, axis: str) -> dist.ProcessGroup:
        """The ranks that differ from this one on ``axis`` alone, in the order of their index."""
        return _present(self._groups[axis])

    def tied(self, pipeline_ranks: tuple[int, ...]) -> dist.ProcessGroup:
        """These pipeline ranks, this one among them, with this one's place on the other axes."""
        return _present(self._tied[pipeline_ranks])

    def lane(self, source: int, target: int, backward: bool) -> tuple[dist.ProcessGroup, int]:
        """The group and tag of what pipeline rank ``source`` sends to ``target`` in one phase, in one order."""
        return _present(self._lanes.get((source, target, backward)) or self._groups[PP]), int(backward)

    def every(self) -> Iterator[tuple[str, dist.ProcessGroup]]:
        """The groups that this rank is in, with the axis that they are of, in the order in which they were made."""
        tied = ((f"{PP} (shared parameters)", group) for group in self._tied.values())
        lanes = ((f"{PP} ({'back' if back else 'forth'})", group) for (_, _, back), group in self._lanes.items())
        for axis, group in (*self._groups.items(), *tied, *lanes):
            if group is not None:
                yield axis, group

    def _state_mesh(self) -> DeviceMesh:
        """The ranks that divide state; where others hold it again, those as well."""
        device, shard = self.device.type, self.group(SHARD)
        if self.size(REPLICA) == 1:
            return DeviceMesh.from_group(shard, device, mesh_dim_names=(SHARD,))
        ranks = torch.tensor(dist.get_process_group_ranks(self.group(DP))).view(-1, self.size(SHARD))
        both = [self.group(REPLICA), shard]
        return DeviceMesh.from_group(both, device, mesh=ranks, mesh_dim_names=(REPLICA, SHARD))

    def _make_lanes(
        self, rows: list[Coordinates], equal: list[str], stages: tuple[Stage, ...]
    ) -> dict[tuple[int, int, bool], dist.ProcessGroup | None]:
        """NCCL has no tags and a communicator runs its sends in order: there each lane is a group of its own."""
        if self.backend != NCCL:
            return {}
        edges = dict.fromkeys((a.rank, b.rank) for a, b in pairwise(stages) if a.rank != b.rank)
        lanes: dict[tuple[int, int, bool], dist.ProcessGroup | None] = {}
        for color in apart(edges):
            cells = [cell for edge in color for cell in _cells(rows, equal, edge)]
            for back in (False, True):
                made = self._make_apart(cells)
                here = self.coordinates[PP]
                lanes |= {(b, a, True) if back else (a, b, False): made for a, b in color if here in (a, b)}
        return lanes

    def _meet(self) -> None:
        """A first word in every group. NCCL makes a communicator in the first that its ranks have, and waits for all of
        them: in the order of the groups all come, in that of a pipeline's sends and receives some wait for ever."""
        for axis, group in self.every():
            word = torch.zeros(1, device=self.device)
            self.log.add(axis, ALL_REDUCE, word, "start")
            dist.all_reduce(word, group=group)

    def _make(self, cells: list[tuple[int, ...]]) -> dist.ProcessGroup | None:
        """The group of this rank among these; all ranks make them together, and the same ones once."""
        key = tuple(cells)
        if key and key not in self._made:
            is_whole = key == (tuple(range(dist.get_world_size())),)
            self._made[key] = dist.group.WORLD if is_whole else self._make_apart(cells)
        return self._made.get(key)


def _cells(
    rows: list[Coordinates], equal: list[str], pipeline_ranks: tuple[int, ...] | None = None
) -> list[tuple[int, ...]]:
    """The ranks that are at one place of these axes, wherever there are several; only of these pipeline ranks."""
    cells: dict[tuple[int, ...], list[int]] = {}
    for rank, row in enumerate(rows):
        if pipeline_ranks is None or row[PP] in pipeline_ranks:
            cells.setdefault(tuple(row[axis] for axis in equal), []).append(rank)
    return [tuple(ranks) for ranks in cells.values() if len(ranks) > 1]


def _without(axes: Iterable[str], axis: str) -> list[str]:
    return [other for other in axes if other != axis]


def _present(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if group is None:
        raise ValueError("an axis of one rank has no process group")
    return group
