"""A step's micro-batches: slices of the batch, each with the keys, the counts and the shares that a step gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from partitioner.errors import InputError
from partitioner.graph.counts import Count
from partitioner.graph.step_inputs import BATCH_SHARE, SAMPLE_COUNT, SAMPLE_KEYS, STEP_KEY
from partitioner.lowering.program import Program
from partitioner.ops.collective_kinds import ALL_REDUCE
from partitioner.ops.own_ops import mix64
from partitioner.sharding.mesh_axes import DP
from partitioner.user_code.batches import flat
from runtime.execute.worker import Named, Worker
from runtime.mesh.groups import Groups
from runtime.train.shared_inputs import check_shared

Holds = Callable[[torch.Tensor], bool]


class Counted(NamedTuple):
    """How many samples of a batch count: of this data rank's part, whose first they are, and of all parts."""

    here: int
    everywhere: int


def own_samples(batch: Mapping[str, Any], batched: Collection[str], groups: Groups) -> dict[str, Any]:
    """A data rank's part of a global batch, the parts as even as can be; ``batched``: what carries samples."""
    given, ranks, rank = flat(batch), groups.size(DP), groups.coordinates[DP]
    tensors = {n: t for n, t in given.tensors.items() if n in batched}
    for name, tensor in tensors.items():
        if tensor.shape[0] < ranks:
            raise InputError(f"{name} has {tensor.shape[0]} samples, there are {ranks} data ranks: drop this batch")
    return given.together(given.tensors | {n: t.tensor_split(ranks)[rank] for n, t in tensors.items()})


class StepBatches:
    """Of one Program on this rank."""

    def __init__(self, program: Program, groups: Groups, worker: Worker) -> None:
        self._program, self._groups = program, groups
        self._buffers = worker.buffers
        self.samples = program.micro_batch * program.micro_batches  # of a data rank's part
        calls = [c for stage in program.stages for c in (*stage.calls, stage.prelude) if c]
        self._reads = {name for call in (*calls, *program.counts) for name in call.arguments}
        self._counts = {c.name: worker.bind(c.module, "control").forward for c in program.counts}

    def of(self, batch: Mapping[str, Any], step: int, holds: Holds, counted: Counted | None = None) -> list[Named]:
        """Contiguous slices of this data rank's part of the batch, each with what a step gives beside it.

        ``holds`` says whether a condition on values is true. ``counted``: how many samples count, None: all.
        Raises InputError for a batch of other shapes than the Program's, or one in which no target is counted.
        """
        program = self._program
        size, many, batched = program.micro_batch, program.micro_batches, program.batched
        given = flat(batch)
        _check_plain(given.plain, program.plain)
        counts = {name: size * many if name in batched else None for name in program.inputs}
        whole = {
            n: _checked(given.tensors, n, count, program.shapes.get(n)).to(self._groups.device)
            for n, count in counts.items()
        }
        check_shared({n: t for n, t in whole.items() if n not in batched}, self._groups, holds)
        rows = [{n: t[m * size : (m + 1) * size] if n in batched else t for n, t in whole.items()} for m in range(many)]
        for m, row in enumerate(rows):
            row |= self._of_step(step, m, counted)
        self._count(rows[: counted.here // size] if counted else rows, rows, step, holds)
        return rows

    def _of_step(self, step: int, micro_batch: int, counted: Counted | None) -> Named:
        """The keys of samples and step, how many samples the global batch has, and the micro-batch's share of them."""
        program, device = self._program, self._groups.device
        samples = counted.everywhere if counted else self.samples * self._groups.size(DP)
        share = program.micro_batch / samples
        made = {
            SAMPLE_KEYS: lambda: self._sample_keys(step, micro_batch),
            STEP_KEY: lambda: torch.tensor(mix64(program.seed, step), device=device),
            SAMPLE_COUNT: lambda: torch.tensor(samples, device=device),
            BATCH_SHARE: lambda: torch.tensor(share, dtype=torch.float64).to(device),
        }
        return {name: make() for name, make in made.items() if name in self._reads}

    def _sample_keys(self, step: int, micro_batch: int) -> torch.Tensor:
        """Data rank r holds samples [r n, (r + 1) n) of the global batch, micro-batches are contiguous in them."""
        size = self._program.micro_batch
        first = (self._groups.coordinates[DP] * self._program.micro_batches + micro_batch) * size
        keys = [mix64(self._program.seed, step, first + i) for i in range(size)]
        return torch.tensor(keys, dtype=torch.int64, device=self._groups.device)

    def _count(self, counted: list[Named], rows: list[Named], step: int, holds: Holds) -> None:
        """Give each micro-batch the counts of the global batch: one sum over data ranks for each level of counts."""
        for level in self._program.count_levels:
            parts = [torch.stack([self._part(count, row) for row in counted]).sum(0) for count in level]
            numbers = torch.cat(parts)
            if self._groups.size(DP) > 1:
                self._groups.log.add(DP, ALL_REDUCE, numbers, "control")
                dist.all_reduce(numbers, group=self._groups.group(DP))
            for count, part in zip(level, numbers.split([p.numel() for p in parts]), strict=True):
                if count.divides and count.numbers == 1 and not holds(part != 0):
                    raise InputError(
                        f"step {step}: no target of the batch is counted, all labels are ignored or masked: "
                        "the loss would be divided by 0"
                    )
                value = part.view(count.shape).to(count.dtype)
                for row in rows:
                    row[count.name] = value

    def _part(self, count: Count, row: Named) -> torch.Tensor:
        """What one micro-batch adds to a count (float64, flat)."""
        values = {**self._buffers, **row}
        with torch.no_grad():
            return self._counts[count.name](*(values[n] for n in count.arguments)).double().flatten()


def _check_plain(given: Mapping[str, object], traced: Mapping[str, object]) -> None:
    """What is no tensor was traced as it is: a program holds for that value alone."""
    for name in {**given, **traced}:
        if name not in given or name not in traced or given[name] != traced[name]:
            here, there = (repr(v[name]) if name in v else "nothing" for v in (given, traced))
            raise InputError(f"{name} of the batch is {here}, the model was traced with {there}: trace it again")


def _checked(
    batch: Mapping[str, torch.Tensor], name: str, samples: int | None, shape: tuple[int, ...] | None
) -> torch.Tensor:
    """A tensor of the batch; ``samples``: how many it must have, None where it has none. ``shape``: a micro-batch's."""
    tensor = batch.get(name)
    if tensor is None:
        raise InputError(f"the batch has no {name}: it has {', '.join(batch) or 'nothing'}")
    if samples is not None and (tensor.dim() == 0 or tensor.shape[0] != samples):
        have = tensor.shape[0] if tensor.dim() else "no"
        raise InputError(f"{name} has {have} samples, this rank's part of a step has {samples}")
    first = 0 if samples is None else 1
    if shape is not None and tuple(tensor.shape[first:]) != shape[first:]:
        each = " a sample" if first else ""
        raise InputError(
            f"{name} is of shape {tuple(tensor.shape[first:])}{each}, the model was traced with {shape[first:]}: "
            "pad it, or trace the model with batches of this shape"
        )
    return tensor
