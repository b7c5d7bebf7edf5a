"""Loading, under any plan: the newest checkpoint that is whole, seen to be of this model before anything changes."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from partitioner.errors import InputError
from partitioner.lowering.program import Program
from runtime.checkpoint import step_folders
from runtime.checkpoint.checkpoint_reader import METADATA, CheckpointReader
from runtime.checkpoint.dcp_chunks import LoadPlanner
from runtime.checkpoint.entries import Tensors, empty_states, entries_of, give
from runtime.checkpoint.record import COMPLETE, NotWhole, Progress, Record, check_files, not_whole, read_record
from runtime.ranks.process_group import everywhere, is_first
from runtime.state.parameters import Groups

T = TypeVar("T")


def load(
    folder: Path | str,
    program: Program,
    groups: Groups,
    parameters: Tensors,
    optimizer: torch.optim.Optimizer | None,
    tell: Callable[[str], object] = warnings.warn,
) -> Progress:
    """Fill ``parameters`` and the optimizer's state in place, on all ranks, from FOLDER or the newest step-N in it.

    One that is damaged is passed over for the one before, and ``tell`` is given the reason, on the first rank. The plan
    may differ from the one saved under, its precision too; the model and the kind of optimizer may not. Hyper-
    parameters (learning rate, betas, weight decay, ...) become those that were saved, as ``load_state_dict`` of torch's
    own optimizers does; from weights alone the optimizer starts afresh. Raises InputError where no checkpoint is
    whole and for one of another model, the same on all ranks, before anything is changed. Of one whose sums are right,
    or that is of a version without, and whose tensors can't be read all the same, it raises when some have been filled.
    """
    found, record, metadata = _newest_whole(Path(folder), tell)
    _agreed(lambda: _check_run(found, record, program, optimizer))
    _agreed(lambda: _check_model(found, metadata, program, parameters))
    states = empty_states(program, groups, parameters, metadata) if optimizer is not None else {}
    entries = entries_of(program, groups, parameters, states)
    planner = LoadPlanner(flatten_state_dict=False)
    try:
        state_dict_loader.load(entries, storage_reader=CheckpointReader(found), planner=planner)
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        said = (str(cause).splitlines() or [""])[0][:200]
        raise InputError(f"{found} can't be read, by rank {rank}: {type(cause).__name__}: {said}") from error
    if optimizer is not None:
        try:
            give(optimizer, parameters, states, record.groups)
        except InputError as error:
            raise InputError(f"{found}: {error}: load an earlier one") from error
    return record.progress


def _newest_whole(folder: Path, tell: Callable[[str], object]) -> tuple[Path, Record, Metadata]:
    """All files are read for their sums, each rank's share of them by that rank."""
    if is_first():
        step_folders.recover(folder)
    names = everywhere([path.name for path in step_folders.found(folder)])[0]
    if not names:
        raise InputError(f"{folder} holds no checkpoint: name a folder that holds step-N, or a step-N itself")
    faults = list[str]()
    for name in names:
        path = folder if name == folder.name else folder / name
        try:
            record = _agreed(lambda path=path: read_record(path))
            _agreed(lambda path=path, record=record: check_files(path, _share(sorted(record.files.items()))))
            metadata = _agreed(lambda path=path, record=record: _metadata(path, record))
        except NotWhole as error:
            faults.append(str(error))
            continue
        for fault in faults if is_first() else ():
            tell(f"{fault}: {path.name} is loaded")
        return path, record, metadata
    raise InputError(f"{faults[0]}: load another" if len(names) == 1 else f"{folder} holds no whole one: {faults[0]}")


def _share(rows: list[T]) -> list[T]:
    return rows[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else rows


def _metadata(path: Path, record: Record) -> Metadata:
    """What torch wrote about the tensors, in files that the record knows."""
    if METADATA not in record.files:
        raise not_whole(path, f"{COMPLETE}: it does not name {METADATA}")
    try:
        metadata = CheckpointReader(path).read_metadata()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise not_whole(path, f"{METADATA}: {error}") from error
    for info in metadata.storage_data.values():
        if info.relative_path not in record.files:
            raise not_whole(path, f"{METADATA}: {info.relative_path} is no file of it")
    return metadata


def _check_run(found: Path, record: Record, program: Program, optimizer: torch.optim.Optimizer | None) -> None:
    progress, groups = record.progress, record.groups
    if optimizer is not None and record.optimizer not in (None, type(optimizer).__name__):
        raise InputError(f"{found} holds the state of {record.optimizer:.80}, not of {type(optimizer).__name__}")
    if progress.seed != program.seed:
        raise InputError(f"{found} has seed {progress.seed}, the plan has {program.seed}: change the plan's")
    if optimizer is not None and groups and len(groups) != len(optimizer.param_groups):
        raise InputError(f"{found} holds {len(groups)} groups of parameters, not {len(optimizer.param_groups)}")


def _check_model(found: Path, metadata: Metadata, program: Program, parameters: Tensors) -> None:
    stored = {key: row for key, row in metadata.state_dict_metadata.items() if isinstance(row, TensorStorageMetadata)}
    for name, parameter in program.parameters.items():
        have = stored.get(f"parameter/{name}")
        if have is None:
            raise InputError(f"{found} has no parameter {name}: it is a checkpoint of another model")
        if tuple(have.size) != parameter.shape:
            raise InputError(f"{found}: {name} is {tuple(have.size)}, the model needs {parameter.shape}")
        held, needed = have.properties.dtype, parameters[name].dtype if name in parameters else None
        if needed is not None and held != needed and not (held.is_floating_point and needed.is_floating_point):
            raise InputError(f"{found}: {name} is {held}, the model needs {needed}")
    for name in (key.removeprefix("parameter/") for key in stored if key.startswith("parameter/")):
        if name not in program.parameters:
            raise InputError(f"{found} has also a parameter {name}: it is a checkpoint of another model")


def _agreed(read: Callable[[], T]) -> T:
    """What ``read`` returns; its InputError on any rank is raised on all, for the others would wait for that rank."""
    value, error = list[T](), None
    try:
        value.append(read())
    except InputError as raised:
        error = raised
    for fault in filter(None, everywhere(error)):
        raise fault
    return value[0]
