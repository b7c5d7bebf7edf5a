"""What a checkpoint holds, by key: each parameter, and what the optimizer keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from partitioner.errors import InputError
from partitioner.lowering.program import Program
from runtime.checkpoint.dcp_chunks import Entry
from runtime.state.optimizer import Hyper, restored
from runtime.state.parameters import Groups
from runtime.state.shard_pieces import part, part_of

Tensors = Mapping[str, torch.Tensor]


class Number(NamedTuple):
    """A plain number of an optimizer's state, as a scalar of its kind."""

    held: torch.Tensor


States = dict[str, dict[str, torch.Tensor | Number]]


def states_of(parameters: Tensors, optimizer: torch.optim.Optimizer | None) -> States:
    """The optimizer's tensors and numbers by parameter name and by its own word for them."""
    kept = optimizer.state if optimizer is not None else {}
    rows = {name: kept.get(tensor, {}) for name, tensor in parameters.items()}
    return {
        name: {word: _held(word, value, optimizer) for word, value in row.items() if value is not None}
        for name, row in rows.items()
    }


def _held(word: str, value: object, optimizer: object) -> torch.Tensor | Number:
    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, bool | int | float):
        kind, what = type(optimizer).__name__, type(value).__name__
        raise InputError(f"the state of {kind} has a {what}, {word}: a checkpoint holds tensors and numbers")
    return Number(torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None))


def empty_states(program: Program, groups: Groups, parameters: Tensors, metadata: Metadata) -> States:
    """Memory for the state that the checkpoint holds of this rank's parameters: their parts, and scalars."""
    states: States = {name: {} for name in parameters}
    for key, stored in metadata.state_dict_metadata.items():
        kind, _, rest = key.partition("/")
        name, _, word = rest.rpartition("/")
        if name not in states or not isinstance(stored, TensorStorageMetadata):
            continue
        if kind == "number":
            states[name][word] = Number(torch.empty((), dtype=stored.properties.dtype))
        elif kind == "optimizer":
            tensor = parameters[name]
            like = tensor.shape if tuple(stored.size) == program.parameters[name].shape else stored.size
            states[name][word] = torch.empty(like, dtype=stored.properties.dtype, device=tensor.device)
    return states


def entries_of(program: Program, groups: Groups, parameters: Tensors, states: States) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name, tensor in parameters.items():
        own = part_of(program, program.parameters[name], groups.coordinates)
        if tuple(tensor.shape) != own.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} here, its part is {own.shape}")
        entries[f"parameter/{name}"] = Entry(tensor, own)
        for word, value in states.get(name, {}).items():
            if isinstance(value, Number):
                entries[f"number/{name}/{word}"] = Entry(value.held, part((), (), ()))
                continue
            whole = value.shape == tensor.shape
            entries[f"optimizer/{name}/{word}"] = Entry(value, own if whole else part(tuple(value.shape), (), ()))
    return entries


def give(optimizer: torch.optim.Optimizer, parameters: Tensors, states: States, saved: list[Hyper]) -> None:
    """Let the optimizer place the loaded tensors itself, beside the hyper-parameters of its saved groups; raises
    InputError where it can't."""
    names = {id(tensor): name for name, tensor in parameters.items()}
    members = [p for group in optimizer.param_groups for p in group["params"]]
    found = ((n, states.get(names.get(id(p), ""), {})) for n, p in enumerate(members))
    rows = {
        n: {word: v.held.item() if isinstance(v, Number) else v for word, v in row.items()} for n, row in found if row
    }
    own = optimizer.state_dict()["param_groups"]
    groups = [restored(group, values) for group, values in zip(own, saved or [{}] * len(own), strict=True)]
    try:
        optimizer.load_state_dict({"state": rows, "param_groups": groups})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(f"{type(optimizer).__name__} can't take the state that was saved ({why})") from error
