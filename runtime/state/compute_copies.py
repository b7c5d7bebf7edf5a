"""What ops read of each parameter: the parameter itself or, where the optimizer updates a copy in another type, a cast.

    held (float32) --after each update--> read (bfloat16) --ops, backward--> gradient (bfloat16)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from partitioner.lowering.program import Program


class ComputeCopies:
    """``read``: by name, in the types in which ops read; ``held``: what the optimizer updates and checkpoints hold."""

    def __init__(self, program: Program, held: Mapping[str, nn.Parameter]) -> None:
        self.held = held
        cast = [name for name in held if program.parameters[name].copy_dtype is not None]
        made = {name: held[name].detach().to(program.parameters[name].dtype, copy=True) for name in cast}
        self.read = {**held, **{name: nn.Parameter(tensor) for name, tensor in made.items()}}
        self._pairs: tuple[list[torch.Tensor], list[torch.Tensor]]
        self._pairs = [self.read[name] for name in cast], [held[name] for name in cast]

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast again, after the parameters that are held have changed."""
        if self._pairs[0]:
            torch.ops.aten._foreach_copy_.default(*self._pairs)
