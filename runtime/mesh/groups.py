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
        self._sizes, self._mesh, self._make_apart = program.sizes, dict(program.mesh), make
        self._made: dict[tuple[tuple[int, ...], ...], dist.ProcessGroup | None] = {}
        self._groups = {axis: self._make(rows, [axis]) for axis in program.mesh}
        for axis, parts in program.parts.items():
            for name in dict(parts) if axis != DP or program.shards > 1 else ():
                others = [other for other in dict(parts) if other != name]
                self._groups[name] = self._make(rows, [name], hidden=[axis], kept=others)
        self.state_mesh = self._state_mesh() if program.shards > 1 else None
        tied = {program.ranks_of(p.stages) for p in program.parameters.values()}
        self._tied: dict[tuple[int, ...], dist.ProcessGroup | None] = {
            ranks: self._make(rows, [PP], among=ranks) for ranks in sorted(tied) if len(ranks) > 1
        }
        self._lanes = self._make_lanes(rows, program.stages)
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
        self, rows: list[Coordinates], stages: tuple[Stage, ...]
    ) -> dict[tuple[int, int, bool], dist.ProcessGroup | None]:
        """NCCL has no tags and a communicator runs its sends in order: there each lane is a group of its own."""
        if self.backend != NCCL:
            return {}
        edges = dict.fromkeys((a.rank, b.rank) for a, b in pairwise(stages) if a.rank != b.rank)
        lanes: dict[tuple[int, int, bool], dist.ProcessGroup | None] = {}
        for color in apart(edges):
            cells = [cell for edge in color for cell in self._cells(rows, [PP], among=tuple(sorted(edge)))]
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

    def _make(
        self,
        rows: list[Coordinates],
        axes: list[str],
        hidden: Iterable[str] = (),
        kept: Iterable[str] = (),
        among: tuple[int, ...] | None = None,
    ) -> dist.ProcessGroup | None:
        """The group of this rank among all groups that differ in ``axes`` only; all ranks make them together."""
        cells = tuple(self._cells(rows, axes, hidden, kept, among))
        if cells and cells not in self._made:
            is_whole = cells == (tuple(range(dist.get_world_size())),)
            self._made[cells] = dist.group.WORLD if is_whole else self._make_apart(cells)
        return self._made.get(cells)

    def _cells(
        self,
        rows: list[Coordinates],
        axes: list[str],
        hidden: Iterable[str] = (),
        kept: Iterable[str] = (),
        among: tuple[int, ...] | None = None,
    ) -> list[tuple[int, ...]]:
        """The ranks that differ in ``axes`` only, wherever there are several.

        ``hidden`` coordinates are ignored, ``kept`` added to those that are equal in a group; ``among`` admits only
        these indices of the axis.
        """
        same = [a for a in [*self._mesh, *kept] if a not in {*axes, *hidden}]
        cells: dict[tuple[int, ...], list[int]] = {}
        for rank, row in enumerate(rows):
            if among is None or row[axes[0]] in among:
                cells.setdefault(tuple(row[a] for a in same), []).append(rank)
        return [tuple(ranks) for ranks in cells.values() if len(ranks) > 1]


def _present(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if group is None:
        raise ValueError("an axis of one rank has no process group")
    return group
