"""The parameters that a rank holds: their initial values in, full tensors out, one parameter at a time.

    from_module(model)                 a real module: its weights are the initial weights
    weights.from_safetensors(folder)   a Hugging Face folder, read by slices
    module_start                       a module on meta, or a function of names: values are drawn, the same on all ranks
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

from partitioner.errors import InputError
from partitioner.lowering.program import Parameter, Program
from partitioner.ops.cut_tensors import assemble
from partitioner.sharding.layout import Shard
from partitioner.sharding.mesh_axes import PP, REPLICA, SHARD
from partitioner.user_code.compiled import written_parameters
from runtime.state.safetensors_files import from_safetensors
from runtime.state.shard_pieces import Part, cut, part, part_of, places, rank_parameters

Source = Callable[[Parameter, Part], torch.Tensor]


class Groups(Protocol):
    """What this room needs of ``runtime.mesh.groups.Groups``."""

    @property
    def coordinates(self) -> Mapping[str, int]:
        """This rank's index on "pp", "dp", the axes that refine it, and each of the Program's axes."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this rank's tensors lie."""
        ...

    def group(self, axis: str) -> dist.ProcessGroup:
        """The ranks that differ from this one on ``axis`` alone, in the order of their index."""
        ...


def materialize(
    program: Program,
    coordinates: Mapping[str, int],
    source: nn.Module | str | Path | Source,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> dict[str, nn.Parameter]:
    """The parts of the parameters that the rank at ``coordinates`` holds, by name, in the Program's order.

    ``coordinates`` has "pp" and each of ``program.axes``. ``dtype`` None: in which the Program holds them. A module is
    read by ``from_module``, a path by ``from_safetensors``. Raises InputError for a weight that is missing or
    misshapen.
    """
    read = _source(program, source)
    found: dict[str, nn.Parameter] = {}
    for parameter in rank_parameters(program, coordinates[PP]):
        local = read(parameter, part_of(program, parameter, coordinates))
        local = local.to(device=device, dtype=dtype or parameter.held_dtype)
        found[parameter.name] = nn.Parameter(local.contiguous(), parameter.requires_grad)
    return found


def _source(program: Program, source: nn.Module | str | Path | Source) -> Source:
    if isinstance(source, nn.Module):
        return from_module(source)
    return from_safetensors(program, Path(source)) if isinstance(source, str | Path) else source


def from_module(module: nn.Module) -> Source:
    """The weights of a real module; the parts are copies, so that the module can be freed."""
    weights = written_parameters(module)

    def read(parameter: Parameter, part: Part) -> torch.Tensor:
        weight = weights.get(parameter.name)
        if weight is None:
            raise InputError(f"the module has no parameter {parameter.name}: it is not the model of this Program")
        if weight.is_meta:
            raise InputError(f"{parameter.name} is on meta: give weights from safetensors, or a seed")
        return cut(checked(weight.detach(), parameter, "the module"), part)

    return read


def gather(
    program: Program,
    groups: Groups,
    name: str,
    local: torch.Tensor | None,
    dtype: torch.dtype | None = None,
    everywhere: bool = True,
) -> torch.Tensor | None:
    """The full tensor of one parameter (or of its gradient or optimizer state) from the parts of all ranks.

    Every rank calls it, in the same order of names; ``local`` counts on ranks that hold the parameter. ``dtype`` is
    that of ``local`` on all ranks (None: the Program's). The result is on every rank, or on rank 0 alone and None
    elsewhere. Uneven parts are padded on the way.
    """
    parameter, here = program.parameters[name], groups.coordinates
    owner = parameter.stages[0] % program.mesh[PP]
    if not everywhere and here[REPLICA] != 0:
        return None
    whole = None
    if here[PP] == owner:
        whole = _typed(local, name, dtype or parameter.held_dtype)
        if program.is_sharded(parameter):
            whole = _over_shards(program, groups, parameter, whole)
    if not everywhere and here[SHARD] != 0:
        return None
    if whole is not None:
        whole = _over_axes(program, groups, parameter, whole)
    if everywhere or all(here[axis] == 0 for axis, _ in program.axes):
        whole = _from_owner(groups, owner, whole, parameter.shape, dtype or parameter.held_dtype, program.mesh[PP])
        return whole if everywhere or here[PP] == 0 else None
    return None


def _typed(local: torch.Tensor | None, name: str, dtype: torch.dtype) -> torch.Tensor:
    if local is None or local.dtype != dtype:
        given = "nothing" if local is None else local.dtype
        raise ValueError(f"{name}: this rank holds a part of it in {dtype}, {given} was given")
    return local.detach()


def _over_shards(program: Program, groups: Groups, parameter: Parameter, local: torch.Tensor) -> torch.Tensor:
    """The chunks of all ranks that divide state, one below the other."""
    here = places(program, groups.coordinates)
    rows = [part(parameter.shape, parameter.layout, here, (n, program.shards)).shape for n in range(program.shards)]
    return torch.cat(_parts(local, rows, groups.group(SHARD)))


def _over_axes(program: Program, groups: Groups, parameter: Parameter, local: torch.Tensor) -> torch.Tensor:
    here = places(program, groups.coordinates)
    for n, (axis, ranks) in reversed(list(enumerate(program.axes))):
        placement = parameter.layout[n]
        if isinstance(placement, Shard) and ranks > 1:
            rows = ([*here[:n], (rank, ranks)] for rank in range(ranks))
            shapes = [part(parameter.shape, parameter.layout[: n + 1], row).shape for row in rows]
            local = assemble(_parts(local, shapes, groups.group(axis)), placement)
    return local


def _parts(local: torch.Tensor, shapes: list[tuple[int, ...]], group: dist.ProcessGroup) -> list[torch.Tensor]:
    most = max(math.prod(shape) for shape in shapes)
    sent = local.new_zeros(most)
    sent[: local.numel()] = local.flatten()
    received = [torch.empty_like(sent) for _ in shapes]
    dist.all_gather(received, sent, group)
    return [flat[: math.prod(shape)].view(shape) for flat, shape in zip(received, shapes, strict=True)]


def _from_owner(
    groups: Groups, owner: int, whole: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, pp: int
) -> torch.Tensor:
    whole = torch.empty(shape, dtype=dtype, device=groups.device) if whole is None else whole.contiguous()
    if pp > 1:
        dist.broadcast(whole, group=groups.group(PP), group_src=owner)
    return whole


def checked(weight: torch.Tensor, parameter: Parameter, giver: str) -> torch.Tensor:
    """A weight of the parameter's shape. Raises InputError for any other, naming the ``giver``."""
    if tuple(weight.shape) != parameter.shape:
        raise InputError(f"{parameter.name} is {tuple(weight.shape)} in {giver}, the Program needs {parameter.shape}")
    return weight
