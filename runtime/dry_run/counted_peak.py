"""Peak bytes of a rank's step, counted: the real engine on fake tensors of the CPU, under torch's MemTracker.

Nothing is allocated and nothing is sent. Two steps run, for the optimizer's state comes with the first. Ops whose
shapes depend on values (experts that tokens choose) can't run on fake tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from partitioner.lowering.program import Parameter, Program
from runtime.dry_run.recording_group import own_group, world_of
from runtime.dry_run.valueless_engine import ValuelessEngine
from runtime.mesh.groups import Groups
from runtime.state.optimizer import factory
from runtime.state.parameters import materialize
from runtime.state.shard_pieces import Part

CPU = torch.device("cpu")
STEPS = 2


def tracked_peak(program: Program, batch: Mapping[str, torch.Tensor], rank: int) -> int:
    """Bytes of all tensors of ``rank`` at the fullest moment of a step with AdamW; ``batch`` is an example."""
    with world_of(rank, math.prod(program.mesh.values())) as tape:
        tape.buffers = tape.log.keep = True
        groups = Groups(program, CPU, "nccl", own_group, tape.log)
        tracker = _OfTensors()
        with FakeTensorMode(allow_non_fake_inputs=True), tracker:
            parameters = materialize(program, groups.coordinates, _empty, CPU)
            optimizer = factory(torch.optim.AdamW, lr=1e-3)
            engine = ValuelessEngine(program, groups, parameters, optimizer, clip=1.0)
            many = program.micro_batch * program.micro_batches
            samples = {name: torch.empty((many, *t.shape[1:]), dtype=t.dtype) for name, t in batch.items()}
            for _ in range(STEPS):
                engine.step(samples)
        return int(tracker.get_tracker_snapshot("peak")[CPU]["Total"])


class _OfTensors(MemTracker):
    """What it notes of modules, by hooks that keep their inputs, does not hold for those that run several times."""

    def __init__(self) -> None:
        super().__init__()
        self._mod_tracker = _NoModules()


class _NoModules:
    """In the place of torch's ModTracker."""

    is_bw = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def register_user_hooks(self, *_: object) -> None:
        """None are called."""

    def clear_user_hooks(self) -> None:
        """There are none."""


def _empty(parameter: Parameter, part: Part) -> torch.Tensor:
    return torch.empty(part.shape, dtype=parameter.held_dtype)
