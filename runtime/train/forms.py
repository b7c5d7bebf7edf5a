"""Other forms of a batch than the plan's: other lengths, fewer samples, evaluation. A Program for each, made once.

    batch --agreed over dp--> lengths, samples --> Form --known, or traced and lowered--> Program --> worker
          --padded--------------------------------------------------------------------> its batch

A length that is not the plan's gets a Program of its own; of those at most ``most`` are kept. Beyond, a batch is padded
to one that is kept and long enough, where the values to pad with are given; else the one used least lately is let go.
Fewer samples run in micro-batches of one, which are filled up with micro-batches that never count; or, where a loss is
of the whole batch in one, in one that is smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from partitioner.errors import InputError
from partitioner.lowering.program import Program
from partitioner.ops.collective_kinds import ALL_REDUCE
from partitioner.sharding.mesh_axes import DP
from partitioner.user_code.batches import flat
from runtime.execute.sharded_stages import ShardedStages
from runtime.execute.worker import Worker
from runtime.mesh.groups import Groups
from runtime.ranks.doing import waits
from runtime.train.step_batches import Counted, StepBatches

Lengths = tuple[tuple[str, tuple[int, ...]], ...]  # of each input: its dimensions behind that of samples


@dataclass(frozen=True)
class Form:
    """What a Program is made for."""

    lengths: Lengths
    micro_batch: int
    trains: bool = True


@dataclass(frozen=True)
class Ready:
    """A Program's ends on this rank."""

    program: Program
    worker: Worker
    batches: StepBatches


MakeWorker = Callable[[Program, Groups, Mapping[str, nn.Parameter], ShardedStages | None], Worker]


def ready_of(
    worker: MakeWorker, groups: Groups, read: Mapping[str, nn.Parameter], sharded: ShardedStages | None,
    program: Program,
) -> Ready:  # fmt: skip
    """The ends of a Program; ``read``: the rank's parameters as ops read them, but for those that are ``sharded``."""
    made = worker(program, groups, read, sharded)
    return Ready(program, made, StepBatches(program, groups, made))


@dataclass(frozen=True)
class Making:
    """``program(form)`` is traced and lowered on every rank alike; ``most`` other lengths than the plan's are kept;
    ``padding``: by input, the value that may stand behind a sample's end. ``is_whole``: the loss is of one micro-batch
    that holds the whole batch, for it can't be taken apart."""

    program: Callable[[Form], Program]
    most: int = 8
    padding: Mapping[str, float] = field(default_factory=dict[str, float])
    is_whole: bool = False


@dataclass(frozen=True)
class Agreed:
    """Of a batch: its lengths ``here``, the ``longest`` of all data ranks, its ``samples`` here, and which of all
    count, None where no rank lacks any."""

    here: Lengths
    longest: Lengths
    samples: int
    counted: Counted | None


@dataclass(frozen=True)
class Fitted:
    """A batch, the ends that run it, and which of its samples count (None: all). ``is_new``: they have never run."""

    ready: Ready
    batch: Mapping[str, Any]
    counted: Counted | None
    is_new: bool


class Forms:
    """Those of one rank's engine. Without ``making`` a batch has the plan's form, and nothing is agreed."""

    def __init__(
        self, groups: Groups, plan: Ready, making: Making | None, ready: Callable[[Program], Ready]
    ) -> None:
        self._groups, self._plan, self._making, self.ready = groups, plan, making, ready
        program = plan.program
        rows = [(name, program.shapes[name]) for name in program.inputs] if making else []
        self._own = Form(tuple((n, _behind(row, n in program.batched)) for n, row in rows), program.micro_batch)
        self._kept: dict[Form, Ready] = {self._own: plan}
        self._used: dict[Lengths, None] = {}  # other lengths, the latest last

    def agreed(self, batch: Mapping[str, Any]) -> Agreed | None:
        """What all data ranks' parts of a batch are together; None where there are no other forms, or where the part is
        not even of the plan's kind. All ranks call it."""
        if self._making is None or (here := self._lengths(flat(batch).tensors)) is None:
            return None
        samples = self._samples(flat(batch).tensors)
        missing, longest = self._largest(self._plan.batches.samples - samples, here)
        return Agreed(here, longest, samples, self._counted(samples) if missing else None)

    def fitted(self, batch: Mapping[str, Any], agreed: Agreed | None, trains: bool = True) -> Fitted:
        """What runs this data rank's part of a batch; raises InputError where nothing can. Nothing is sent."""
        making = self._making
        if making is None and not trains:
            raise InputError("this engine was made without the model, which evaluation traces: use parallelize")
        if making is None or agreed is None:  # what is missing or misshapen is said by what reads the batch
            return Fitted(self._plan, batch, None, False)
        lengths, counted = self._chosen(agreed.longest, making), agreed.counted
        size = agreed.samples if making.is_whole else 1 if counted else self._own.micro_batch
        ready, is_new = self._of_form(Form(lengths, size, trains), making)
        given = flat(batch)
        tensors = given.tensors
        if agreed.here != lengths:
            tensors = {n: _padded(n, t, dict(lengths).get(n), making.padding) for n, t in tensors.items()}
        if counted:
            batched = self._plan.program.batched
            tensors = {n: _filled(t, ready.batches.samples) if n in batched else t for n, t in tensors.items()}
        return Fitted(ready, given.together(tensors), counted, is_new)

    def _of_form(self, form: Form, making: Making) -> tuple[Ready, bool]:
        if form in self._kept:
            return self._kept[form], False
        program = making.program(form)
        _check_state(self._plan.program, program, form.trains)
        self._kept[form] = self.ready(program)
        return self._kept[form], True

    def _lengths(self, tensors: Mapping[str, torch.Tensor]) -> Lengths | None:
        """Of a batch; None of one whose tensors are others than the plan's."""
        found: list[tuple[str, tuple[int, ...]]] = []
        for name, own in self._own.lengths:
            tensor = tensors.get(name)
            is_batched = name in self._plan.program.batched
            if tensor is None or tensor.dim() != len(own) + is_batched:
                return None
            found.append((name, _behind(tuple(tensor.shape), is_batched)))
        return tuple(found)

    def _samples(self, tensors: Mapping[str, torch.Tensor]) -> int:
        most, counts = self._plan.batches.samples, {n: tensors[n].shape[0] for n in self._plan.program.batched}
        for name, many in counts.items():
            if many != next(iter(counts.values())) or not 0 < many <= most:
                raise InputError(f"{name} has {many} samples, this rank's part of a step has {most}, or fewer of all")
        return next(iter(counts.values()), most)

    @waits
    def _largest(self, missing: int, here: Lengths) -> tuple[int, Lengths]:
        """The most samples that any data rank lacks, and the longest lengths."""
        if self._groups.size(DP) == 1:
            return missing, here
        numbers = torch.tensor([missing, *(n for _, row in here for n in row)], device=self._groups.device)
        self._groups.log.add(DP, ALL_REDUCE, numbers, "control")
        dist.all_reduce(numbers, dist.ReduceOp.MAX, self._groups.group(DP))
        most, *flat_rows = [int(n) for n in numbers.tolist()]
        rows = iter(flat_rows)
        return most, tuple((name, tuple(next(rows) for _ in row)) for name, row in here)

    @waits
    def _counted(self, samples: int) -> Counted:
        total = torch.tensor(samples, device=self._groups.device)
        if self._groups.size(DP) > 1:
            self._groups.log.add(DP, ALL_REDUCE, total, "control")
            dist.all_reduce(total, group=self._groups.group(DP))
        return Counted(samples, int(total))

    def _chosen(self, asked: Lengths, making: Making) -> Lengths:
        """What a batch of these lengths runs as."""
        if asked == self._own.lengths:
            return asked
        if asked not in self._used and len(self._used) >= making.most:
            large = [row for row in (self._own.lengths, *self._used) if _holds(row, asked, making.padding)]
            if large:
                return min(large, key=_volume)
            if not making.most:
                raise InputError(
                    f"a batch is of {_words(asked)}, the model was traced with {_words(self._own.lengths)}: pad it, or "
                    "let more lengths be kept (lengths=N)"
                )
            oldest = next(iter(self._used))
            del self._used[oldest]
            self._kept = {form: ready for form, ready in self._kept.items() if form.lengths != oldest}
        self._used.pop(asked, None)
        self._used[asked] = None
        return asked


def _behind(shape: tuple[int, ...], is_batched: bool) -> tuple[int, ...]:
    return shape[1:] if is_batched else shape


def _holds(large: Lengths, small: Lengths, padding: Mapping[str, float]) -> bool:
    """Whether a batch can be padded so."""
    rows = [(name, row, dict(large)[name]) for name, row in small]
    return all(a == b or (name in padding and all(x <= y for x, y in zip(a, b, strict=True))) for name, a, b in rows)


def _volume(lengths: Lengths) -> int:
    return sum(sum(row) for _, row in lengths)


def _words(lengths: Lengths) -> str:
    return ", ".join(f"{name} {' x '.join(map(str, row)) or 'scalar'}" for name, row in lengths)


def _padded(
    name: str, tensor: torch.Tensor, row: tuple[int, ...] | None, padding: Mapping[str, float]
) -> torch.Tensor:
    """With values behind its end, up to the lengths of ``row``."""
    if row is None or tuple(tensor.shape[tensor.dim() - len(row) :]) == row:
        return tensor
    if name not in padding:
        raise InputError(
            f"{name} is shorter here than on another data rank: pad all to one length, or say what to pad with "
            f"(padding={{{name!r}: VALUE}})"
        )
    more = [n for size, own in zip(row[::-1], tensor.shape[::-1], strict=False) for n in (0, size - own)]
    return F.pad(tensor, more, value=padding[name])


def _filled(tensor: torch.Tensor, samples: int) -> torch.Tensor:
    """Up to so many samples, by the last again."""
    return tensor[torch.arange(samples, device=tensor.device).clamp(max=tensor.shape[0] - 1)]


def _check_state(plan: Program, other: Program, trains: bool) -> None:
    """Whether both Programs' parameters lie alike; a fault of ours where they don't."""
    for name, parameter in other.parameters.items():
        own = plan.parameters[name]
        alike = own == parameter if trains else (own.shape, own.dtype, own.layout) == (
            parameter.shape, parameter.dtype, parameter.layout
        ) and (not parameter.is_read or set(parameter.stages) <= set(own.stages))  # fmt: skip
        if not alike:
            raise InputError(f"{name} is read otherwise by batches of this form: no Program runs them")
