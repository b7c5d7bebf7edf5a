"""Peak bytes of a rank's step, counted: the real engine on fake tensors of the CPU, under torch's MemTracker.

Nothing is allocated and nothing is sent. Two steps run, for the optimizer's state comes with the first. Ops whose
shapes depend on values (experts that tokens choose) can't run on fake tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from partitioner.lowering.program import Parameter, Program
from runtime.dry_run.recording_group import world_of
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
        tape.buffers = True
        groups = Groups(program, CPU, "nccl")
        groups.log.keep = True
        tape.log = groups.log
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
    """What it would tell of modules does not hold for those that run several times in a step."""

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        pass

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        pass

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None:
        pass

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None:
        pass


def _empty(parameter: Parameter, part: Part) -> torch.Tensor:
    return torch.empty(part.shape, dtype=parameter.held_dtype)
