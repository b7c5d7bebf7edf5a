"""Gradients after backward, in a fixed order: sum over layouts' axes and tied stages, over dp, global norm, clip.

    backward's gradient --added up in the Program's type--> bucket --summed over ranks--> ``grad`` of what is updated

    bucket of        first micro-batch    last micro-batch's backward               afterwards
    -------------    -----------------    --------------------------------------    ---------------------------------
    plain weights    copied in            a bucket is full -> its all_reduce        wait
                                          over dp starts
    Partial, tied    copied in                                                      all_reduce over axes, tied, then dp
    cast, alone      copied in                                                      nothing

A bucket is one flat tensor that lives as long as the run. A gradient moves in as soon as the first micro-batch has made
it, later ones are added to it there, so that no gradient is held twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
import torch.distributed as dist
from torch import nn

from partitioner.lowering.program import Parameter, Program
from partitioner.ops.collective_kinds import ALL_REDUCE
from partitioner.sharding.layout import Shard, partial_axes
from partitioner.sharding.mesh_axes import DP, PP, SHARD
from runtime.execute.sharded_stages import ShardedStages
from runtime.mesh.axis import wait
from runtime.mesh.groups import Groups
from runtime.state.compute_copies import ComputeCopies

BUCKET_BYTES = 25_000_000


@dataclass
class _Bucket:
    """Gradients that are summed over the same axes; ``axes`` come before "dp". ``begun``: those that hold something."""

    axes: tuple[str, ...]
    tied: tuple[int, ...]
    names: list[str]
    views: list[torch.Tensor]
    flat: torch.Tensor
    waiting: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    work: dist.Work | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its gradients are summed over dp alone."""
        return not self.axes and not self.tied


class GradientSync:
    """The buckets of one rank. ``begin`` before the first backward, ``move`` after each, ``ready`` as gradients end,
    ``finish`` after the last.

    Ops read ``copies.read``, whose gradients come; in the end they are those of ``copies.held``.
    """

    def __init__(
        self, program: Program, groups: Groups, copies: ComputeCopies, sharded: ShardedStages | None,
        parameters: Mapping[str, nn.Parameter],
    ) -> None:  # fmt: skip
        self._groups, self._read, self._held = groups, copies.read, copies.held
        self._sharded, self._parameters = sharded, parameters
        rows = [p for p in program.parameters.values() if sharded and p.name in sharded.names and p.requires_grad]
        self._rows = {p.name: (partial_axes(p.layout, program.axes), _tied(program, p)) for p in rows}
        self._dp = groups.size(DP) > 1
        rows = [p for p in program.parameters.values() if p.name in copies.held and p.requires_grad]
        buckets = [b for key, names in self._keys(program, rows).items() for b in self._fill(key, names)]
        self._plain = [b for b in buckets if b.is_plain]
        self._late = [b for b in buckets if not b.is_plain]
        self._of = {name: (bucket, n) for bucket in buckets for n, name in enumerate(bucket.names)}
        self._started = 0

    def _keys(
        self, program: Program, rows: list[Parameter]
    ) -> dict[tuple[tuple[str, ...], tuple[int, ...], torch.dtype], list[str]]:
        """Names by what they are summed over; backward reaches the last parameters first."""
        found: dict[tuple[tuple[str, ...], tuple[int, ...], torch.dtype], list[str]] = {}
        for parameter in reversed(rows):
            axes = partial_axes(parameter.layout, program.axes)
            tied = _tied(program, parameter)
            if axes or tied or self._dp or parameter.copy_dtype or parameter.gradient_dtype != parameter.dtype:
                found.setdefault((axes, tied, parameter.gradient_dtype), []).append(parameter.name)
        return found

    def _fill(
        self, key: tuple[tuple[str, ...], tuple[int, ...], torch.dtype], names: list[str]
    ) -> Iterable[_Bucket]:
        """Buckets of these names in order, each as small as it can be above BUCKET_BYTES."""
        left = list(names)
        while left:
            taken: list[str] = []
            size = 0
            while left and size * key[2].itemsize < BUCKET_BYTES:
                taken.append(left.pop(0))
                size += self._held[taken[-1]].numel()
            flat = torch.zeros(size, dtype=key[2], device=self._groups.device)
            parts = flat.split([self._held[name].numel() for name in taken])
            views = [part.view_as(self._held[name]) for part, name in zip(parts, taken, strict=True)]
            yield _Bucket(key[0], key[1], taken, views, flat)

    @property
    def names(self) -> Iterable[str]:
        """The parameters whose gradients lie in buckets."""
        return self._of.keys()

    def begin(self) -> None:
        """Forget the last step."""
        if self._sharded is not None:
            self._sharded.clear()
        self._started = 0
        for bucket in chain(self._plain, self._late):
            bucket.waiting, bucket.begun, bucket.work = set(bucket.names), set(), None

    def move(self, name: str) -> None:
        """Let the gradient of ``name`` lie in its bucket; one that nothing has made is zero."""
        bucket, index = self._of[name]
        read, view = self._read[name], bucket.views[index]
        if read.grad is view:
            return
        if read.grad is not None:
            (view.add_ if name in bucket.begun else view.copy_)(read.grad)
        elif name not in bucket.begun:
            view.zero_()
        bucket.begun.add(name)
        is_same = read is self._held[name] and view.dtype == read.dtype
        read.grad = view if is_same else None

    def ready(self, name: str) -> None:
        """The gradient of ``name`` is complete on this rank: start the buckets that are full.

        Buckets start in one order on all ranks, whatever the order in which they fill.
        """
        bucket, _ = self._of[name]
        if name not in bucket.waiting:
            return
        self.move(name)
        bucket.waiting.discard(name)
        while self._started < len(self._plain) and not self._plain[self._started].waiting:
            if self._dp:
                self._plain[self._started].work = self._sum(self._plain[self._started].flat, (), DP)
            self._started += 1

    def _sum(self, flat: torch.Tensor, tied: tuple[int, ...], axis: str) -> dist.Work | None:
        group = self._groups.tied(tied) if axis == PP else self._groups.group(axis)
        self._groups.log.add(axis, ALL_REDUCE, flat, "sync")
        return dist.all_reduce(flat, group=group, async_op=True)

    def _sum_rows(self) -> None:
        """Of what dp has summed and divided, the sums over axes and tied stages, each rank's rows by themselves."""
        for name, (axes, tied) in self._rows.items():
            assert self._sharded is not None
            held, found = self._parameters[name], self._sharded.gradient(name)
            held.grad = torch.zeros_like(held) if found is None else found
            for axis in (*axes, *([PP] if tied else [])):
                wait(self._sum(held.grad, tied, axis))

    def finish(self) -> None:
        """Sum what is left; a parameter that no micro-batch used counts as zero."""
        for name in self._of:
            self.ready(name)
        for bucket in self._late:
            for axis in (*bucket.axes, *([PP] if bucket.tied else []), *([DP] if self._dp else [])):
                wait(self._sum(bucket.flat, bucket.tied, axis))
        for bucket in self._plain:
            if bucket.work is not None:
                wait(bucket.work)
        for name, (bucket, index) in self._of.items():
            held = self._held[name]
            held.grad = bucket.views[index].to(held.dtype)
        self._sum_rows()


def _tied(program: Program, parameter: Parameter) -> tuple[int, ...]:
    """The pipeline ranks whose gradients are added up, where there are several."""
    ranks = program.ranks_of(parameter.stages)
    return ranks if len(ranks) > 1 else ()


def counts_here(program: Program, groups: Groups, parameter: Parameter) -> bool:
    """Whether this rank is the one that counts the value, of those that hold the same along pp, the axes along which
    ops lie, and what divides dp."""
    here = groups.coordinates
    if program.shards > 1 and not program.is_sharded(parameter) and here[SHARD] != 0:
        return False
    rows = zip(parameter.layout, program.axes, strict=True)
    first = all(isinstance(placement, Shard) or here[axis] == 0 for placement, (axis, _) in rows)
    return first and here[PP] == program.stages[parameter.stages[0]].rank


class GradientNorm:
    """The norm of all gradients of the model together (float64, scalar), the same on every rank."""

    def __init__(self, program: Program, groups: Groups, parameters: Mapping[str, nn.Parameter]) -> None:
        rows = [p for p in program.parameters.values() if p.name in parameters and counts_here(program, groups, p)]
        self._counted = [parameters[p.name] for p in rows if p.requires_grad]
        self._groups = groups
        self._axes = [a for a in (PP, *(a for a, _ in program.axes), SHARD) if groups.size(a) > 1]

    def __call__(self) -> torch.Tensor:
        """Called on all ranks, after the gradients are synced."""
        grads: dict[torch.dtype, list[torch.Tensor]] = {}
        for grad in (p.grad for p in self._counted if p.grad is not None):
            grads.setdefault(grad.dtype, []).append(grad)
        total = torch.zeros((), dtype=torch.float64, device=self._groups.device)
        for dtype, alike in grads.items():
            wide = None if dtype.itemsize >= 4 else torch.float32
            total += torch.stack(torch.ops.aten._foreach_norm.Scalar(alike, 2, wide)).double().square().sum()
        for axis in self._axes:
            self._groups.log.add(axis, ALL_REDUCE, total, "control")
            dist.all_reduce(total, group=self._groups.group(axis))
        return total.sqrt()
