"""Faults of casts: what is read, added up, summed, held or kept in another data type than the plan says.

    parameter float32 --cast--> bfloat16 --ops--> gradient bfloat16 --added up--> float32 --summed over ranks--> update
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from partitioner.lowering.program import Parameter, Program
from partitioner.sharding.mesh_axes import DP, PP
from runtime.mesh.axis import reduce_scatter
from runtime.train.engine import Engine
from tools.planted_faults.engine_faults import holders
from tools.planted_faults.mutant import Mutant, bypass, edited, modules

CAST = torch.ops.aten.to.dtype


def casts(program: Program) -> Iterator[Mutant]:
    """Every fault of this kind that the Program can have."""
    for name, change in _OF_PARAMETERS.items():
        changed = {n: change(p) for n, p in program.parameters.items()}
        if changed != program.parameters:
            yield Mutant(name, replace(program, parameters=changed))
    yield from _of_nodes(program)
    if any(p.gradient_dtype != p.dtype for p in program.parameters.values()):
        for name, (applies, prepare) in _OF_ENGINES.items():
            if applies(program):
                yield Mutant(name, program, prepare)


def _of_nodes(program: Program) -> Iterator[Mutant]:
    """The casts that the model has itself, and those around what stays in float32, each left out.

    Not in pipelines: a product of two types raises on the ranks of one stage, and those of others would wait. Nor the
    loss itself, of which torch's own mean is rounded.
    """
    for module in modules(program) if program.mesh[PP] == 1 else ():
        for index, node in enumerate(module.graph.nodes):
            if node.target == CAST and node.meta["val"].dim() and node.args[1] != node.args[0].meta["val"].dtype:
                yield Mutant(f"{type(module).__name__} {node.name}: not cast", edited(program, module, index, bypass))


_OF_PARAMETERS: dict[str, Callable[[Parameter], Parameter]] = {
    "gradients added up as ops make them": lambda p: replace(p, gradient_dtype=p.dtype),
    "no copy in the type of the state": lambda p: replace(p, copy_dtype=None),
}


def _rounded_before_sums(engine: Any) -> None:
    """Each rank's gradients are rounded to what ops read before they are summed over dp."""
    inner, short = engine._sync._sum, _short(engine)

    def rounded(flat: torch.Tensor, tied: Any, axis: str) -> Any:
        flat.copy_(flat.to(short))
        return inner(flat, tied, axis)

    engine._sync._sum = rounded


def _rounded_before_scatters(engine: Engine) -> None:
    """The same of what is scattered."""
    for part in holders(engine):
        part.set_custom_reduce_scatter(_Rounded(_short(engine)))


class _Rounded:
    """A reduce_scatter that rounds first."""

    def __init__(self, short: torch.dtype) -> None:
        self.short = short

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> Any:
        input_tensor.copy_(input_tensor.to(self.short))
        return reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)


def _short(engine: Engine) -> torch.dtype:
    return min((p.dtype for p in engine.program.parameters.values()), key=lambda dtype: dtype.itemsize)


_OF_ENGINES: dict[str, tuple[Callable[[Program], bool], Callable[[Engine], object]]] = {
    "gradients rounded before they are summed": (lambda p: p.shards == 1 and p.mesh[DP] > 1, _rounded_before_sums),
    "gradients rounded before they are scattered": (lambda p: p.zero == 1, _rounded_before_scatters),
}
