"""An engine of this rank on the small model's weights, and its part of a batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import small
import torch

from partitioner.lowering.program import Parameter, Program
from runtime.mesh.groups import Groups
from runtime.state.optimizer import Given, factory
from runtime.state.parameters import materialize
from runtime.state.shard_pieces import Part, cut
from runtime.train.engine import Engine

RATE, CLIP = 0.05, 0.5


ADAMW = partial(torch.optim.AdamW, lr=RATE)


def build(program: Program, clip: float | None = CLIP, optimizer: Given = ADAMW, **options: Any) -> Engine:
    """An engine of this rank on the small model's weights."""
    full = small.weights()

    def read(parameter: Parameter, part: Part) -> torch.Tensor:
        return cut(full[parameter.name], part)

    groups = Groups(program)
    parameters = materialize(program, groups.coordinates, read, "cpu")
    return Engine(program, groups, parameters, factory(optimizer), clip, **options)


def local(program: Program, engine: Engine, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This data rank's part of a global batch."""
    n = program.micro_batch * program.micro_batches
    r = engine.groups.coordinates["dp"]
    return {name: t[r * n : (r + 1) * n] for name, t in data.items()}


def samples(program: Program) -> int:
    """Samples of the global batch."""
    return program.micro_batch * program.micro_batches * program.mesh["dp"]


def close(got: torch.Tensor, want: torch.Tensor, name: str) -> None:
    error = (got - want).abs().max() / want.abs().max()
    assert error < 1e-12, f"{name}: {error}"
