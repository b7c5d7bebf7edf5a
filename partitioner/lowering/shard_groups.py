"""Which parameters of a stage are gathered and reduced together where dp divides state, and how many bytes that moves.

    a call          parameters that it alone reads, by the data types in which they are held and read
    the stage       parameters that several of its calls read
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from partitioner.lowering.program import Coordinates, Parameter, Program, Stage
from partitioner.sharding.layout import local_shape


class ShardGroup(NamedTuple):
    """``call``: the number of the call in its stage, None for the whole stage."""

    call: int | None
    parameters: tuple[Parameter, ...]


def shard_groups(program: Program, stage: Stage) -> list[ShardGroup]:
    """In one order on all ranks; none where nothing is divided."""
    readers: dict[str, set[int]] = {}
    for n, call in enumerate(stage.calls):
        for name in call.arguments:
            if name in program.parameters and program.is_sharded(program.parameters[name]):
                readers.setdefault(name, set()).add(n)
    several = tuple(program.parameters[name] for name, calls in readers.items() if len(calls) > 1)
    found: list[ShardGroup] = [ShardGroup(None, several)] if several else []
    for n in range(len(stage.calls)):
        kinds: dict[tuple[torch.dtype, torch.dtype], list[Parameter]] = {}
        for name in (name for name, calls in readers.items() if calls == {n}):
            parameter = program.parameters[name]
            kinds.setdefault((parameter.held_dtype, parameter.dtype), []).append(parameter)
        found += [ShardGroup(n, tuple(rows)) for rows in kinds.values()]
    return found


def gathered_bytes(program: Program, here: Coordinates, group: ShardGroup) -> int:
    """Of all its parameters whole, as ops read them, each padded so that ranks have equal parts."""
    return sum(_padded(program, here, p) * p.dtype.itemsize for p in group.parameters)


def reduced_bytes(program: Program, here: Coordinates, group: ShardGroup) -> int:
    """Of the gradients of those that train."""
    return sum(_padded(program, here, p) * p.gradient_dtype.itemsize for p in group.parameters if p.requires_grad)


def rank_shape(program: Program, parameter: Parameter, here: Coordinates) -> tuple[int, ...]:
    """What a rank's ops read of a parameter."""
    return local_shape(parameter.shape, parameter.layout, ((here[axis], ranks) for axis, ranks in program.axes))


def chunk_rows(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """First and past-the-end row of one chunk of ``torch.chunk``, as FSDP2 divides: the last may be short or empty."""
    most = -(-size // ranks)
    return min(rank * most, size), min((rank + 1) * most, size)


def held_shape(program: Program, parameter: Parameter, here: Coordinates, shard: int) -> tuple[int, ...]:
    """What a rank holds of a parameter from step to step; ``shard``: its place among those that divide state."""
    shape = rank_shape(program, parameter, here)
    if not program.is_sharded(parameter):
        return shape
    start, end = chunk_rows(shape[0], shard, program.shards)
    return end - start, *shape[1:]


def _padded(program: Program, here: Coordinates, parameter: Parameter) -> int:
    rows, *rest = rank_shape(program, parameter, here)
    return -(-rows // program.shards) * program.shards * math.prod(rest)


def scattered(program: Program, groups: list[ShardGroup]) -> Iterator[ShardGroup]:
    """Those whose gradients are reduced."""
    return (group for group in groups if any(p.requires_grad for p in group.parameters))
